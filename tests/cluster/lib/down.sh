# Ends a cluster, whole or half. Sourced, not run.

take_down() {
    local machine
    [[ -d $run || -n $(cluster_cgroups) ]] || return 0
    stop_forwarder 2>/dev/null
    # Nodes first: without them the API server has nobody to miss.
    for machine in "${nodes[@]}" outside control; do kill_machine "$machine"; done
    remove_cgroups
    rm -rf "$run" "$cache/cluster/.buildah".??????
}

# What is left of a cluster, one line each; nothing after take_down.
leftovers() {
    local file
    [[ ! -e $run ]] || echo "folder $run"
    cluster_cgroups | sed 's/^/cgroup /'
    grep -F " $run" /proc/self/mountinfo | sed 's/^/mount /' || true
    # A process is the cluster's if its command line speaks of the run's folder, or its network is not this computer's
    # and its mounts come from there.
    for file in /proc/[0-9]*/cmdline; do
        tr '\0' ' ' <"$file" 2>/dev/null | grep -qF "$run/" && echo "process $(basename "$(dirname "$file")"): $(tr '\0' ' ' <"$file" | cut -c1-120)"
    done
    for file in /proc/[0-9]*/mountinfo; do
        grep -qF "$run" "$file" 2>/dev/null && echo "process $(basename "$(dirname "$file")") in a mount namespace of the cluster"
    done
    true
}
