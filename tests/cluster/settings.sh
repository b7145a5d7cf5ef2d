# shellcheck shell=bash
# shellcheck disable=SC2034 # used by those that source it
# What is fixed about the test cluster: where it lives, its addresses, and how long anything may take. Sourced, not run.
# The versions of what it is built from are in programs/versions.

# Programs and images that are built once, shared with the parity run.
cache="${TENURE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/tenure}"
# A second cluster can run beside the first under another name.
cluster_name="${TENURE_CLUSTER:-default}"
# Everything that one run writes: certificates, logs, stores, the nodes' disks. Gone after `make cluster-down`.
run="$cache/cluster/$cluster_name"
kubeconfig="$run/kubeconfig"

nodes=(node-1 node-2 node-3)
# `control` runs the control plane; `outside` runs nothing: tests start there what is not part of the cluster, such as
# the target of a job, so that a node can lose one without losing the other.
machines=(control outside "${nodes[@]}")

# All of these exist only in network namespaces of the run.
control_address=10.89.0.1
outside_address=10.89.0.2
prefix_length=24
service_range=10.96.0.0/16
first_service=10.96.0.1
# The address that dns.yaml claims.
dns_service=10.96.0.10
pod_range=10.244.0.0/16
api_port=6443

# In seconds. Each is several times what it takes on two busy cores; a machine that needs longer has another problem.
machine_within=10
etcd_within=30
apiserver_within=90
containerd_within=30
nodes_within=120
dns_within=90
# A process that was killed with SIGKILL is gone as soon as the kernel has taken its memory back.
gone_within=30
# Another make cluster or cluster-down of the same cluster at the same time.
lock_within=600
packages_within=600

# A node that does not renew its lease is NotReady after this time, looked at this often. Half of the default, so that
# tests of a node's death are short.
node_grace=20s
node_looked_at=2s

# The address of a machine on the bridge.
address_of() {
    case $1 in
    control) echo "$control_address" ;;
    outside) echo "$outside_address" ;;
    node-*) echo "10.89.0.$((10 + ${1#node-}))" ;;
    esac
}

# The pod addresses of a node.
pods_of() { echo "10.244.${1#node-}.0/24"; }
