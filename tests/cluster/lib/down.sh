# shellcheck shell=bash
# Ends a cluster, whole or half. Sourced, not run.

take_down() {
    local machine pid
    [[ -d $run || -n $(left_below "$cluster_cgroup") ]] || return 0
    stop_forwarder 2>/dev/null
    for machine in "${machines[@]}"; do
        if pid=$(init_of "$machine"); then kill -KILL "$pid"; fi
    done
    for machine in "${machines[@]}"; do await_end "$machine"; done
    remove_cgroup "$cluster_cgroup"
    rm -rf "$run"
}

# What is left of a cluster, one line each; nothing after take_down. A process is the cluster's if it has mounts from the
# run's folder, or was started with a program, a socket or a machine's folder there.
leftovers() {
    local file process
    [[ ! -e $run ]] || echo "folder $run"
    find /sys/fs/cgroup -name "$cluster_cgroup" -printf 'cgroup %p\n'
    grep -F " $run" /proc/self/mountinfo | sed 's/^/mount /' || true
    # The patterns come by standard input, or grep would find itself.
    # shellcheck disable=SC2062 # these are files, not patterns
    grep -lsF --file=- /proc/[0-9]*/cmdline /proc/[0-9]*/mountinfo <<PATTERNS | while read -r file; do
$run/programs/
$run/api.socket
$run/machines/
PATTERNS
        process=${file#/proc/} process=${process%%/*}
        [[ ! -e /proc/$process/exe ]] || echo "process $process: $(tr '\0' ' ' <"/proc/$process/cmdline" | cut -c1-150)"
    done || true
}
