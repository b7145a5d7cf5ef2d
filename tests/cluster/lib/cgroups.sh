# shellcheck shell=bash
# Cgroups of the machines, in every hierarchy that this machine mounts: the kubelets of one machine must not share
# one, or each ends the pods of the others. Sourced, not run.

# Named for the run folder, so that two clusters do not meet.
cluster_cgroup="tenure-cluster-$(sha256sum <<<"$run" | cut -c1-8)"

cgroup_of() { echo "$cluster_cgroup/$1"; }

# The mount points: one for version 2, one for each controller for version 1, and both where runc finds both.
cgroup_mounts() { awk '$3 == "cgroup" || $3 == "cgroup2" {print $2}' /proc/self/mounts; }

# make_cgroup PATH: with all the folders above it.
make_cgroup() {
    local mount part folder parent
    for mount in $(cgroup_mounts); do
        folder=$mount
        for part in ${1//\// }; do
            parent=$folder folder="$folder/$part"
            if [[ -f $parent/cgroup.controllers ]]; then
                sed 's/\([^ ]\+\)/+\1/g' "$parent/cgroup.controllers" >"$parent/cgroup.subtree_control" 2>/dev/null || true
            fi
            mkdir -p "$folder"
            # Version 1 takes no process into a group that has no processors or memory.
            if [[ -f $folder/cpuset.cpus && -f $parent/cpuset.cpus && ! -f $folder/cgroup.controllers ]]; then
                cat "$parent/cpuset.cpus" >"$folder/cpuset.cpus"
                cat "$parent/cpuset.mems" >"$folder/cpuset.mems"
            fi
        done
    done
}

# Moves this (sub)shell there.
enter_cgroup() {
    local mount
    for mount in $(cgroup_mounts); do echo "$BASHPID" >"$mount/$1/cgroup.procs"; done
}

# Those folders below a cgroup that exist, deepest first, in all hierarchies: left_below PATH
left_below() {
    local mount folders=()
    for mount in $(cgroup_mounts); do [[ ! -d $mount/$1 ]] || folders+=("$mount/$1"); done
    ((${#folders[@]} == 0)) || find "${folders[@]}" -depth -type d
}

# remove_cgroup PATH: with all below it.
remove_cgroup() {
    local left deadline=$((SECONDS + gone_within))
    while true; do
        # A group is busy until the last of its killed processes is gone.
        left_below "$1" | xargs -r rmdir 2>/dev/null || true
        left=$(left_below "$1")
        [[ -n $left ]] || return 0
        ((SECONDS < deadline)) || fail "these cgroups cannot be removed: $(head -n 5 <<<"$left" | xargs)"
        sleep 0.1
    done
}
