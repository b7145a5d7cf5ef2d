#!/usr/bin/env bash
# make cluster-prometheus: a real Prometheus outside the nodes finds and scrapes the pods of the chart, with the
# chart's alerts as they are, their `for` included.
#   1. three targets are up, one replica leads, and no alert fires;
#   2. every metric that an alert or the dashboard reads is in the pods' /metrics, and every query of the dashboard has data;
#   3. without a replica TenureNoLeader goes pending and fires, and it resolves when the replicas are back, all of them found;
#   4. a second Prometheus scrapes two stub exporters that both say that they lead: TenureMultipleLeaders fires, and it
#      resolves when one of them stops saying so. It goes on beside the rest: the waits of both are a minute long.
# It needs what `make cluster` needs, Go (for helm, once) and Debian's package prometheus. A cluster that is up is used and
# left up; otherwise one is booted, and taken down at the end unless KEEP is set. About four minutes.
set -euo pipefail
# shellcheck source=lib/all.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/all.sh"

namespace=tenure-system
chart=$here/../../charts/tenure
# Both Prometheus and the stubs listen on the machine `outside`; the pods call the target of the job there.
prometheus_port=9090
stub_prometheus_port=9091
target_port=9103
stub_ports=(9101 9102)
# How often is scraped and evaluated, in seconds: often, so that the waits are those of the alerts.
every=2
# In seconds. The `for` of both alerts is a minute; what is added is discovery, a scrape and an evaluation on busy cores.
discovered_within=60
data_within=60
pending_within=60
fires_within=100
resolves_within=60
rollout_within=120

started_at_s=$SECONDS
folder=$(mktemp -d)
started=()
booted='' installed=''

finish() {
    local status=$? pid
    trap - EXIT
    for pid in "${started[@]}"; do
        kill -KILL "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
    if [[ -n $booted && -z ${KEEP:-} ]]; then
        "$here/down.sh" >/dev/null || status=1
    elif [[ -n $installed ]]; then
        "$helm" uninstall tenure --namespace "$namespace" --wait >/dev/null || status=1
    fi
    rm -rf "$folder"
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

ok() { printf 'ok  %4d s  %s\n' $((SECONDS - started_at_s)) "$*"; }
# Says what is wrong, with what a person would look at next, and ends the script.
wrong() {
    echo "FAILED: $*" >&2
    echo "alerts: $(query "$prometheus_port" ALERTS 2>&1)" >&2
    tail -n 10 "$folder"/*.log >&2
    exit 1
}

# eventually SECONDS WHAT COMMAND...
eventually() {
    local limit=$1 what=$2 deadline=$((SECONDS + $1))
    shift 2
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < deadline)) || wrong "$what: not within $limit s"
        sleep 0.5
    done
    ok "$what"
}

k() { kubectl --request-timeout 20s "$@"; }
outside() { "$here/faults/outside" "$@"; }

# query PORT QUERY: the samples, each `series => value @[time]` on a line.
query() { outside "$promtool" query instant "http://127.0.0.1:$1" "$2"; }
# is PORT VALUE QUERY: there is one sample, with that value.
is() { [[ $(query "$1" "$3") =~ ^[^$'\n']*"=> $2 @"[^$'\n']*$ ]]; }
# alert PORT NAME STATE: it is in that state.
alert() { query "$1" "ALERTS{alertname=\"$2\",alertstate=\"$3\"}" | grep -q '=> 1 @'; }
no_alert() { [[ -z $(query "$1" "ALERTS{alertname=\"$2\"}") ]]; }

# The alerts of the chart, as the operator would hand them to Prometheus.
rules() {
    "$helm" template tenure "$chart" --namespace "$namespace" --set alerts.enabled=true \
        --show-only templates/prometheusrule.yaml | sed '1,/^spec:$/d' >"$folder/rules.yaml"
    "$promtool" check rules "$folder/rules.yaml" >"$folder/rules.log" || { cat "$folder/rules.log"; return 1; }
}

# Keeps a file with the pods of the release as they come and go, with the labels that a PodMonitor gives: Debian builds its
# Prometheus without the discovery of Kubernetes, but it takes targets from a file as soon as that changes.
discover() {
    local before='' now
    while sleep 0.5; do
        now=$(k get pods -n "$namespace" -l app.kubernetes.io/name=tenure -o 'jsonpath={range .items[?(@.status.podIP)]}{.status.podIP} {.metadata.namespace} {.metadata.name}{"\n"}{end}') ||
            continue
        [[ $now != "$before" ]] || continue
        awk 'BEGIN { print "[" } NF == 3 { printf "{targets: [\"%s:8080\"], labels: {namespace: %s, pod: %s}},\n", $1, $2, $3 } END { print "]" }' \
            <<<"$now" >"$folder/new"
        mv "$folder/new" "$folder/targets.yaml"
        before=$now
    done
}

pods_config() {
    cat <<YAML
global: {scrape_interval: ${every}s, scrape_timeout: ${every}s, evaluation_interval: ${every}s}
rule_files: [$folder/rules.yaml]
scrape_configs:
  - job_name: tenure
    file_sd_configs:
      - {files: [$folder/targets.yaml]}
YAML
}

stubs_config() {
    cat <<YAML
global: {scrape_interval: ${every}s, scrape_timeout: ${every}s, evaluation_interval: ${every}s}
rule_files: [$folder/rules.yaml]
scrape_configs:
  - job_name: tenure
    static_configs:
      - {targets: ["127.0.0.1:${stub_ports[0]}"], labels: {namespace: $namespace, pod: stub-0}}
      - {targets: ["127.0.0.1:${stub_ports[1]}"], labels: {namespace: $namespace, pod: stub-1}}
YAML
}

# on_outside NAME COMMAND...: in the background, with a log.
on_outside() {
    local name=$1
    shift
    # Not by the function: the process that is started must be the one whose number is kept.
    "$here/faults/outside" "$@" >"$folder/$name.log" 2>&1 </dev/null &
    started+=($!)
}

# start_prometheus NAME PORT
start_prometheus() {
    "${1}_config" >"$folder/$1.yaml"
    on_outside "$1" "$prometheus" --config.file="$folder/$1.yaml" --storage.tsdb.path="$folder/$1.tsdb" \
        --web.listen-address="127.0.0.1:$2" --log.level=warn
}

# serve PORT FILE: answers every request with the file, which has its head in it.
serve() {
    on_outside "port-$1" socat "TCP-LISTEN:$1,fork,reuseaddr" "SYSTEM:head -n 1 >/dev/null; cat '$2'"
}
answer() { printf 'HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\n%s\n' "$1"; }

a_job() {
    k apply -f - <<YAML
apiVersion: tenure.dev/v1alpha1
kind: PeriodicJob
metadata: {name: watched, namespace: default}
spec:
  interval: 1s
  http: {method: POST, url: "http://$outside_address:$target_port/"}
YAML
}

install() {
    k create namespace "$namespace" --dry-run=client -o yaml | k apply -f - >/dev/null
    if ! "$helm" status tenure --namespace "$namespace" >/dev/null 2>&1; then installed=yes; fi
    "$helm" upgrade --install tenure "$chart" --namespace "$namespace" --set metrics.monitor=none \
        --set-string "podAnnotations.loaded=$(loaded)" \
        --wait --timeout "${rollout_within}s"
}

# Every metric that an alert or the dashboard reads is in what the pods show, all of them together: some come with a first
# renewal or run, which only a leader has.
metrics_exist() {
    local address missing
    k get pods -n "$namespace" -l app.kubernetes.io/name=tenure -o 'jsonpath={range .items[*]}{.status.podIP}{"\n"}{end}' >"$folder/addresses"
    while read -r address; do
        outside curl -fsS --max-time 5 "http://$address:8080/metrics" || return 1
    done <"$folder/addresses" >"$folder/metrics"
    sed -nE 's/^([a-z_]+)[{ ].*/\1/p' "$folder/metrics" | sort -u >"$folder/shown"
    { cat "$folder/rules.yaml"; "$here/../../scripts/dashboard-queries.sh"; } |
        grep -oE '\b(tenure|leader_election|process)_[a-z_]+' | sort -u >"$folder/read"
    missing=$(comm -23 "$folder/read" "$folder/shown")
    [[ -z $missing && -s $folder/read ]] || { echo "read, but shown by no pod: $missing"; return 1; }
}

# A query that has nothing to say on a healthy cluster would be listed here, with the reason. There is none.
panels_have_data() {
    local title text samples series empty=0
    printf '  %-27s %6s  %s\n' panel series query
    while IFS=$'\t' read -r title text; do
        samples=$(query "$prometheus_port" "$text")
        # Of nothing there is no mean: a series is NaN if nothing of its kind has been run, such as a `jobTemplate` here.
        series=$(grep '=> ' <<<"$samples" | grep -vc '=> NaN' || true)
        printf '  %-27s %6s  %s\n' "$title" "$series" "$text"
        [[ $series =~ ^[1-9] ]] || empty=$((empty + 1))
    done <"$folder/queries"
    ((empty == 0)) || { echo "$empty queries have no data"; return 1; }
}
all_have_data() { panels_have_data >"$folder/panels"; }

# A panel shows rates: they need two scrapes of a leader that has run jobs.
dashboard() {
    local deadline=$((SECONDS + data_within))
    "$here/../../scripts/dashboard-queries.sh" >"$folder/queries"
    until all_have_data; do
        ((SECONDS < deadline)) || { cat "$folder/panels"; wrong "the dashboard has no data within $data_within s"; }
        sleep 1
    done
    cat "$folder/panels"
    ok "each of the $(wc -l <"$folder/queries") queries of the dashboard has data"
}

healthy() {
    eventually "$discovered_within" "three targets are up" is "$prometheus_port" 3 'sum(up{job="tenure"})'
    query "$prometheus_port" 'up{job="tenure"}' | sed 's/^/  /'
    eventually "$discovered_within" "one replica leads" is "$prometheus_port" 1 'sum(leader_election_master_status)'
}

replicas() { k scale -n "$namespace" deployment/tenure --replicas "$1" >/dev/null; }

require_root cluster-prometheus
if ! prometheus=$(command -v prometheus) || ! promtool=$(command -v promtool); then
    fail "prometheus and promtool are needed: apt-get install prometheus, or https://prometheus.io/download"
fi
helm=$("$here/../../scripts/helm.sh")
export HELM_CACHE_HOME=$folder/helm HELM_CONFIG_HOME=$folder/helm HELM_DATA_HOME=$folder/helm KUBECONFIG=$kubeconfig
[[ -f $run/up ]] || booted=yes
"$here/up.sh" >"$folder/up.log" 2>&1 || { cat "$folder/up.log"; exit 1; }
ok "the cluster is up"
rules || wrong "the rules of the chart"

answer 'leader_election_master_status{name="tenure"} 1' >"$folder/stub-0"
cp "$folder/stub-0" "$folder/stub-1"
answer 'a run' >"$folder/target"
serve "${stub_ports[0]}" "$folder/stub-0"
serve "${stub_ports[1]}" "$folder/stub-1"
serve "$target_port" "$folder/target"
start_prometheus stubs "$stub_prometheus_port"
eventually "$discovered_within" "two stubs say that they lead" is "$stub_prometheus_port" 2 'sum(leader_election_master_status)'

"$here/clear.sh" >"$folder/clear.log" 2>&1 || { cat "$folder/clear.log"; wrong "what is there of Tenure cannot be taken away"; }
install >"$folder/install.log" 2>&1 || { cat "$folder/install.log"; wrong "the chart cannot be installed"; }
ok "the chart is installed"
a_job >/dev/null
discover >"$folder/discovery.log" 2>&1 &
started+=($!)
start_prometheus pods "$prometheus_port"
healthy
dashboard
metrics_exist || wrong "metrics of the pods"
ok "each of the $(wc -l <"$folder/read") metrics that alerts and dashboard read is in the pods' /metrics"
if query "$prometheus_port" 'ALERTS{alertstate="firing"}' | grep .; then wrong "an alert fires on a healthy cluster"; fi
ok "no alert fires"

replicas 0
eventually "$pending_within" "no replica: TenureNoLeader is pending" alert "$prometheus_port" TenureNoLeader pending
eventually "$fires_within" "TenureNoLeader fires" alert "$prometheus_port" TenureNoLeader firing
replicas 3
eventually "$resolves_within" "three replicas: TenureNoLeader is resolved" no_alert "$prometheus_port" TenureNoLeader
healthy
no_alert "$prometheus_port" TenureMultipleLeaders || wrong "TenureMultipleLeaders was not to be seen here"

eventually "$fires_within" "TenureMultipleLeaders fires for the stubs" alert "$stub_prometheus_port" TenureMultipleLeaders firing
answer 'leader_election_master_status{name="tenure"} 0' >"$folder/stub-1"
eventually "$resolves_within" "one stub leads: it is resolved" no_alert "$stub_prometheus_port" TenureMultipleLeaders
k delete periodicjob -n default watched >/dev/null
ok "all of it held"
