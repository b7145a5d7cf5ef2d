#!/usr/bin/env bash
# make cluster-smoke: checks the cluster itself, from its start to its end: nodes, pods, their logs, exec, a service
# account's rights, the audit log, every fault helper, and that nothing is left behind. Prints each step with the
# seconds it took. KEEP=1 leaves the cluster up.
set -euo pipefail
# shellcheck source=lib/all.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/all.sh"

# In seconds.
rollout_within=120
pods_gone_within=60
# The grace period of the control plane, a renewal, and as much again.
not_ready_within=60
ready_again_within=60
replaced_within=60
answer_within=10

steps=0
# step WHAT COMMAND...: ends the script with the command's output if it fails.
step() {
    local what=$1 began output
    shift
    began=$(($(date +%s%N) / 100000000))
    if ! output=$("$@" 2>&1); then
        printf '%s\n' "$output" >&2
        fail "FAILED: $what; the logs are $run/machines/*/log"
    fi
    steps=$((steps + 1))
    printf 'ok %2d  %6.1f s  %s\n' "$steps" "$(($(date +%s%N) / 100000000 - began))e-1" "$what"
}

# eventually SECONDS COMMAND...: until it succeeds.
eventually() {
    local deadline=$((SECONDS + $1)) output=""
    shift
    until output=$("$@" 2>&1); do
        ((SECONDS < deadline)) || { echo "not in time: $*: $output"; return 1; }
        sleep 0.2
    done
    printf '%s\n' "$output"
}

# is WANTED COMMAND...: the command prints this.
is() {
    local wanted=$1 got
    shift
    got=$("$@") || return 1
    [[ $got == "$wanted" ]] || { echo "wanted '$wanted', got '$got': $*"; return 1; }
}
refused() { ! "$@"; }

k() { kubectl --request-timeout 20s "$@"; }
ready_of() { k get node "$1" -o 'jsonpath={.status.conditions[?(@.type=="Ready")].status}'; }
some_pod() { k get pods -n smoke -l app=smoke --field-selector "spec.nodeName=$1" -o 'jsonpath={.items[0].metadata.name}'; }
nodes_used() { k get pods -n smoke -l app=smoke -o 'jsonpath={range .items[*]}{.spec.nodeName}{"\n"}{end}' | sort | uniq -c | xargs; }
# T is stopped, S sleeps.
state_of_container() {
    local pid
    pid=$("$here/faults/on" "$1" ctr tasks list | awk -v id="$2" '$1 == id {print $2}')
    "$here/faults/on" "$1" sed -n 's/^State:[^A-Z]*\([A-Z]\).*/\1/p' "/proc/$pid/status"
}
restarts_of() { k get pod -n smoke "$1" -o 'jsonpath={.status.containerStatuses[0].restartCount}'; }

smoke_image() {
    program_image smoke kubectl
    load_image "$archive"
}

# As a pod sees it: kubectl finds the service account's token and the service address by itself.
in_pod() {
    local pod=$1
    shift
    timeout "$answer_within" "$(program kubectl)" --kubeconfig "$kubeconfig" exec -n smoke "$pod" -- /kubectl --cache-dir /nowhere "$@"
}

workload() {
    step "image with kubectl on all nodes" smoke_image
    k delete namespace smoke --ignore-not-found --timeout=60s >/dev/null 2>&1
    k apply -f "$here/smoke.yaml" >/dev/null
    step "six pods rolled out" k rollout status -n smoke deployment/smoke --timeout="${rollout_within}s"
    step "two on each node" is "2 node-1 2 node-2 2 node-3" nodes_used
    k set env -n smoke deployment/smoke ROUND=2 >/dev/null
    step "rolled out again" k rollout status -n smoke deployment/smoke --timeout="${rollout_within}s"
    step "the old ones ended" eventually "$pods_gone_within" is "2 node-1 2 node-2 2 node-3" nodes_used
    pod=$(some_pod node-1)
    step "logs" is waiting k logs -n smoke "$pod"
    step "exec" is exiting k exec -n smoke "$pod" -- /pause exit
    step "a service account reads what it may" in_pod "$pod" get leases -n smoke
    step "and nothing else" refused in_pod "$pod" get secrets -n smoke
    step "names are resolved" by_name "$pod"
    step "both requests are in the audit log" eventually "$answer_within" audited
}

by_name() {
    local token
    token=$(k create token -n smoke smoke) || return 1
    in_pod "$1" --server https://kubernetes.default.svc --token "$token" \
        --certificate-authority /var/run/secrets/kubernetes.io/serviceaccount/ca.crt get leases -n smoke
}

audited() {
    local asked
    asked=$(grep '"username":"system:serviceaccount:smoke:smoke"' "$run/audit.log")
    grep -q '"resource":"leases".*decision":"allow"' <<<"$asked" && grep -q '"resource":"secrets".*decision":"forbid"' <<<"$asked"
}

# A target outside the cluster, which pods reach while they do not reach the API server.
connects() { "$here/faults/on" "$1" timeout 2 bash -c "</dev/tcp/$2/$3"; }
reaches_outside() { connects "$1" "$outside_address" 8000; }
reaches_apiserver() { connects "$1" "$control_address" "$api_port"; }

network_faults() {
    start_on outside target socat TCP-LISTEN:8000,fork,reuseaddr /dev/null
    step "a node reaches a target outside" eventually "$answer_within" reaches_outside node-2
    step "cut node-2 off from the API server" "$here/faults/cut-node" node-2
    step "it still reaches the target" reaches_outside node-2
    step "but not the API server" refused reaches_apiserver node-2
    step "it is not Ready" eventually "$not_ready_within" is Unknown ready_of node-2
    step "heal it" "$here/faults/heal-node" node-2
    step "it is Ready" eventually "$ready_again_within" is True ready_of node-2
    step "pull the cable of node-2" "$here/faults/isolate-node" node-2
    step "it does not reach the target" refused reaches_outside node-2
    step "plug it in" "$here/faults/heal-node" node-2
    step "it reaches the target" eventually "$answer_within" reaches_outside node-2
    signal_on outside target KILL
}

written=$RANDOM
write_something() { kubectl annotate namespace smoke --overwrite "written=$written" --request-timeout 3s; }
what_is_written() { kubectl get namespace smoke -o 'jsonpath={.metadata.annotations.written}' --request-timeout 3s; }

process_faults() {
    local id other
    pod=$(some_pod node-1)
    id=$("$here/faults/freeze-pod" smoke "$pod")
    step "a frozen container is stopped" is T state_of_container node-1 "$id"
    step "thaw it: it is the same one" is "$id" "$here/faults/thaw-pod" smoke "$pod"
    step "it sleeps again" eventually "$answer_within" is S state_of_container node-1 "$id"
    other=$(restarts_of "$pod")
    step "kill it" "$here/faults/kill-container" smoke "$pod"
    step "the kubelet starts it again" eventually "$replaced_within" is $((other + 1)) restarts_of "$pod"
    step "pause the API server" "$here/faults/pause-apiserver"
    step "it does not answer" refused kubectl get --raw /readyz --request-timeout 2s
    step "resume it" "$here/faults/resume-apiserver"
    step "it answers" eventually "$answer_within" apiserver_ready
    step "restart the API server" "$here/faults/restart-apiserver"
    step "pause etcd" "$here/faults/pause-etcd"
    step "nothing can be written" refused write_something
    step "resume it" "$here/faults/resume-etcd"
    step "it can again" eventually "$apiserver_within" write_something
    step "restart etcd" "$here/faults/restart-etcd"
    step "what was written is there" eventually "$apiserver_within" is "$written" what_is_written
}

node_faults() {
    step "kill node-3" "$here/faults/kill-node" node-3
    step "it is not Ready" eventually "$not_ready_within" is Unknown ready_of node-3
    step "revive it" "$here/faults/revive-node" node-3
    step "it is Ready" eventually "$nodes_within" is True ready_of node-3
    step "six pods run again" eventually "$rollout_within" is 6 k get -n smoke deployment/smoke -o 'jsonpath={.status.readyReplicas}'
}

require_root cluster-smoke
# Tenure is no part of what is checked here.
step "make cluster" env IMAGE=none "$here/up.sh"
build_pause
workload
network_faults
process_faults
node_faults
k delete namespace smoke --wait=false >/dev/null
if [[ -z ${KEEP:-} ]]; then
    step "make cluster-down leaves nothing" "$here/down.sh"
fi
echo "$steps steps, all as they should be"
