#!/usr/bin/env bash
# make cluster-install: the life of an installation on the test cluster, with real pods. Chart and plain manifests, for
# every namespace and for one; what README says to do; `helm test`; an upgrade in which old and new replicas run side by
# side; rollback, uninstall, deletion of the namespace; a second replica in the leader's container, and that container
# killed; the rights of the ServiceAccount and the requests for the Lease, by the API server's audit log; two releases whose
# jobs are the same, and the second one taking them over.
#
# It needs what make cluster needs (up.sh: IMAGE and TENURE_BINARY say what is loaded), boots the cluster if it is down,
# and leaves it up, with nothing of Tenure on it. It begins by removing what is there of Tenure. About six minutes.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1

# In seconds.
rollout_within=120
leader_within=30
run_within=30
deleted_within=90
# Longer than a lease lasts: a standby that took the leader for dead would have taken over.
stands_by_for=20
# The requests for the Lease are counted over this time, in which nothing else happens.
quiet_for=60
leader_writes_max=12
# A standby asks for nothing but its watch.
standby_requests_max=0
# A watch lasts 290 s: one that ends in this time is opened again once.
watches_max=1
# What is promised of a standby is an average over hours, in requests a minute.
standby_promise=0.3
restart_to_lead_max_ms=1000
# How long two installations run beside each other before the first one goes, in seconds, and how many requests the second
# one makes then before it is judged.
both_run_for=10
requests_judged=50
target_port=7070
# Where the pods of Jobs wait for somebody to listen.
gate_port=7071
gate_for=120s
# The second of two releases, and its Lease.
second_namespace=tenure-second
second_lease="second-tenure"

tests/cluster/up.sh >&2 || exit 1
# shellcheck source=tests/cluster/settings.sh
source tests/cluster/settings.sh
helm=$(scripts/helm.sh) || exit 1
export KUBECONFIG=$kubeconfig PATH=$run/programs:$PATH
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
audit=$run/audit.log
faults=tests/cluster/faults
requests=$folder/requests
image=docker.io/library/tenure
version=$(sed -nE 's/^appVersion: (.*)$/\1/p' "$chart/Chart.yaml")
target=http://$outside_address:$target_port
# shellcheck source=tests/chart/shared.sh
source tests/chart/shared.sh

# With the seconds since the start.
ok() { printf 'ok  %4d s  %s\n' "$SECONDS" "$*"; }
part() { printf '\n%s\n' "$*"; }
show() { "$@" 2>&1 | sed 's/^/        /'; }

# The target of the jobs, outside the cluster: a line "job slot token attempt run pod-address ms" for each request. It
# answers what `tenure status` takes for a replica that knows a leader.
write_target() {
  cat >"$folder/answer" <<'ANSWER'
#!/usr/bin/env bash
declare -A header
while IFS=': ' read -r name value; do
  name=${name%$'\r'} value=${value%$'\r'}
  [[ -n $name ]] || break
  header[${name,,}]=$value
done
echo "${header[tenure-job]:-?} ${header[tenure-slot]:-?} ${header[tenure-token]:-?} ${header[tenure-attempt]:-?} ${header[idempotency-key]:-?} ${SOCAT_PEERADDR:-?} $((${EPOCHREALTIME/[.,]/} / 1000))" >>"$1"
printf 'HTTP/1.1 200 OK\r\nContent-Length: 36\r\nConnection: close\r\n\r\n{"election": {"holder": "somebody"}}'
ANSWER
  chmod +x "$folder/answer"
  : >"$requests"
}
# serve PORT FILE: in the background; its process id is the last of `started`.
serve() {
  "$faults/outside" socat "TCP-LISTEN:$1,fork,reuseaddr" "EXEC:$folder/answer $2" 2>>"$folder/target.log" &
  started+=($!)
}

# --- What is looked at ---

pods_of_release() { kubectl -n "$1" get pods -l app.kubernetes.io/name=tenure -o jsonpath='{range .items[*]}{.metadata.name}{"\n"}{end}'; }
no_pods() { [[ -z $(pods_of_release "$1") ]]; }
# Those that are going are gone, too.
three_pods() { (($(pods_of_release "$1" | wc -l) == 3)); }
nodes_used() { kubectl -n "$1" get pods -l app.kubernetes.io/name=tenure -o jsonpath='{range .items[*]}{.spec.nodeName}{"\n"}{end}' | sort -u | wc -l; }
on_three_nodes() { (($(nodes_used "$1") == ${#nodes[@]})) || { kubectl -n "$1" get pods -o wide; return 1; }; }
# Not for long: a pod that has just gone does not answer at all.
says() { kubectl --request-timeout 3s get --raw "/api/v1/namespaces/$1/pods/$2:8080/proxy/$3"; }
# The pods that say of themselves that they lead.
leaders() {
  local pod
  for pod in $(pods_of_release "$1"); do
    # Read to its end: a grep that has seen enough would end the other with a broken pipe.
    if says "$1" "$pod" metrics | grep -E '^leader_election_master_status\{.*\} 1$' >/dev/null; then echo "$pod"; fi
  done
}
# holder [NAMESPACE LEASE]
holder() { kubectl -n "${1:-tenure-system}" get lease "${2:-tenure}" -o jsonpath='{.spec.holderIdentity}'; }
leader() { holder | cut -d_ -f1; }
# It says so, the Lease says so, and nobody else does.
one_leader() {
  local leader
  leader=$(leaders "$1")
  [[ -n $leader && $leader == "$(leader)" ]] || { echo "by their own word: ${leader:-none}; by the Lease: $(holder)"; return 1; }
}
arrived() { grep -q "^$1 " "$requests"; }
untouched() { [[ -z $(kubectl -n "$1" get pj "$2" -o jsonpath='{.status}') ]]; }
printed() {
  kubectl get tenure -A >"$folder/printed" && awk -v namespace="$1" -v name="$2" '$1 == namespace && $2 == name && $3 == "True" { found = 1 } END { exit !found }' "$folder/printed"
}
gone() { ! kubectl get "$@" >/dev/null 2>&1; }

# example NAMESPACE: the first of the examples, with an address that pods of this cluster reach.
example() {
  sed -e "s#http://127.0.0.1:7070/#$target/#" -e "s/namespace: default/namespace: $1/" examples/manifests/heartbeat.yaml | kubectl apply -f -
}

# What holds of each installation. installed MODE NAMESPACE-OF-JOBS
installed() {
  local mode=$1 jobs=$2
  must "$mode: three pods Ready" kubectl -n tenure-system rollout status deployment/tenure --timeout "${rollout_within}s"
  must "$mode: no others" within "$deleted_within" three_pods tenure-system
  must "$mode: on three nodes" on_three_nodes tenure-system
  must "$mode: one leader, the one of the Lease" within "$leader_within" one_leader tenure-system
  : >"$requests"
  must "$mode: an example job" example "$jobs"
  must "$mode: it runs" within "$run_within" arrived "$jobs/heartbeat"
  must "$mode: kubectl get tenure -A prints it" within "$run_within" printed "$jobs" heartbeat
  show cat "$folder/printed"
}

# --- From nothing to nothing ---

uninstalled() {
  tests/cluster/clear.sh --all && kubectl delete namespace shop "$second_namespace" --ignore-not-found --timeout "${deleted_within}s"
}

plain() {
  local mode=$1 manifests=$2 jobs=$3 other=$4
  part "$mode: kubectl apply -k $manifests"
  must "$mode: applied" kubectl apply -k "$manifests"
  within 10 kubectl get pj -A
  must "$mode: a job elsewhere" example "$other"
  installed "$mode" "$jobs"
  if [[ $manifests == */namespaced ]]; then
    must "$mode: the job of another namespace is left alone" untouched "$other" heartbeat
  else
    must "$mode: the job of another namespace runs, too" within "$run_within" arrived "$other/heartbeat"
  fi
  must "$mode: kubectl delete -k takes all of it away, and does not hang" kubectl delete -k "$manifests" --timeout "${deleted_within}s"
  must "$mode: its namespace is gone" gone namespace tenure-system
}

# --- The chart, as README says ---

install_chart() { "$helm" install tenure "$chart" --namespace tenure-system --create-namespace --set "image.repository=$image" "$@"; }

next_commands() {
  kubectl -n tenure-system rollout status deployment/tenure --timeout "${rollout_within}s" && kubectl -n tenure-system get lease tenure
}

# Takes the container's arguments from the pod, with what the kubelet puts into them.
arguments_of() {
  local uid
  uid=$(kubectl -n tenure-system get pod "$1" -o jsonpath='{.metadata.uid}')
  # shellcheck disable=SC2016 # the kubelet's way to write a variable
  kubectl -n tenure-system get pod "$1" -o jsonpath='{range .spec.containers[0].args[*]}{@}{"\n"}{end}' |
    sed -e 's/\$(POD_NAMESPACE)/tenure-system/' -e "s/\$(POD_UID)/$uid/"
}

# A second replica in the leader's container: the lock says that the first one lives.
second_in_the_container() {
  local leader before pid arguments
  leader=$(leader) before=$(holder)
  mapfile -t arguments < <(arguments_of "$leader" | grep -v '^--admin-address')
  # It ends when its standard input does: a signal to kubectl would not reach it.
  mkfifo "$folder/alive"
  kubectl -n tenure-system exec -i "$leader" -- /tenure "${arguments[@]}" --admin-address=127.0.0.1:18080 \
    --exit-when-stdin-closes <"$folder/alive" >"$folder/second.log" 2>&1 &
  pid=$!
  started+=("$pid")
  exec 7>"$folder/alive"
  must "a second replica in the leader's container starts" within 20 grep -q 'Admin server listens' "$folder/second.log"
  must "it knows that it is a second one" within 5 grep -q 'elector.lock is locked by another process' "$folder/second.log"
  sleep "$stands_by_for"
  must "after $stands_by_for s the first one leads, in the same term" test "$(holder)" == "$before"
  must "the second one runs" kill -0 "$pid"
  must "and has never led" absent 'Took office' "$folder/second.log"
  exec 7>&-
  must "it stops when it is asked to" within 20 grep -q 'Stopped' "$folder/second.log"
  must "the first one leads on" test "$(holder)" == "$before"
  ended "$pid"
}
absent() { ! grep "$1" "$2"; }

restarted() { [[ $(kubectl -n tenure-system get pod "$1" -o jsonpath='{.status.containerStatuses[0].restartCount}') -gt $2 ]]; }
# The time of the first line of a log that holds this, in ms.
time_of() { date -d "$(kubectl -n tenure-system logs --timestamps "$1" | grep -m 1 "$2" | cut -d' ' -f1)" +%s%3N; }
leads_again() { [[ $(kubectl -n tenure-system logs "$1") == *'Took office'* ]]; }

# Killed, its container is started anew in the same pod, and leads: it need not wait for the end of its own lease.
killed_in_place() {
  local leader before restarts killed first led
  leader=$(leader) before=$(holder)
  restarts=$(kubectl -n tenure-system get pod "$leader" -o jsonpath='{.status.containerStatuses[0].restartCount}')
  killed=$(date +%s%3N)
  must "the leader's container is killed" "$faults/kill-container" tenure-system "$leader" tenure
  must "the kubelet starts it anew" within 30 restarted "$leader" "$restarts"
  must "it leads again" within 30 leads_again "$leader"
  must "in a new term of the same pod" test "$(leader)" == "$leader" -a "$(holder)" != "$before"
  first=$(time_of "$leader" .) led=$(time_of "$leader" 'Took office')
  show echo "kill to restart $((first - killed)) ms, restart (its first line) to lead $((led - first)) ms, kill to lead $((led - killed)) ms"
  must "within $restart_to_lead_max_ms ms of its restart" test $((led - first)) -le "$restart_to_lead_max_ms"
}

other_leads() { one_leader tenure-system && [[ $(leader) != "$1" ]]; }
# The leader's pod is deleted while a run of a job with a template is going on: the next leader follows it to its end.
replaced() {
  local mode=$1 leader created gate
  leader=$(leader)
  must "$mode: a job with a template" a_template report shop "$image:$version" \
    "[status, --wait=$gate_for, --admin-address=$outside_address:$gate_port]"
  must "$mode: its Job is created" within 20 job_of report shop
  created=$(job_of report shop)
  must "$mode: the leader's pod is deleted" kubectl -n tenure-system delete pod "$leader" --wait=false
  must "$mode: another one takes over" within "$leader_within" other_leads "$leader"
  serve "$gate_port" /dev/null
  gate=${started[-1]}
  must "$mode: it has followed the Job, which ends now" within "$run_within" succeeded shop report
  must "$mode: an ended Job beyond the history is deleted" within "$run_within" is_gone "$created" shop
  kill "$gate"
  ended "$gate"
  must "$mode: three pods Ready again" kubectl -n tenure-system rollout status deployment/tenure --timeout "${rollout_within}s"
}

# "pod verb count" of the requests for Leases from a time on, for as long as is given; a watch counts when it opens.
lease_requests() {
  grep -F '"username":"system:serviceaccount:tenure-system:tenure"' "$audit" | grep -F '"resource":"leases"' | awk -v from="$1" -v until="$2" '
    function field(name) { return match($0, "\"" name "\":\\[?\"[^\"]*\"") ? substr($0, RSTART, RLENGTH) : "" }
    function value(name, text) { text = field(name); sub(/^[^:]*:\[?"/, "", text); sub(/"$/, "", text); return text }
    {
      verb = value("verb"); stage = value("stage"); at = value("requestReceivedTimestamp")
      if (at < from || at >= until || stage != (verb == "watch" ? "ResponseStarted" : "ResponseComplete")) next
      count[value("authentication.kubernetes.io/pod-name") " " verb]++
    }
    END { for (key in count) print key, count[key] }' | sort
}

quiet_minute() {
  local mode=$1 from until leader before pod role
  leader=$(leader) before=$(holder)
  from=$(date -u +%FT%T.%6NZ)
  until=$(date -u -d "+$quiet_for seconds" +%FT%T.%6NZ)
  sleep "$quiet_for"
  sleep 1 # the log's last lines
  must "$mode: the same leader before and after the quiet $quiet_for s" test "$(holder)" == "$before"
  lease_requests "$from" "$until" >"$folder/lease-requests"
  for pod in $(pods_of_release tenure-system); do
    role=standby
    [[ $pod != "$leader" ]] || role=leader
    show echo "$role $pod: $(lease_requests_of "$pod")"
    if [[ $role == leader ]]; then
      must "$mode: the leader writes, and at most $leader_writes_max times" requests_within "$pod" other 1 "$leader_writes_max"
    else
      must "$mode: a standby asks for nothing but its watch" requests_within "$pod" other 0 "$standby_requests_max"
    fi
    must "$mode: a $role opens its watch at most $watches_max times" requests_within "$pod" watch 0 "$watches_max"
  done
  show echo "promised: a leader at most $leader_writes_max writes a minute, a standby $standby_promise requests a minute on average"
}
# "verb count  ... = sum a minute"
lease_requests_of() {
  awk -v pod="$1" -v seconds="$quiet_for" '
    $1 == pod { printf "%s %d  ", $2, $3; sum += $3 }
    END { printf "= %.1f requests a minute", sum * 60 / seconds }' "$folder/lease-requests"
}
# requests_within POD watch|other LEAST MOST: those of a leader that are no watches are its renewals.
requests_within() {
  local count
  count=$(awk -v pod="$1" -v kind="$2" '$1 == pod && ($2 == "watch") == (kind == "watch") { sum += $3 } END { print sum + 0 }' "$folder/lease-requests")
  ((count >= $3 && count <= $4)) || { echo "$count requests"; return 1; }
}

# What the program asks for in all of its life, with real pods, against what is granted.
chart_as_readme_says() {
  part "the chart, as README says: every namespace"
  local mode=chart since=$(($(wc -l <"$audit") + 1))
  must "$mode: helm install" install_chart
  within 10 kubectl get pj -A
  kubectl create namespace shop >/dev/null
  installed "$mode" default
  must "$mode: the next commands that helm prints" next_commands
  must "$mode: helm test" "$helm" test tenure --namespace tenure-system --timeout "${rollout_within}s"
  part "requests for the Lease"
  quiet_minute "$mode"
  part "two replicas in one container, and a container restarted in place"
  second_in_the_container
  killed_in_place
  part "rights"
  kubectl -n shop create secret generic target --from-literal=token=secret >/dev/null
  exercise "$mode" "$since" shop "$target/worker"
  replaced "$mode"
  rights_are_used "$mode" "$since"
  part "uninstalled"
  must "$mode: helm uninstall" "$helm" uninstall tenure --namespace tenure-system
  must "$mode: its pods go" within "$deleted_within" no_pods tenure-system
  must "$mode: the namespace goes, and does not hang" kubectl delete namespace tenure-system --timeout "${deleted_within}s"
  must "$mode: the definitions and the jobs are still there" kubectl get crd/"$crd" pj/heartbeat
}

# --- Upgrade, side by side ---

next_image() {
  local node
  for node in "${nodes[@]}"; do
    "$faults/on" "$node" "$run/programs/ctr" --address /run/containerd/containerd.sock --namespace k8s.io \
      images tag --force "$image:$version" "$image:$version-next" || return 1
  done
}

fast_job() {
  kubectl apply -f - <<YAML
apiVersion: tenure.dev/v1alpha1
kind: PeriodicJob
metadata: {name: fast, namespace: default}
spec:
  interval: 200ms
  http: {method: POST, url: "$target/fast"}
YAML
}

# Ready pods by image, while an upgrade goes on: a line with both is old and new side by side.
watch_images() {
  while true; do
    kubectl -n tenure-system get pods -l app.kubernetes.io/name=tenure \
      -o jsonpath='{range .items[?(@.status.containerStatuses[0].ready==true)]}{.spec.containers[0].image}{" "}{end}{"\n"}'
    sleep 0.3
  done >>"$1" 2>/dev/null
}
side_by_side() { awk -v old="$image:$version" -v new="$image:$version-next" '{ o = n = 0; for (i = 1; i <= NF; i++) { o += $i == old; n += $i == new } if (o && n) both++ } END { exit !both }' "$1"; }

# Every slot of the job from its origin to its mark is accounted for: printed as "slots ran coalesced overlap late".
accounted() {
  local origin mark counts slots sum
  read -r origin mark counts < <(kubectl get pj fast -o jsonpath='{.status.origin} {.status.mark} {.status.counts}{"\n"}')
  slots=$(((10#$(date -d "$mark" +%s%3N) - 10#$(date -d "$origin" +%s%3N)) / 200))
  sum=$(grep -oE '"[a-z]+":[0-9]+' <<<"$counts" | cut -d: -f2 | paste -sd+)
  echo "$slots slots: $counts"
  ((slots > 0 && slots == sum)) || return 1
}
# A run is one request: its first attempt is answered.
doubled() { awk '$1 == "default/fast" { if (seen[$2]++) count++ } END { print count + 0 }' "$requests"; }
tokens() { awk '$1 == "default/fast" { if ($3 < last) back++; if ($3 != last) terms++; last = $3 } END { print terms + 0, back + 0 }' "$requests"; }

# rolled WHAT COMMAND...: an upgrade under a job that is due each 200 ms.
rolled() {
  local what=$1 pid terms back
  shift
  : >"$requests"
  must "$what: the job runs" within "$run_within" arrived default/fast
  : >"$folder/images"
  watch_images "$folder/images" &
  pid=$!
  started+=("$pid")
  must "$what" "$@"
  must "$what: rolled out" kubectl -n tenure-system rollout status deployment/tenure --timeout "${rollout_within}s"
  must "$what: the old ones go" within "$deleted_within" three_pods tenure-system
  kill "$pid"
  ended "$pid"
  must "$what: on three nodes" on_three_nodes tenure-system
  must "$what: one leader" within "$leader_within" one_leader tenure-system
  must "$what: old and new replicas ran side by side" side_by_side "$folder/images"
  read -r terms back < <(tokens)
  show echo "$(wc -l <"$requests") requests in $terms terms"
  must "$what: leaders followed each other" test "$terms" -ge 2
  must "$what: no token came after a higher one" test "$back" == 0
  must "$what: no run was doubled" test "$(doubled)" == 0
  must "$what: no slot was lost" within "$run_within" accounted
  show accounted
}

upgrade() {
  part "upgrade from an older chart, rollback, uninstall"
  must "a chart as it was before" older_chart
  must "the image under another tag" next_image
  must "the older chart is installed" "$helm" install tenure "$folder/tenure-0.0.9.tgz" --namespace tenure-system --create-namespace \
    --set "image.repository=$image" --wait --timeout "${rollout_within}s"
  must "its definition lacks a field" lacks_field
  must "a fast job" fast_job
  rolled "helm upgrade" "$helm" upgrade tenure "$chart" --namespace tenure-system --set "image.repository=$image" --set "image.tag=$version-next" --set log.level=debug
  must "it brings the field" has_field
  rolled "helm rollback" "$helm" rollback tenure 1 --namespace tenure-system
  must "it takes the field away" lacks_field
  must "helm uninstall" "$helm" uninstall tenure --namespace tenure-system
  must "the namespace goes, and does not hang" kubectl delete namespace tenure-system --timeout "${deleted_within}s"
  must "the definitions and the jobs are still there" kubectl get crd/"$crd" pj/fast pj/heartbeat
}

# --- Two installations whose jobs are the same ---

# Whose pods they are is told by their addresses, which the target sees.
second_chart() {
  "$helm" "$@" "$chart" --namespace "$second_namespace" --set crds.enabled=false --set "image.repository=$image" --wait --timeout "${rollout_within}s"
}
addresses() { kubectl -n "$1" get pods -l app.kubernetes.io/name=tenure -o jsonpath='{range .items[*]}{.status.podIP}{"\n"}{end}'; }
# Of the fast job's requests: "first second others returned gap": how many were made by each, how many by the first after one
# by the second, and how many ms after the first's last one the second's first one came.
workers() {
  awk '
    FILENAME == ARGV[1] { who[$1] = "first"; next }
    FILENAME == ARGV[2] { who[$1] = "second"; next }
    $1 == "default/fast" {
      by = ($6 in who) ? who[$6] : "others"
      if (by == "first" && count["second"]) returned++
      if (by == "first") last = $7
      if (by == "second" && !count[by]) begun = $7
      count[by]++
    }
    END { print count["first"] + 0, count["second"] + 0, count["others"] + 0, returned + 0, (begun ? begun - last : "none") }
  ' "$folder/first" "$folder/second" "$requests"
}
first_works_alone() {
  local first second others
  read -r first second others _ < <(workers)
  echo "$first requests by the first, $second by the second, $others by others"
  ((first > 0 && second == 0 && others == 0))
}
second_works() { local second; read -r _ second _ < <(workers); ((second >= $1)); }
second_leads() {
  local leader
  leader=$(leaders "$second_namespace")
  [[ -n $leader && $leader == "$(holder "$second_namespace" "$second_lease" | cut -d_ -f1)" ]]
}
# By the word of the second's leader.
counts_foreign() { says "$second_namespace" "$(leaders "$second_namespace")" metrics | grep "^tenure_foreign_objects $1\$"; }
# Those about earlier jobs of that name are still there.
foreign_events() {
  local uid events
  uid=$(kubectl get pj fast -o jsonpath='{.metadata.uid}')
  events=$(kubectl get events.v1.events.k8s.io -o jsonpath='{range .items[?(@.reason=="ForeignController")]}{.regarding.uid}: {.note}{"\n"}{end}' | grep "^$uid: ")
  echo "$events"
  [[ $(wc -l <<<"$events") == "$1" && $events == *"the Lease tenure-system/tenure owns this job"* ]]
}
released() { [[ $(kubectl -n tenure-system get lease tenure -o jsonpath='{.metadata.name}/{.spec.holderIdentity}') == tenure/ ]]; }
nothing_forbidden_to_second() {
  ! tail -n "+$1" "$audit" | grep -F "\"username\":\"system:serviceaccount:$second_namespace:$second_lease\"" | grep -F '"authorization.k8s.io/decision":"forbid"'
}

both_run() {
  must "the first release" install_chart --wait --timeout "${rollout_within}s"
  must "a fast job" fast_job
  must "it runs" within "$run_within" arrived default/fast
  must "the second release, with a Lease of its own" second_chart install second --create-namespace
  must "it has a leader" within "$leader_within" second_leads
  addresses tenure-system >"$folder/first"
  addresses "$second_namespace" >"$folder/second"
  must "it counts the job as foreign" within "$run_within" counts_foreign 1
  must "and says so in one Event" within "$run_within" foreign_events 1
  : >"$requests"
  sleep "$both_run_for"
  must "in $both_run_for s only the first one works" first_works_alone
  show first_works_alone
}

handed_over() {
  local terms back first second others returned gap
  must "the second is to adopt from the first's Lease" second_chart upgrade second --set "adoptFrom={tenure-system/tenure}"
  addresses "$second_namespace" >>"$folder/second"
  must "it has a leader again" within "$leader_within" second_leads
  must "as long as the first one is there, only that works" first_works_alone
  # First its pods, then its rights: helm takes both away at once, and the leader could not release its Lease any more.
  must "the first is scaled to nothing" kubectl -n tenure-system scale deployment/tenure --replicas 0
  must "its pods go" within "$deleted_within" no_pods tenure-system
  must "its Lease is released" released
  must "it is uninstalled" "$helm" uninstall tenure --namespace tenure-system
  must "the second one works" within "$run_within" second_works "$requests_judged"
  must "it counts no job as foreign" within "$run_within" counts_foreign 0
  read -r first second others returned gap < <(workers)
  read -r terms back < <(tokens)
  show echo "$first requests by the first, $second by the second, $others by others; $terms terms, $(doubled) doubled"
  show echo "the second's first request came $gap ms after the first's last one"
  must "nobody else works" test "$others" == 0
  must "the first one never works after the second one" test "$returned" == 0
  must "one term followed another" test "$terms" == 2
  must "no token came after a higher one" test "$back" == 0
  must "no run was doubled" test "$(doubled)" == 0
  must "no slot was lost" within "$run_within" accounted
  show accounted
}

two_installations() {
  part "two installations, the same jobs"
  local since=$(($(wc -l <"$audit") + 1))
  kubectl delete pj --all --all-namespaces >/dev/null
  : >"$requests"
  both_run
  handed_over
  must "nothing was forbidden to the second" nothing_forbidden_to_second "$since"
  must "the second is uninstalled" "$helm" uninstall second --namespace "$second_namespace"
  must "its namespace goes, and does not hang" kubectl delete namespace tenure-system "$second_namespace" --timeout "${deleted_within}s"
}

chart_for_one_namespace() {
  part "the chart, for one namespace"
  local mode="chart, one namespace" since=$(($(wc -l <"$audit") + 1))
  kubectl delete pj --all >/dev/null
  must "$mode: helm install" install_chart --set watchNamespace=shop
  must "$mode: a job elsewhere" example default
  kubectl -n shop delete pj --all >/dev/null
  installed "$mode" shop
  must "$mode: the job of another namespace is left alone" untouched default heartbeat
  exercise "$mode" "$since" shop "$target/worker"
  replaced "$mode"
  rights_are_used "$mode" "$since"
  must "$mode: the namespace goes with the release in it, and does not hang" kubectl delete namespace tenure-system --timeout "${deleted_within}s"
  must "$mode: the jobs are still there" kubectl -n shop get pj/heartbeat pj/worker
  must "$mode: the namespace of the jobs goes, and does not hang" kubectl delete namespace shop --timeout "${deleted_within}s"
}

must "nothing of Tenure is there" uninstalled
write_target
serve "$target_port" "$requests"
plain "plain manifests" deploy default tenure-system
plain "plain manifests, one namespace" deploy/namespaced tenure-system default
chart_as_readme_says
upgrade
two_installations
chart_for_one_namespace
must "nothing is left" uninstalled
((failures == 0)) || { echo "$failures failed after $SECONDS s" >&2; exit 1; }
echo "the installation holds on a real cluster ($SECONDS s)"
