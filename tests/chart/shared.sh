# shellcheck shell=bash
# What the checks of an installed chart share, on an API server alone (server.sh) and on a cluster
# (tests/cluster/install.sh). Sourced, not run; the current folder is that of the sources.
#
# The caller sets: helm (its path), chart (its folder), folder (a temporary one), audit (the API server's audit log).

crd=periodicjobs.tenure.dev
failures=0

fail() { echo "FAILED  $*"; failures=$((failures + 1)); }
ok() { echo "ok      $*"; }
# must NAME COMMAND...: it succeeds. refused NAME TEXT COMMAND...: it fails, and says so.
must() {
  local name=$1 output
  shift
  if output=$("$@" 2>&1); then ok "$name"; else fail "$name: $output"; fi
}
refused() {
  local name=$1 text=$2 output
  shift 2
  if output=$("$@" 2>&1); then fail "$name: it was not refused"; elif [[ $output == *"$text"* ]]; then ok "$name"; else fail "$name: $output"; fi
}
# within SECONDS COMMAND...: it succeeds before long.
within() {
  local deadline=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < deadline)) || { echo "not in time: $*: $("$@" 2>&1)"; return 1; }
    sleep 0.2
  done
}

# A chart as it might have been before: its definition lacks one field, and nothing else differs.
older_chart() {
  cp -r "$chart" "$folder/older"
  awk '/^              suspend:$/ { skip = 1; next } skip && /^              [a-zA-Z]/ { skip = 0 } !skip { print }' \
    "$chart/files/crds/$crd.yaml" >"$folder/older/files/crds/$crd.yaml"
  "$helm" package "$folder/older" --version 0.0.9 --destination "$folder" || return 1
  [[ $(wc -l <"$folder/older/files/crds/$crd.yaml") -lt $(wc -l <"$chart/files/crds/$crd.yaml") ]]
}

has_field() { [[ -n $(kubectl get crd "$crd" -o jsonpath='{.spec.versions[0].schema.openAPIV3Schema.properties.spec.properties.suspend.type}') ]]; }
lacks_field() { ! has_field; }

# a_job NAME NAMESPACE URL: five times a second, with a credential from a Secret.
a_job() {
  kubectl apply -f - <<YAML
apiVersion: tenure.dev/v1alpha1
kind: PeriodicJob
metadata: {name: $1, namespace: $2}
spec:
  interval: 200ms
  http: {method: POST, url: "$3", auth: {bearer: {secretKeyRef: {name: target, key: token}}}}
YAML
}

# a_template NAME NAMESPACE IMAGE ARGUMENTS: a job whose slots are Kubernetes Jobs, run once by its trigger; nothing of its
# history is kept.
a_template() {
  kubectl apply -f - <<YAML
apiVersion: tenure.dev/v1alpha1
kind: PeriodicJob
metadata: {name: $1, namespace: $2, annotations: {tenure.dev/trigger: once}}
spec:
  schedule: "0 0 1 1 *"
  successfulJobsHistoryLimit: 0
  jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: main, image: "$3", args: $4}]}}}}
YAML
}

# "group resource verb" of every rule of the release's own roles, those for people left out.
granted() {
  kubectl get role,clusterrole -A -l app.kubernetes.io/instance=tenure -o go-template='{{range .items}}{{$name := .metadata.name}}{{range .rules}}{{$rule := .}}{{range .apiGroups}}{{$group := .}}{{range $rule.resources}}{{$resource := .}}{{range $rule.verbs}}{{$name}} {{if $group}}{{$group}}{{else}}core{{end}} {{$resource}} {{.}}{{"\n"}}{{end}}{{end}}{{end}}{{end}}{{end}}' |
    grep -vE '^[^ ]+:(view|edit|admin) ' | cut -d' ' -f2- | sort -u
}

# What the ServiceAccount asked for, from line $1 of the audit log on: "decision group resource verb", each once.
asked() {
  tail -n "+$1" "$audit" | grep -F '"username":"system:serviceaccount:tenure-system:tenure"' | awk '
    function field(text, name) {
      return match(text, "\"" name "\":\"[^\"]*\"") ? substr(text, RSTART + length(name) + 4, RLENGTH - length(name) - 5) : ""
    }
    match($0, /"objectRef":\{[^}]*\}/) {
      object = substr($0, RSTART, RLENGTH)
      group = field(object, "apiGroup"); part = field(object, "subresource"); decision = field($0, "authorization.k8s.io/decision")
      if (decision != "") print decision, (group == "" ? "core" : group), field(object, "resource") (part == "" ? "" : "/" part), field($0, "verb")
    }' | sort -u
}

# rights_are_used MODE LINE: what the roles grant now is what was asked for from that line of the audit log on.
rights_are_used() {
  granted >"$folder/granted"
  asked "$2" >"$folder/asked"
  must "$1: nothing was forbidden" nothing_but_allowed
  sed -n 's/^allow //p' "$folder/asked" >"$folder/used"
  if [[ -s $folder/used ]] && diff --label granted --label used -u "$folder/granted" "$folder/used"; then
    ok "$1: $(wc -l <"$folder/used") rights are granted, and each was used"
  else
    fail "$1: what is granted is not what is used"
  fi
}
nothing_but_allowed() { ! grep -v '^allow ' "$folder/asked"; }

# The Job of it.
job_of() { kubectl -n "$2" get jobs -o jsonpath='{.items[?(@.metadata.ownerReferences[0].name=="'"$1"'")].metadata.name}' | grep .; }
is_gone() { ! kubectl -n "$2" get job "$1"; }
succeeded() { [[ $(kubectl -n "$1" get pj "$2" -o jsonpath='{.status.conditions[?(@.type=="LastRunSucceeded")].status}') == True ]]; }
ready_is() { [[ $(kubectl -n "$1" get pj "$2" -o jsonpath='{.status.conditions[?(@.type=="Ready")].status}') == "$3" ]]; }
event_with_series() { [[ $(kubectl -n "$1" get events.v1.events.k8s.io --field-selector reportingController=tenure.dev/tenure -o jsonpath='{.items[*].series.count}') =~ [2-9] ]]; }
holder_is() { [[ $(kubectl -n tenure-system get lease tenure -o jsonpath='{.spec.holderIdentity}') == "$1"_* ]]; }
ran() { [[ -n $(kubectl -n "$1" get pj "$2" -o jsonpath='{.status.lastRuns[0].outcome}') ]]; }
# A write that meets a change of the spec is refused, and the job is read again.
timeout_is() { kubectl -n "$1" patch pj "$2" --type=merge -p "{\"spec\":{\"timeout\":\"$3\"}}"; }
reads_again() {
  timeout_is "$2" "$3" 4s && timeout_is "$2" "$3" 5s && timeout_is "$2" "$3" 6s && asked "$1" | grep -x 'allow tenure.dev periodicjobs get'
}
schedule() { kubectl -n "$1" patch pj "$2" --type=merge -p "{\"spec\":{\"schedule\":\"$3\",\"interval\":null}}"; }

# exercise MODE LINE NAMESPACE URL: gives a leader a job in the namespace, and makes it use every right that the work on
# jobs needs, the rare ones too. The Secret `target` has to be there.
exercise() {
  local mode=$1 since=$2 jobs=$3
  must "$mode: a job" a_job worker "$jobs" "$4"
  must "$mode: it is run" within 30 ran "$jobs" worker
  must "$mode: it is read again when in doubt" within 60 reads_again "$since" "$jobs" worker
  # A fact that is stated twice is one Event, with a count: that takes more than a create.
  schedule "$jobs" worker '61 * * * *' >/dev/null
  within 20 ready_is "$jobs" worker False || fail "$mode: an invalid schedule is not told"
  schedule "$jobs" worker '@hourly' >/dev/null
  within 20 ready_is "$jobs" worker True || fail "$mode: a valid schedule is not told"
  schedule "$jobs" worker '61 * * * *' >/dev/null
  must "$mode: an Event is counted" within 20 event_with_series "$jobs"
}
