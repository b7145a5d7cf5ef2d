#!/usr/bin/env bash
# The chart against a real API server (no nodes): what it installs is accepted in every mode, installations that do not
# go together are refused, upgrade, rollback and uninstall keep what they must, and the ServiceAccount has exactly the
# rights that the program uses, by the audit log of the API server.
#
#   PARITY_AUTHORIZATION=RBAC PARITY_AUDIT=FILE sandbox/parity/run.sh tests/chart/server.sh
#
# `make chart-server` does. TENURE_BIN is a binary to run instead of the one that is built here.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1

helm=$(scripts/helm.sh) || exit 1
: "${KUBECONFIG:?run it by sandbox/parity/run.sh}" "${PARITY_AUDIT:?the file of the audit log}"
folder=$(mktemp -d)
started=()
finish() {
  local pid
  for pid in "${started[@]}"; do kill -KILL "$pid" 2>/dev/null; wait "$pid" 2>/dev/null; done
  rm -rf "$folder"
}
trap finish EXIT
export HELM_CACHE_HOME=$folder/helm HELM_CONFIG_HOME=$folder/helm HELM_DATA_HOME=$folder/helm
chart=charts/tenure
audit=$PARITY_AUDIT
# The leader finds nobody there: what comes of a run does not matter.
nobody=http://127.0.0.1:9/
# shellcheck source=tests/chart/shared.sh
source tests/chart/shared.sh

namespaces() {
  local namespace
  for namespace in tenure-system shop locks other; do
    kubectl create namespace --save-config "$namespace" || return 1
    # There is no controller manager that would make it.
    kubectl -n "$namespace" create serviceaccount default || return 1
    # Warnings about pods that the level does not allow come with the answer to a Deployment.
    kubectl label namespace "$namespace" pod-security.kubernetes.io/{enforce,warn}=restricted || return 1
  done
}

# The kinds of the Prometheus operator, as far as the API server has to know them.
operator_kinds() {
  local kind
  for kind in PodMonitor ServiceMonitor PrometheusRule; do
    kubectl apply -f - <<YAML || return 1
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: ${kind,,}s.monitoring.coreos.com}
spec:
  group: monitoring.coreos.com
  names: {kind: $kind, plural: ${kind,,}s}
  scope: Namespaced
  versions:
    - name: v1
      served: true
      storage: true
      schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
YAML
  done
  kubectl wait --for=condition=Established --timeout=30s crd --all
}

# Accepted, and without a warning.
accepted() {
  local output
  output=$("$@" 2>&1) || { echo "$output"; return 1; }
  if grep -i warning <<<"$output"; then return 1; fi
}

dry_runs() {
  local values manifest
  for values in tests/chart/values/*.yaml; do
    manifest=$folder/$(basename "$values")
    "$helm" template tenure "$chart" --namespace tenure-system --values "$values" >"$manifest" || return 1
    must "dry run of $(basename "$values")" accepted kubectl apply --dry-run=server -f "$manifest"
  done
  for values in deploy deploy/namespaced deploy/monitoring; do
    must "dry run of $values" accepted kubectl apply --dry-run=server -k "$values"
  done
}

life_of_a_release() {
  must "a chart from before is installed" "$helm" install tenure "$folder/tenure-0.0.9.tgz" --namespace tenure-system
  must "its definition lacks a field" lacks_field
  within 10 kubectl get pj -A
  must "a job of it" a_job survivor shop "$nobody"
  must "the upgrade" "$helm" upgrade tenure "$chart" --namespace tenure-system
  must "brings the field" has_field
  must "the rollback" "$helm" rollback tenure 1 --namespace tenure-system
  must "takes it away" lacks_field
  must "the upgrade, once more" "$helm" upgrade tenure "$chart" --namespace tenure-system

  refused "a second release that brings the definitions" "set crds.enabled=false" \
    "$helm" install tenure "$chart" --namespace other
  refused "it says whose they are" "it belongs to the release tenure in namespace tenure-system" \
    "$helm" install second "$chart" --namespace other
  must "nothing of it is left" test -z "$(kubectl -n other get deploy,role,rolebinding -o name)"
  must "a second release of the same name without them" "$helm" install tenure "$chart" --namespace other --set crds.enabled=false
  must "a third one in the same namespace" "$helm" install third "$chart" --namespace other --set crds.enabled=false --set watchNamespace=shop
  must "the first one is still upgraded" "$helm" upgrade tenure "$chart" --namespace tenure-system --set replicas=2
  must "the others go" "$helm" uninstall tenure third --namespace other

  must "the first one goes" "$helm" uninstall tenure --namespace tenure-system
  must "its definitions and jobs stay" kubectl -n shop get pj survivor
  must "nothing else of it does" test -z "$(kubectl get deploy,role,rolebinding,clusterrole,clusterrolebinding,pdb -A -l app.kubernetes.io/part-of=tenure -o name)"
  refused "another release does not take them" "set crds.enabled=false" "$helm" install new "$chart" --namespace other
  must "it comes back" "$helm" install tenure "$chart" --namespace tenure-system
  must "and goes" "$helm" uninstall tenure --namespace tenure-system
  # What the refusal says to do.
  kubectl label --overwrite crd "$crd" app.kubernetes.io/managed-by=Helm >/dev/null
  kubectl annotate --overwrite crd "$crd" meta.helm.sh/release-name=new meta.helm.sh/release-namespace=other >/dev/null
  must "another release takes them when told so" "$helm" install new "$chart" --namespace other --set crds.keep=false
  must "without crds.keep they go with it" "$helm" uninstall new --namespace other
  must "they are gone" within 20 bash -c "! kubectl get crd $crd"
}

# Ends a Job as the controller would.
complete() {
  local now
  now=$(date -u +%FT%TZ)
  kubectl -n "$2" patch job "$1" --subresource=status --type=merge -p '{"status": {"startTime": "'"$now"'", "completionTime": "'"$now"'",
    "succeeded": 1, "conditions": [
      {"type": "SuccessCriteriaMet", "status": "True", "reason": "CompletionsReached", "lastTransitionTime": "'"$now"'"},
      {"type": "Complete", "status": "True", "reason": "CompletionsReached", "lastTransitionTime": "'"$now"'"}]}}'
}

# A replica with the rights of the release's ServiceAccount, and nothing else. home and account name another release.
replica() {
  local name=$1 home=${home:-tenure-system} account=${account:-tenure}
  shift
  local token server authority
  token=$(kubectl -n "$home" create token "$account") || return 1
  server=$(kubectl config view --raw -o jsonpath='{.clusters[0].cluster.server}')
  authority=$(kubectl config view --raw -o jsonpath='{.clusters[0].cluster.certificate-authority}')
  (umask 077 && cat >"$folder/$name.kubeconfig") <<YAML
apiVersion: v1
kind: Config
clusters: [{name: real, cluster: {server: "$server", certificate-authority: "$authority"}}]
users: [{name: account, user: {token: "$token"}}]
contexts: [{name: real, context: {cluster: real, user: account, namespace: $home}}]
current-context: real
YAML
  # The arguments that the chart gives, but for what belongs to a pod.
  local args
  mapfile -t args < <(kubectl -n "$home" get deployment "$account" -o jsonpath='{range .spec.template.spec.containers[0].args[*]}{@}{"\n"}{end}' |
    grep -v -e '^--admin-address' -e '^--pod-uid' -e '^--lock-directory' | sed "s/\\\$(POD_NAMESPACE)/$home/")
  KUBECONFIG=$folder/$name.kubeconfig POD_NAME=$name \
    "$binary" "${args[@]}" --admin-address=127.0.0.1:0 "$@" 2>"$folder/$name.log" &
  started+=($!)
}

# How many watches of Leases have been opened, from line $1 of the audit log on.
lease_watches() { tail -n "+$1" "$audit" | grep -F '"resource":"leases"' | grep -F '"verb":"watch"' | grep -cF '"stage":"ResponseStarted"'; }
more_lease_watches() { (($(lease_watches "$1") > $2)); }

rights() {
  local mode=$1 jobs=$2
  shift 2
  local since=$(($(wc -l <"$audit") + 1)) first second created watches
  must "$mode: installed" "$helm" install tenure "$chart" --namespace tenure-system --set leaderElection.leaseDuration=3s --set leaderElection.retryPeriod=500ms --set leaderElection.stopMargin=200ms "$@"
  within 10 kubectl -n "$jobs" get pj
  kubectl -n "$jobs" create secret generic target --from-literal=token=secret >/dev/null
  replica one --egress-allow=127.0.0.0/8
  first=${started[-1]}
  if ! within 20 holder_is one; then
    fail "$mode: the first replica does not lead; the end of its log:"
    tail -n 5 "$folder/one.log"
    "$helm" uninstall tenure --namespace tenure-system
    return
  fi
  exercise "$mode" "$since" "$jobs" "$nobody"
  must "$mode: a job with a template" a_template report "$jobs" none "[]"
  must "$mode: its Job is created" within 20 job_of report "$jobs"
  created=$(job_of report "$jobs")
  watches=$(lease_watches "$since")
  replica two --egress-allow=127.0.0.0/8
  second=${started[-1]}
  # What it does as a standby is a right that is used, too.
  must "$mode: a second replica watches the Lease before the first one goes" within 20 more_lease_watches "$since" "$watches"
  kill -TERM "$first"
  must "$mode: a second replica takes over" within 20 holder_is two
  complete "$created" "$jobs" >/dev/null || fail "$mode: the Job cannot be ended"
  must "$mode: it has followed the Job that the first one created" within 20 succeeded "$jobs" report
  must "$mode: an ended Job beyond the history is deleted" within 20 is_gone "$created" "$jobs"
  kill -TERM "$second"
  ended "$first"
  ended "$second"
  rights_are_used "$mode" "$since"
  kubectl -n "$jobs" delete secret target >/dev/null
  must "$mode: uninstalled" "$helm" uninstall tenure --namespace tenure-system
  kubectl -n "$jobs" delete pj --all >/dev/null
  kubectl -n tenure-system delete lease tenure >/dev/null
}

# A job that nobody answers: each slot is one run of one attempt, and the last twenty of them are kept.
counted_job() {
  kubectl apply -f - <<YAML
apiVersion: tenure.dev/v1alpha1
kind: PeriodicJob
metadata: {name: counted, namespace: shop}
spec:
  interval: 1s
  retry: {maxAttempts: 1}
  failedJobsHistoryLimit: 20
  http: {url: "$nobody"}
YAML
}
of_counted() { kubectl -n shop get pj counted -o jsonpath="{.status.$1}"; }
owner_is() { [[ $(of_counted controller) == "$1" ]]; }
ran_more_than() { (($(of_counted counts.ran) > $1)); }
leads() { [[ $(kubectl -n "$1" get lease "$2" -o jsonpath='{.spec.holderIdentity}') == "$3"_* ]]; }
# How often an account has written to a job's status, from line $1 of the audit log on.
status_writes() {
  tail -n "+$1" "$audit" | grep -F "\"username\":\"system:serviceaccount:$2\"" | grep -F '"subresource":"status"' | grep -cF '"verb":"patch"'
}
events_of() { kubectl -n shop get events.v1.events.k8s.io -o jsonpath="{range .items[?(@.reason==\"$1\")]}{.regarding.name}{\"\n\"}{end}" | grep -cx counted; }
# Every slot from the creation to the mark is accounted for, and none of the runs that are kept is there twice.
doubled_none() {
  local from to counts runs
  # One answer: the next second changes all of it.
  read -r from to counts runs < <(of_counted 'origin} {.status.mark} {.status.counts.ran}+{.status.counts.overlap}+{.status.counts.late}+{.status.counts.coalesced} {.status.lastRuns[*].id')
  runs=${runs// /$'\n'}
  [[ -z $(sort <<<"$runs" | uniq -d) ]] || { echo "runs that are there twice: $runs"; return 1; }
  (($(date -d "$to" +%s) - $(date -d "$from" +%s) == counts)) || { echo "$counts slots from $from to $to"; return 1; }
}
may() { [[ $(kubectl --as=system:serviceaccount:tenure-system:tenure -n other auth can-i "$1" "lease.coordination.k8s.io/$2" 2>/dev/null) == "$3" ]]; }

# Two releases whose jobs are the same: the second one leaves them alone, and takes them over when the first one has gone.
two_releases() {
  local short=(--set crds.enabled=false --set watchNamespace=shop --set leaderElection.leaseDuration=3s --set leaderElection.retryPeriod=500ms --set leaderElection.stopMargin=200ms)
  local since=$(($(wc -l <"$audit") + 1)) later old new ran
  must "two releases: the first" "$helm" install before "$chart" --namespace other "${short[@]}"
  home=other account=before-tenure replica old --egress-allow=127.0.0.0/8
  old=${started[-1]}
  must "two releases: it leads" within 20 leads other before-tenure old
  must "two releases: a job" counted_job
  must "two releases: it is run" within 20 ran_more_than 2
  must "two releases: the second" "$helm" install tenure "$chart" --namespace tenure-system "${short[@]}" --set 'adoptFrom={other/before-tenure}'
  replica new --egress-allow=127.0.0.0/8
  new=${started[-1]}
  must "two releases: it leads, too" within 20 leads tenure-system tenure new
  must "two releases: it says once that the job is not its own" within 10 test_events ForeignController 1
  ran=$(of_counted counts.ran)
  must "two releases: the job is run on" within 20 ran_more_than "$((ran + 4))"
  must "two releases: by the first one" owner_is other/before-tenure
  must "two releases: the second has written nothing to it" test "$(status_writes "$since" tenure-system:tenure)" == 0
  must "two releases: it says who holds the Lease" grep -q "Jobs of another Lease are not adopted yet: old_.* holds it" "$folder/new.log"
  must "two releases: it may look at that Lease" may get before-tenure yes
  must "two releases: at no other" may get tenure no
  must "two releases: and may not write it" may update before-tenure no
  kill -TERM "$old"
  ended "$old"
  must "two releases: the first one goes" "$helm" uninstall before --namespace other
  must "two releases: the second takes the job over" within 20 owner_is tenure-system/tenure
  later=$(($(wc -l <"$audit") + 1)) ran=$(of_counted counts.ran)
  must "two releases: and runs it" within 20 ran_more_than "$((ran + 3))"
  must "two releases: it says so" within 10 test_events Adopted 1
  must "two releases: no slot is lost and none is run twice" doubled_none
  must "two releases: the first one writes nothing any more" test "$(status_writes "$later" other:before-tenure)" == 0
  asked "$since" >"$folder/asked"
  must "two releases: nothing was forbidden" nothing_but_allowed
  kill -TERM "$new"
  ended "$new"
  must "two releases: the second goes" "$helm" uninstall tenure --namespace tenure-system
  must "two releases: nothing of its rights is left" test -z "$(kubectl -n other get role,rolebinding -o name)"
  kubectl -n shop delete pj --all >/dev/null
}
test_events() { [[ $(events_of "$1") == "$2" ]]; }

binary=${TENURE_BIN:-}
if [[ -z $binary ]]; then
  cargo build --quiet --all-features --bin tenure || exit 1
  binary=${CARGO_TARGET_DIR:-target}/debug/tenure
fi
must "namespaces" namespaces
must "the operator's kinds" operator_kinds
dry_runs
must "a chart as it was before" older_chart
life_of_a_release
rights cluster-wide shop
rights namespaced shop --set watchNamespace=shop
rights "namespaced, its own" tenure-system --set watchNamespace=tenure-system
two_releases
((failures == 0)) || { echo "$failures failed" >&2; exit 1; }
echo "the chart holds on a real API server"
