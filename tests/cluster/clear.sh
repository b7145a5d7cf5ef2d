#!/usr/bin/env bash
# Takes away what is there of Tenure on the test cluster and would be in the way of `helm upgrade --install` or of the jobs:
# plain manifests, definitions that are nobody's, a release that is half installed, releases beside the one.
#   tests/cluster/clear.sh [--all]
# One that is sound, the release `tenure` in tenure-system, is left with its jobs; --all takes that away, too. Other clusters
# are never cleared.
set -euo pipefail
# shellcheck source=lib/all.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/all.sh"

namespace=tenure-system
crd=periodicjobs.tenure.dev
# In seconds, for each that is deleted.
deleted_within=90

# "name namespace" of each release of the chart, in whatever state it is.
releases() { "$helm" list --all-namespaces --no-headers --time-format 2006-01-02 | awk 'NF > 2 && $(NF - 1) ~ /^tenure-[0-9]/ { print $1, $2 }'; }

owner_of_definitions() {
    kubectl get crd "$crd" --ignore-not-found \
        -o 'jsonpath={.metadata.labels.app\.kubernetes\.io/managed-by} {.metadata.annotations.meta\.helm\.sh/release-namespace}/{.metadata.annotations.meta\.helm\.sh/release-name}'
}
# The last thing that was done to it has been done to its end, and the definitions are its own.
is_sound() {
    grep -q '^STATUS: deployed$' <<<"$("$helm" status tenure --namespace "$namespace" 2>/dev/null)" &&
        [[ $(owner_of_definitions) == "Helm $namespace/tenure" ]]
}

# A run that was cut off may have left the replicas looking for the API server where nothing is any more: with the next
# upgrade none of them would ever be ready.
find_the_api_server() {
    kubectl set env deployment --namespace "$namespace" --selector app.kubernetes.io/name=tenure \
        KUBERNETES_SERVICE_HOST- KUBERNETES_SERVICE_PORT- >/dev/null
}

uninstall() { "$helm" uninstall "$1" --namespace "$2" --ignore-not-found; }

remove_the_rest() {
    kubectl delete periodicjobs --all --all-namespaces --timeout "${deleted_within}s" 2>/dev/null || true # of no kind, perhaps
    kubectl delete namespace "$namespace" --ignore-not-found --timeout "${deleted_within}s"
    kubectl delete crd "$crd" --ignore-not-found --timeout "${deleted_within}s"
    kubectl delete clusterrole,clusterrolebinding -l app.kubernetes.io/part-of=tenure
    kubectl delete role,rolebinding --all-namespaces -l app.kubernetes.io/part-of=tenure
}

require_running
helm=$("$here/../../scripts/helm.sh")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export HELM_CACHE_HOME=$folder/helm HELM_CONFIG_HOME=$folder/helm HELM_DATA_HOME=$folder/helm KUBECONFIG=$kubeconfig
kept=''
if [[ ${1:-} != --all ]] && is_sound; then kept="tenure $namespace"; fi
releases >"$folder/releases"
while read -r name in_namespace; do
    [[ "$name $in_namespace" == "$kept" ]] || uninstall "$name" "$in_namespace"
done <"$folder/releases"
if [[ -n $kept ]]; then find_the_api_server; else remove_the_rest; fi
