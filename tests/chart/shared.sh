# shellcheck shell=bash
# What the checks of an installed chart share, on an API server alone (server.sh) and on a cluster
# (tests/cluster/install.sh). Sourced, not run; the current folder is that of the sources.
#
# The caller sets: helm (its path), chart (its folder), folder (a temporary one), audit (the API server's audit log), started
# (the processes that run in the background).

crd=periodicjobs.tenure.dev
failures=0
# In seconds: more than the grace period of a replica, which may use all of it.
ended_within=40

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

# ended PID: the end of a process of `started`, which is forgotten then: its number may be another one's when the script ends.
ended() {
  local pid left=()
  within "$ended_within" is_over "$1" || { fail "process $1 goes on"; kill -KILL "$1"; }
  wait "$1" 2>/dev/null
  for pid in "${started[@]}"; do [[ $pid == "$1" ]] || left+=("$pid"); done
  started=("${left[@]}")
}
is_over() { ! kill -0 "$1" 2>/dev/null; }

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

# "group resource verb" of every rule of the release's own roles, those for people left out. Leases come with the object,
# NAMESPACE/NAME: a rule that names none grants all of its namespace, NAMESPACE/*.
granted() {
  # shellcheck disable=SC2016 # these are variables of the template
  kubectl get role,clusterrole -A -l app.kubernetes.io/instance=tenure -o go-template='{{range .items}}{{$role := .metadata.name}}{{$namespace := or .metadata.namespace "*"}}{{range .rules}}{{$rule := .}}{{range .apiGroups}}{{$group := or . "core"}}{{range $rule.resources}}{{$resource := .}}{{range $rule.verbs}}{{$right := printf "%s %s %s %s %s" $role $group $resource . $namespace}}{{if $rule.resourceNames}}{{range $rule.resourceNames}}{{$right}}/{{.}}{{"\n"}}{{end}}{{else}}{{$right}}/*{{"\n"}}{{end}}{{end}}{{end}}{{end}}{{end}}{{end}}' |
    grep -vE '^[^ ]+:(view|edit|admin) ' | cut -d' ' -f2- | awk '$2 != "leases" { NF = 3 } { print }' | sort -u
}

# What the ServiceAccount asked for, from line $1 of the audit log on: "decision group resource verb NAMESPACE/NAME", each
# once. A watch has the name in its URL.
asked_for() {
  tail -n "+$1" "$audit" | grep -F '"username":"system:serviceaccount:tenure-system:tenure"' | awk '
    function field(text, name) {
      return match(text, "\"" name "\":\"[^\"]*\"") ? substr(text, RSTART + length(name) + 4, RLENGTH - length(name) - 5) : ""
    }
    function selected(url) { return sub(/.*metadata\.name(=|%3D)/, "", url) && sub(/&.*/, "", url) >= 0 ? url : "" }
    match($0, /"objectRef":\{[^}]*\}/) {
      object = substr($0, RSTART, RLENGTH)
      group = field(object, "apiGroup"); part = field(object, "subresource"); decision = field($0, "authorization.k8s.io/decision")
      name = field(object, "name")
      if (name == "") name = selected(field($0, "requestURI"))
      if (decision != "") print decision, (group == "" ? "core" : group), field(object, "resource") (part == "" ? "" : "/" part), field($0, "verb"), field(object, "namespace") "/" (name == "" ? "*" : name)
    }' | sort -u
}
# The same in the words of `granted`. A create cannot be granted by name.
asked() { asked_for "$1" | awk '$3 != "leases" { NF = 4 } $3 == "leases" && $4 == "create" { sub(/\/.*/, "/*", $5) } { print }' | sort -u; }

# rights_are_used MODE LINE: what the roles grant now is what was asked for from that line of the audit log on.
rights_are_used() {
  granted >"$folder/granted"
  asked "$2" >"$folder/asked"
  must "$1: nothing was forbidden" nothing_but_allowed
  must "$1: no Lease was asked for but its own" own_lease_only "$2"
  sed -n 's/^allow //p' "$folder/asked" >"$folder/used"
  if [[ -s $folder/used ]] && diff --label granted --label used -u "$folder/granted" "$folder/used"; then
    ok "$1: $(wc -l <"$folder/used") rights are granted, and each was used"
  else
    fail "$1: what is granted is not what is used"
  fi
}
# By a create, too, which any name would be granted.
own_lease_only() { [[ $(asked_for "$1" | awk '$3 == "leases" { print $5 }' | sort -u) == tenure-system/tenure ]] || { asked_for "$1" | grep ' leases '; return 1; }; }
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
