# shellcheck shell=bash
# Hands on a single container, without a word to the API server, which may be down. Sourced, not run.

# find_container NAMESPACE POD [CONTAINER]: prints the node, the id and the first process (as the node counts) of the pod's
# running container.
find_container() {
    local namespace=${1:-} pod=${2:-} container=${3:-} node id pid filter
    [[ -n $namespace && -n $pod ]] || fail "usage: $(basename "$0") NAMESPACE POD [CONTAINER]"
    filter='labels."io.cri-containerd.kind"==container'
    filter+=",labels.\"io.kubernetes.pod.namespace\"==$namespace,labels.\"io.kubernetes.pod.name\"==$pod"
    [[ -z $container ]] || filter+=",labels.\"io.kubernetes.container.name\"==$container"
    for node in "${nodes[@]}"; do
        init_of "$node" >/dev/null || continue
        for id in $(ctr_on "$node" containers list --quiet "$filter"); do
            pid=$(ctr_on "$node" tasks list | awk -v id="$id" '$1 == id && $3 != "STOPPED" {print $2}')
            [[ -n $pid ]] || continue
            echo "$node $id $pid"
            return
        done
    done
    fail "no node runs a container${container:+ $container} of a pod $pod in namespace $namespace"
}

# signal_container SIGNAL NAMESPACE POD [CONTAINER]: to that process. Prints the container's id, which tells a test whether it
# was the same one before and after.
signal_container() {
    local signal=$1 found node id pid
    shift
    found=$(find_container "$@")
    read -r node id pid <<<"$found"
    on_machine "$node" kill "-$signal" "$pid"
    echo "$id"
}
