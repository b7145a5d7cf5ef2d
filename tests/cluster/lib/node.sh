# shellcheck shell=bash
# What runs on each node: containerd, kubelet, kube-proxy. Sourced, not run.

containerd_config() {
    cat <<CONFIG
version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
# Both make folders under /opt, which is this computer's.
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.nri.v1.nri"]

[grpc]
address = "/run/containerd/containerd.sock"

[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "$pause_image"

[plugins."io.containerd.cri.v1.runtime"]
# Without CAP_SYS_RESOURCE a score cannot be lowered, and no pod would start.
restrict_oom_score_adj = true
enable_cdi = false

[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["/usr/lib/cni"]
conf_dir = "$run/machines/$1/cni"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
CONFIG
}

# Each pod has a cable of its own to the node, which routes: what two pods of one node say to each other through a
# service address passes the node's translation then, which a bridge would hide from it.
cni_config() {
    cat <<CONFIG
{
  "cniVersion": "1.0.0", "name": "pods",
  "plugins": [
    {"type": "ptp", "ipam": {"type": "host-local", "dataDir": "/run/cni-addresses",
      "ranges": [[{"subnet": "$(pods_of "$1")"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
CONFIG
}

kubelet_config() {
    cat <<CONFIG
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: $pki/ca.crt}
authorization: {mode: Webhook}
tlsCertFile: $pki/$1.crt
tlsPrivateKeyFile: $pki/$1.key
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
cgroupRoot: /$(cgroup_of "$1")
failCgroupV1: false
# Neither the processors' nor the disk's size is known for a node here; pods are not moved because of them.
localStorageCapacityIsolation: false
evictionHard: {memory.available: 1Mi, nodefs.available: 0%, nodefs.inodesFree: 0%, imagefs.available: 0%, imagefs.inodesFree: 0%}
imageMinimumGCAge: 24h
imageGCHighThresholdPercent: 100
failSwapOn: false
oomScoreAdj: 0
# A fourth of it is how often the lease is renewed: several times within the grace period of the control plane.
nodeLeaseDurationSeconds: 20
nodeStatusUpdateFrequency: 5s
volumePluginDir: /var/lib/kubelet/volume-plugins
clusterDNS: [$dns_service]
clusterDomain: cluster.local
resolvConf: $run/machines/$1/resolv.conf
maxPods: 110
CONFIG
}

start_containerd() {
    local node=$1 folder="$run/machines/$1"
    mkdir -p "$folder/cni"
    containerd_config "$node" >"$folder/containerd.toml"
    cni_config "$node" >"$folder/cni/10-pods.conflist"
    # It looks for its shim on PATH.
    start_on "$node" containerd env "PATH=$run/programs:$PATH" \
        "$(program containerd)" --config "$folder/containerd.toml"
    await "$containerd_within" "containerd of $node" "$folder/log/containerd" ctr_on "$node" version
}

# Without it, ctr speaks of the version of cgroups each time.
export CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS=1

ctr_on() {
    local node=$1
    shift
    on_machine "$node" "$(program ctr)" --address /run/containerd/containerd.sock --namespace k8s.io "$@"
}

start_kubelet() {
    local node=$1 folder="$run/machines/$1"
    kubelet_config "$node" >"$folder/kubelet.yaml"
    # Names outside the cluster are not known to anybody here.
    : >"$folder/resolv.conf"
    start_on "$node" kubelet "$(program kubelet)" --config "$folder/kubelet.yaml" --kubeconfig "$pki/$node.kubeconfig" \
        --hostname-override "$node" --node-ip "$(address_of "$node")" --root-dir /var/lib/kubelet
    start_on "$node" kube-proxy "$(program kube-proxy)" --kubeconfig "$pki/proxy.kubeconfig" --hostname-override "$node" \
        --proxy-mode nftables --cluster-cidr "$pod_range" --conntrack-max-per-core 0 --oom-score-adj 0
}

# Boots a node whose disk may hold what an earlier life of it left there.
start_node() {
    boot_machine "$1"
    connect_machine "$1"
    start_containerd "$1"
}

nodes_ready() {
    local ready
    ready=$(kubectl get nodes --request-timeout 5s \
        -o 'jsonpath={range .items[*]}{.status.conditions[?(@.type=="Ready")].status}{"\n"}{end}') || return 1
    [[ $(grep -c True <<<"$ready") == "${#nodes[@]}" ]]
}

await_nodes() { await "$nodes_within" "all nodes Ready" "$run/machines/node-*/log/kubelet" nodes_ready; }
