# shellcheck shell=bash
# Hands on a single container, without a word to the API server, which may be down. Sourced, not run.

# signal_container SIGNAL NAMESPACE POD [CONTAINER]: to the first process of the pod's running container. Prints the
# container's id, which tells a test whether it was the same one before and after.
signal_container() {
    local signal=$1 namespace=${2:-} pod=${3:-} container=${4:-} node id pid filter
    [[ -n $namespace && -n $pod ]] || fail "usage: $(basename "$0") NAMESPACE POD [CONTAINER]"
    filter='labels."io.cri-containerd.kind"==container'
    filter+=",labels.\"io.kubernetes.pod.namespace\"==$namespace,labels.\"io.kubernetes.pod.name\"==$pod"
    [[ -z $container ]] || filter+=",labels.\"io.kubernetes.container.name\"==$container"
    for node in "${nodes[@]}"; do
        init_of "$node" >/dev/null || continue
        for id in $(ctr_on "$node" containers list --quiet "$filter"); do
            pid=$(ctr_on "$node" tasks list | awk -v id="$id" '$1 == id && $3 != "STOPPED" {print $2}')
            [[ -n $pid ]] || continue
            on_machine "$node" kill "-$signal" "$pid"
            echo "$id"
            return
        done
    done
    fail "no node runs a container${container:+ $container} of a pod $pod in namespace $namespace"
}
