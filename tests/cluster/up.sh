#!/usr/bin/env bash
# make cluster: a real Kubernetes cluster of three nodes on this computer. See README.md.
set -euo pipefail
# shellcheck source=lib/all.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/all.sh"

# Tenure's image: an archive that is given, or one made of a static binary that is given or built.
load_tenure() {
    local archive=${IMAGE:-$run/tenure.tar}
    [[ $archive != none ]] || return 0
    if [[ -z ${IMAGE:-} ]]; then
        "$here/../../scripts/image.sh" ${TENURE_BINARY:+--binary "$(realpath "$TENURE_BINARY")"} --archive "$archive" >&2 9>&- ||
            fail "Tenure's image could not be built; the cluster is up without it (export KUBECONFIG=$kubeconfig)"
    fi
    [[ -f $archive ]] || fail "IMAGE=$archive is no file; it must be a docker-archive (docker save, or scripts/image.sh --archive)"
    load_image "$(realpath "$archive")"
    # What is installed says it, so that pods of what was loaded before are replaced.
    sha256sum <"$archive" | cut -d' ' -f1 >"$run/tenure.sha256"
}

boot() {
    local node port
    boot_machine control
    make_bridge
    boot_machine outside
    connect_machine outside
    port=$(free_port)
    make_certificates "$port"
    start_etcd
    start_apiserver
    for node in "${nodes[@]}"; do start_node "$node"; done
    start_forwarder "$port"
    await_apiserver
    start_controllers
    load_image "$pause_archive"
    for node in "${nodes[@]}"; do start_kubelet "$node"; done
    await_nodes
    start_dns
}

# Undoes what a run that was cut off may have left of its faults: what is paused goes on, what is dead is started, what is
# cut off is connected. Ends early where that cannot be done; called in a process of its own.
heal() {
    local node
    init_of control >/dev/null
    init_of outside >/dev/null
    signal_on control etcd CONT 2>/dev/null || start_etcd
    signal_on control kube-apiserver CONT 2>/dev/null || start_apiserver
    await_apiserver
    for node in "${nodes[@]}"; do heal_node "$node"; done
    await_nodes
}
# In the background, for what is a condition is not ended by what fails in it.
is_up() {
    [[ -f $run/up ]] || return 1
    heal &
    wait $!
}
heal_node() {
    if init_of "$1" >/dev/null; then
        "$here/faults/heal-node" "$1" 2>/dev/null
        thaw_containers "$1"
    else
        say "$1 is dead: booting it again"
        # Its cgroups, too: the run may have ended before they were removed.
        kill_machine "$1"
        start_node "$1"
        start_kubelet "$1"
    fi
}
# To those that run it is no news.
thaw_containers() {
    local pid
    for pid in $(ctr_on "$1" tasks list | awk '$3 != "STOPPED" && $2 ~ /^[0-9]+$/ { print $2 }'); do
        on_machine "$1" kill -CONT "$pid" 2>/dev/null || true
    done
}

start_dns() {
    program_image coredns coredns
    load_image "$archive"
    kubectl apply -f "$here/dns.yaml" >/dev/null
    await "$dns_within" "the name service" "$run/machines/node-*/log/kubelet" \
        kubectl rollout status --namespace kube-system deployment/coredns --timeout 5s
}

how_to_go_on() {
    cat <<TEXT

$(kubectl get nodes)

export KUBECONFIG=$kubeconfig
kubectl get pods -A                  # kubectl of the same version: $(program kubectl)
helm install tenure charts/tenure --namespace tenure-system --create-namespace
make cluster-smoke                   # checks the cluster itself
ls tests/cluster/faults              # what can be done to it
make cluster-down                    # ends it
TEXT
}

require_root cluster
mkdir -p "$cache/cluster"
take_lock
install_packages
require_abilities
if is_up; then
    say "it is up already"
else
    take_down
    mkdir -p "$run"
    build_programs
    build_pause
    say "booting; if this ends early, make cluster-down ends what has been started"
    started=$SECONDS
    boot
    touch "$run/up"
    say "three nodes Ready after $((SECONDS - started)) s"
fi
load_tenure
how_to_go_on
