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

# What is left of a cluster, one line each; nothing after take_down. A process is the cluster's if its command line or its
# mounts speak of the run's folder.
leftovers() {
    local file process
    [[ ! -e $run ]] || echo "folder $run"
    left_below "$cluster_cgroup" | sed 's/^/cgroup /'
    grep -F " $run" /proc/self/mountinfo | sed 's/^/mount /' || true
    for file in $(grep -lsF "$run/" /proc/[0-9]*/cmdline /proc/[0-9]*/mountinfo); do
        process=${file#/proc/} process=${process%%/*}
        # A zombie of a machine that is gone, or a grep that ended meanwhile.
        [[ ! -e /proc/$process/exe ]] || echo "process $process: $(tr '\0' ' ' <"/proc/$process/cmdline" | cut -c1-150)"
    done
}
