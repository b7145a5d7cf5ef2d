# Ends a cluster, whole or half. Sourced, not run.

take_down() {
    local machine
    [[ -d $run || -n $(left_below "$cluster_cgroup") ]] || return 0
    stop_forwarder 2>/dev/null
    # Nodes first: without them the API server has nobody to miss.
    for machine in "${nodes[@]}" outside control; do kill_machine "$machine"; done
    remove_cgroup "$cluster_cgroup"
    rm -rf "$run" "$cache/cluster/.buildah".??????
}

# What is left of a cluster, one line each; nothing after take_down. A process is the cluster's if its command line or its
# mounts speak of the run's folder.
leftovers() {
    local process command
    [[ ! -e $run ]] || echo "folder $run"
    left_below "$cluster_cgroup" | sed 's/^/cgroup /'
    grep -F " $run" /proc/self/mountinfo | sed 's/^/mount /' || true
    for process in /proc/[0-9]*; do
        command=$(cat "$process/cmdline" 2>/dev/null | tr '\0' ' ')
        if [[ $command == *"$run/"* ]] || grep -qsF "$run/" "$process/mountinfo"; then
            echo "process ${process#/proc/}: ${command:0:150}"
        fi
    done
}
