# shellcheck shell=bash
# Machines: a machine is a process (machine-init.sh) that is number 1 of its own pid, mount, network, host name and IPC
# namespaces. Whatever is started on it dies with it at once, and its mounts and interfaces with that: a machine's death
# is one SIGKILL, and nothing can be left behind but its folder and its cgroups. Sourced, not run.

# The process id of a machine's first process, as this machine counts; fails if that process has ended, even if its
# number has been given to another one since.
init_of() {
    local stat pid now
    stat=$(cat "$run/machines/$1/init" 2>/dev/null) || return 1
    pid=${stat%% *}
    now=$(cat "/proc/$pid/stat" 2>/dev/null) || return 1
    [[ $(started_at "$now") == "$(started_at "$stat")" ]] || return 1
    # Neither is it one that has ended and that nobody has asked for yet.
    [[ $(state_of "$now") != Z ]] || return 1
    echo "$pid"
}

# Fields of /proc/PID/stat after the name, which may hold blanks.
state_of() { local rest=${1##*) }; echo "${rest%% *}"; }
started_at() { awk '{print $20}' <<<"${1##*) }"; }

# on_machine MACHINE COMMAND...: runs a command there, as if it had been started on it.
on_machine() {
    local pid
    pid=$(init_of "$1") || { say "$1 is down"; return 1; }
    shift
    nsenter --target "$pid" --mount --net --pid --uts --ipc -- "$@"
}

# on_network MACHINE COMMAND...: with only the network of the machine.
on_network() {
    local pid
    pid=$(init_of "$1") || { say "$1 is down"; return 1; }
    shift
    nsenter --target "$pid" --net -- "$@"
}

# Its folder, its cgroup and its first process; nothing runs on it yet.
boot_machine() {
    local name=$1 folder="$run/machines/$1"
    mkdir -p "$folder"/{log,var/lib/{kubelet,containerd,cni},var/log,pids}
    rm -f "$folder"/{init,ready} "$folder"/pids/*
    make_cgroup "$(cgroup_of "$name")/system"
    # Its own session: what is typed at the terminal that ran make cluster does not reach it.
    # The first process tells its own number before it does anything else: a cut-off run leaves none that is not recorded.
    (
        enter_cgroup "$(cgroup_of "$name")/system"
        exec setsid unshare --fork --pid --mount --net --uts --ipc --propagation private \
            "$here/machine-init.sh" "$name" "$folder"
    ) >"$folder/log/init" 2>&1 </dev/null 9>&- &
    disown
    await "$machine_within" "$name" "$folder/log/init" test -f "$folder/ready"
}

# start_on MACHINE PROGRAM COMMAND...: a program in the background, with a log and its process id recorded.
start_on() {
    local machine=$1 name=$2 folder="$run/machines/$1"
    shift 2
    (
        enter_cgroup "$(cgroup_of "$machine")/system"
        # shellcheck disable=SC2016 # expanded there, not here
        on_machine "$machine" bash -c 'log=$1 pid=$2; shift 2
            setsid "$@" >>"$log" 2>&1 </dev/null & echo $! >"$pid"' start "$folder/log/$name" "$folder/pids/$name" "$@"
    ) 9>&-
}

# signal_on MACHINE PROGRAM SIGNAL
signal_on() { on_machine "$1" kill "-$3" "$(cat "$run/machines/$1/pids/$2")"; }

# runs_on MACHINE PROGRAM
runs_on() { on_machine "$1" kill -0 "$(cat "$run/machines/$1/pids/$2" 2>/dev/null)" 2>/dev/null; }

# Ends a machine with everything on it, as if its power had been cut.
kill_machine() {
    local pid
    if pid=$(init_of "$1"); then kill -KILL "$pid"; fi
    await_end "$1"
    # A computer that boots finds none; a kubelet would take those of its dead pods for running ones.
    remove_cgroup "$(cgroup_of "$1")"
}

await_end() {
    local pid deadline=$((SECONDS + gone_within))
    while pid=$(init_of "$1"); do
        ((SECONDS < deadline)) || fail "$1 (process $pid) has not ended $gone_within s after SIGKILL; see /proc/$pid/stack"
        sleep 0.1
    done
}

# The bridge that all machines hang on belongs to `control`.
make_bridge() {
    on_network control ip link add br0 type bridge
    on_network control ip address add "$control_address/$prefix_length" dev br0
    on_network control ip link set br0 up
    add_pod_routes control
}

# Lays a cable from a machine to the bridge. A killed machine takes both ends of its cable with it.
connect_machine() {
    local name=$1 pid
    pid=$(init_of "$name")
    on_network control ip link add "v-$name" type veth peer name eth0 netns "$pid"
    on_network control ip link set "v-$name" master br0 up
    on_network "$name" ip address add "$(address_of "$name")/$prefix_length" dev eth0
    on_network "$name" ip link set eth0 up
    # Nobody is there: the service addresses must have some route, or they are refused before they are translated.
    on_network "$name" ip route add default via "$control_address"
    add_pod_routes "$name"
}

# Each node's pods are reached through the node.
add_pod_routes() {
    local node
    for node in "${nodes[@]}"; do
        [[ $node == "$1" ]] || on_network "$1" ip route add "$(pods_of "$node")" via "$(address_of "$node")"
    done
}

# gone_from MACHINE PROGRAM: it has ended.
gone_from() { ! runs_on "$1" "$2"; }
