#!/usr/bin/env bash
# Everything about the chart, the plain manifests, the alerts and the dashboard that can be checked without a cluster.
#   scripts/chart.sh            checks
#   scripts/chart.sh --update   writes the snapshots of tests/chart and what scripts/manifests.sh generates anew
# It needs Go (for helm, once) and promtool, which is part of Debian's package prometheus.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

chart=charts/tenure
helm=$(scripts/helm.sh) || exit 1
promtool=$(command -v promtool) || { echo "promtool is needed: apt-get install prometheus, or https://prometheus.io/download" >&2; exit 1; }
# What the program shows; a test holds it to the program.
metrics_snapshot=src/observe/snapshots/tenure__observe__metrics__tests__the_metrics_of_a_leader_follow_the_contract.snap
fresh=$(mktemp -d)
# The Prometheus of one check, if that is cut off: its process id stands in a file, because checks run in subshells.
trap '[[ ! -s $fresh/pid ]] || kill -KILL "$(<"$fresh/pid")" 2>/dev/null; rm -rf "$fresh"' EXIT
failures=0

# check NAME COMMAND...: runs it, and shows what it printed if it failed.
check() {
  local name=$1 output
  shift
  if output=$("$@" 2>&1); then
    printf 'ok      %-34s %s\n' "$name" "$(tail -n 1 <<<"$output")"
  else
    failures=$((failures + 1))
    printf 'FAILED  %s\n' "$name"
    sed 's/^/        /' <<<"$output"
  fi
}

render() { "$helm" template tenure "$chart" --namespace tenure-system "$@"; }

lint() {
  local values
  for values in tests/chart/values/*.yaml; do
    "$helm" lint --strict --quiet "$chart" --namespace tenure-system --values "$values" || { echo "with $values"; return 1; }
  done
  echo "$(ls tests/chart/values/*.yaml | wc -l) sets of values"
}

# A snapshot leaves out what is generated and checked elsewhere: the definitions' specs and the dashboard.
snapshot() {
  # Below NOTES stands what helm prints after an installation; above it are its other words for a dry run.
  render --values "$1" | awk '
    /^---$/ { skip = 0 }
    /^kind: CustomResourceDefinition$/ { definition = 1 }
    definition && /^spec:$/ { print "spec: # as in deploy/crds"; skip = 1; definition = 0 }
    !skip { print }
    /^  [a-z0-9.-]+\.json: \|-$/ { print "    # as in files/dashboard.json"; skip = 1 }'
  [[ ${PIPESTATUS[0]} == 0 ]] || return 1
  echo "=== NOTES"
  "$helm" install tenure "$chart" --namespace tenure-system --values "$1" --dry-run=client --kubeconfig /dev/null | sed '1,/^NOTES:$/d'
  [[ ${PIPESTATUS[0]} == 0 ]]
}

snapshots() {
  local values name differ=0 count=0
  mkdir -p "$fresh/snapshots"
  for values in tests/chart/values/*.yaml; do
    name=$(basename "$values")
    snapshot "$values" >"$fresh/snapshots/$name" 2>"$fresh/error" || { cat "$fresh/error"; return 1; }
    count=$((count + 1))
  done
  diff -ru tests/chart/snapshots "$fresh/snapshots" || differ=1
  ((differ == 0)) || { echo "if this is what is wanted: scripts/chart.sh --update"; return 1; }
  echo "$count snapshots"
}

wrong_values() {
  local input message output wrong=0 count=0
  while IFS='|' read -r input message; do
    # A pattern may have a bar in it: the first one parts.
    [[ $input == \#* || -z $input ]] && continue
    message=${message# } count=$((count + 1))
    # shellcheck disable=SC2086 # the input is several words
    if output=$(render $input 2>&1); then
      echo "not refused: $input"
      wrong=1
    elif [[ $output != *"$message"* ]]; then
      printf 'refused with another message: %s\n  expected: %s\n  found: %s\n' "$input" "$message" "$output"
      wrong=1
    fi
  done <tests/chart/wrong-values.txt
  ((wrong == 0 && count > 0)) && echo "$count wrong values refused, each with its message"
}

# The flags that the binary has (as its help says, which a test holds to the binary) and those that the chart sets.
flags() {
  local help=tests/it/snapshots/it__start_up__help_run.snap
  # Where the process runs decides these: the kubeconfig, the namespace of the pod, its name.
  printf '%s\n' help version kubeconfig namespace identity | sort >"$fresh/left-out"
  grep -oE '^ +(-[a-zA-Z], )?--[a-z-]+' "$help" | grep -oE '[a-z-]+$' | sed 's/^--//' | sort -u >"$fresh/known"
  {
    render --values tests/chart/values/full.yaml -s templates/deployment.yaml
    render --values tests/chart/values/namespaced.yaml -s templates/deployment.yaml
  } | grep -oE '^ +- "?--[a-z-]+=' | grep -oE '[a-z][a-z-]*=' | tr -d = | sort -u >"$fresh/set"
  local unknown missing
  unknown=$(comm -13 "$fresh/known" "$fresh/set") missing=$(comm -23 "$fresh/known" <(sort -u "$fresh/set" "$fresh/left-out"))
  [[ -z $unknown ]] || { echo "the chart sets flags that the program does not have: $unknown"; return 1; }
  [[ -z $missing ]] || { echo "no value of the chart sets these flags of the program: $missing"; return 1; }
  [[ -s $fresh/known && -s $fresh/set ]] || { echo "no flags were found"; return 1; }
  # A default that both have is the same.
  render | grep -oE -- '--[a-z-]+=[^"]*' | sort -u >"$fresh/rendered"
  awk '/^ +(-[a-zA-Z], )?--[a-z-]+/ { match($0, /--[a-z-]+/); flag = substr($0, RSTART, RLENGTH) }
       /\[default: [^ ]+\]$/ { sub(/.*\[default: /, ""); sub(/\]$/, ""); print flag "=" $0 }' "$help" | sort -u >"$fresh/defaults"
  local other
  other=$(comm -23 "$fresh/defaults" "$fresh/rendered")
  [[ -z $other ]] || { echo "the program's default is not the chart's: $other"; return 1; }
  echo "$(wc -l <"$fresh/set") flags, $(wc -l <"$fresh/defaults") defaults"
}

versions() {
  local cargo
  cargo=$(sed -nE '/^\[workspace.package\]/,/^\[/s/^version = "(.*)"$/\1/p' Cargo.toml)
  grep -qx "version: $cargo" "$chart/Chart.yaml" && grep -qx "appVersion: $cargo" "$chart/Chart.yaml" ||
    { echo "Chart.yaml: expected version and appVersion $cargo, as in Cargo.toml"; return 1; }
  grep -qx "ARG VERSION=$cargo" Dockerfile || { echo "Dockerfile: expected ARG VERSION=$cargo, as in Cargo.toml"; return 1; }
  # Each tag of the image that README names.
  local tags
  tags=$(grep -oE 'REGISTRY/tenure:[^ `]+' README.md | sort -u)
  [[ $tags == "REGISTRY/tenure:$cargo" ]] || { echo "README.md: expected the tag $cargo, as in Cargo.toml; found $tags"; return 1; }
  # Snapshots are of one version of helm, which the chart's README names.
  local tested
  tested=$(sed -nE 's/^version=(.*)$/\1/p' scripts/helm.sh)
  grep -qF "is tested with helm $tested." "$chart/README.md" || { echo "$chart/README.md: expected helm $tested, as in scripts/helm.sh"; return 1; }
  echo "$cargo in Cargo.toml, Chart.yaml, Dockerfile and README.md"
}

# Nothing of another name is left when a release has another name.
other_names() {
  local left
  left=$("$helm" template night "$chart" --namespace dark --set alerts.enabled=true --set metrics.monitor=service \
    --set networkPolicy.enabled=true --set flowSchema.enabled=true --set alerts.runbookBase=https://r.test -s templates/prometheusrule.yaml) || return 1
  if grep -nE 'tenure-system|[,{]name="tenure"|Lease tenure|lease: tenure$|docs/runbooks' <<<"$left"; then
    echo "the alerts of a release night in namespace dark speak of another"
    return 1
  fi
  grep -q 'name="night-tenure"' <<<"$left" && grep -q 'namespace="dark"' <<<"$left" || { echo "the names were not put in"; return 1; }
  left=$("$helm" template night "$chart" --namespace dark --set dashboard.enabled=true -s templates/dashboard.yaml) || return 1
  if grep -nE 'tenure-system|"uid": "tenure"|"title": "Tenure"|"(text|value)": "tenure"' <<<"$left"; then
    echo "the dashboard of a release night in namespace dark speaks of another"
    return 1
  fi
  grep -q '^  dark.night-tenure.json: ' <<<"$left" && grep -q '"uid": "dark_night-tenure"' <<<"$left" || { echo "file and uid of the dashboard are not the release's"; return 1; }
  left=$("$helm" template night "$chart" --namespace "$(printf 'dark%.0s' {1..15})" --set dashboard.enabled=true -s templates/dashboard.yaml) || return 1
  grep -qE '"uid": "[a-z0-9_-]{40}"' <<<"$left" || { echo "Grafana takes a uid of 40 characters: $(grep '"uid": "dark' <<<"$left")"; return 1; }
  # Names of digits only stay names.
  left=$("$helm" template 123 "$chart" --namespace 456 --set-string fullnameOverride=789,leaderElection.leaseName=9,serviceAccount.name=10,class=11 \
    --set-string 'adoptFrom={12/13}' --set-string watchNamespace=14 --set metrics.monitor=pod,alerts.enabled=true,dashboard.enabled=true \
    --set networkPolicy.enabled=true,flowSchema.enabled=true) || return 1
  if grep -nE '(name|namespace|[nN]ame|instance|lease|class|matchNames|resourceNames|namespaces): \[?[0-9]+\]?$' <<<"$left"; then
    echo "names that are numbers"
    return 1
  fi
  grep -q 'resourceNames: \["9"\]' <<<"$left" && grep -q 'app.kubernetes.io/instance: "123"' <<<"$left" || { echo "names of digits were not found"; return 1; }
  # Two releases in one cluster share no name, whatever they are called.
  local first second
  names() { "$helm" template "$1" "$chart" --namespace "$2" --set crds.enabled=false --set flowSchema.enabled=true --set leaderElection.leaseNamespace=locks | awk '
    /^kind: (ClusterRole|ClusterRoleBinding|FlowSchema)$/ { kind = $2 } kind && /^  name: / { print kind, $2; kind = "" }
    /--leader-elect-resource-name=/ { print "Lease", $2 }' | sort; }
  first=$(names c a-b) second=$(names b-c a)
  [[ -n $first && -z $(comm -12 <(echo "$first") <(echo "$second")) ]] || { echo "two releases share: $(comm -12 <(echo "$first") <(echo "$second"))"; return 1; }
  wc -l <<<"$first" | sed 's/$/ objects that others lie beside, no name shared by two releases/'
}

# What the rules file, the runbooks and the metrics of the program have to do with each other.
alerts() {
  "$promtool" check rules "$chart/files/alerts.yaml" || return 1
  "$promtool" test rules tests/alerts/*_test.yaml || return 1
  local alert tested
  sed -nE 's/^ +- alert: (.*)$/\1/p' "$chart/files/alerts.yaml" | sort >"$fresh/alerts"
  ls docs/runbooks | sed -n '/README/d; s/\.md$//p' | sort >"$fresh/pages"
  diff "$fresh/alerts" "$fresh/pages" || { echo "alerts (left) and pages of docs/runbooks (right) differ"; return 1; }
  while read -r alert; do
    grep -q "runbook_url: docs/runbooks/$alert.md$" "$chart/files/alerts.yaml" || { echo "$alert has no runbook_url of its own"; return 1; }
    grep -q "(#\|($alert.md)" docs/runbooks/README.md || { echo "$alert is not in docs/runbooks/README.md"; return 1; }
    # Seen firing: a test that expects nothing of an alert proves nothing about it.
    tested=$(grep -A2 "alertname: $alert$" tests/alerts/*_test.yaml | grep -c 'exp_labels:')
    ((tested > 0)) || { echo "$alert is never seen to fire in tests/alerts"; return 1; }
  done <"$fresh/alerts"
  local rules each key
  rules=$(wc -l <"$fresh/alerts")
  for key in for severity namespace lease summary description runbook_url; do
    each=$(grep -cE "^ +$key: " "$chart/files/alerts.yaml")
    ((each == rules)) || { echo "$rules alerts, but $each have $key"; return 1; }
  done
  each=$(grep -cE '^ +summary: .*\(namespace tenure-system, Lease tenure\)' "$chart/files/alerts.yaml")
  ((each == rules)) || { echo "$rules alerts, but $each say in their summary which installation they are about"; return 1; }
  echo "$rules alerts, each with a page, tests, for, severity, namespace, lease, summary, description"
}

# The queries of the dashboard, one on a line, with its variables filled in.
queries() { scripts/dashboard-queries.sh | cut -f 2-; }

dashboard() {
  render --set dashboard.enabled=true -s templates/dashboard.yaml >/dev/null || return 1
  queries >"$fresh/queries"
  local count
  count=$(wc -l <"$fresh/queries")
  ((count == $(grep -c '"expr"' "$chart/files/dashboard.json") && count > 0)) || { echo "not every query was found"; return 1; }
  # promtool has no command for one expression; as a rule it is parsed all the same.
  {
    printf 'groups:\n- name: dashboard\n  rules:\n'
    awk '{ gsub(/'"'"'/, "&&"); printf "  - record: query:%d\n    expr: '"'%s'"'\n", NR, $0 }' "$fresh/queries"
  } >"$fresh/dashboard.yaml"
  "$promtool" check rules "$fresh/dashboard.yaml" || return 1
  echo "$count queries"
}

# The queries against a real Prometheus that holds half an hour of what a leader with one job shows: each has data, also
# when two jobs of Prometheus scrape the same pod.
with_data() {
  local prometheus port started now pid query answer empty=0 count=0
  prometheus=$(command -v prometheus) || { echo "prometheus is needed, of the same package as promtool"; return 1; }
  now=$(date +%s) started=$(($(date +%s) - 1800))
  {
    grep -E '^[a-z_]+(\{.*\})? [0-9.]+$' "$metrics_snapshot"
    printf '%s 1\n' process_resident_memory_bytes process_cpu_seconds_total process_open_fds
  } | awk -v from="$started" -v until="$now" '
    /_sum|_count|_bucket|_total/ { counts[NR] = 1 }
    {
      series[NR] = $1; value[NR] = $2
      if (series[NR] !~ /\{/) series[NR] = series[NR] "{}"
      sub(/\{/, "{namespace=\"tenure-system\",pod=\"tenure-0\",", series[NR]); sub(/,\}/, "}", series[NR])
    }
    function show(name, i) {
      for (at = from; at <= until; at += 15) printf "%s %s %d\n", name, value[i] + (counts[i] ? (at - from) / 15 : 0), at
    }
    END {
      for (i = 1; i <= NR; i++) if (series[i] != "") {
        show(series[i], i)
        sub(/\}$/, ",job=\"again\"}", series[i])
        show(series[i], i)
      }
      print "# EOF"
    }' >"$fresh/openmetrics"
  mkdir "$fresh/tsdb"
  "$promtool" tsdb create-blocks-from openmetrics "$fresh/openmetrics" "$fresh/tsdb" >/dev/null || return 1
  echo 'scrape_configs: []' >"$fresh/prometheus.yaml"
  port=$((20000 + RANDOM))
  "$prometheus" --config.file="$fresh/prometheus.yaml" --storage.tsdb.path="$fresh/tsdb" --log.level=error \
    --web.listen-address="127.0.0.1:$port" >"$fresh/prometheus.log" 2>&1 &
  pid=$!
  echo "$pid" >"$fresh/pid"
  for _ in {1..100}; do
    "$promtool" query instant "http://127.0.0.1:$port" 'vector(1)' >/dev/null 2>&1 && break
    kill -0 "$pid" 2>/dev/null || { cat "$fresh/prometheus.log"; return 1; }
    sleep 0.2
  done
  while IFS= read -r query; do
    count=$((count + 1))
    answer=$("$promtool" query instant --time="$now" "http://127.0.0.1:$port" "$query" 2>&1) || { echo "$query: $answer"; empty=1; }
    # A sample is `labels => value @[time]`.
    [[ $answer == *"=> "* && $answer != *"=> NaN"* ]] || { echo "no data: $query: $answer"; empty=1; }
  done <"$fresh/queries"
  kill -KILL "$pid"
  wait "$pid" 2>/dev/null
  rm "$fresh/pid"
  ((empty == 0)) || return 1
  echo "$count queries, each with data"
}

# Every metric that an alert or the dashboard reads exists, and no label is read that the program does not give it.
metrics() {
  local known=$metrics_snapshot unknown unread
  sed -nE 's/^([a-z_]+)[{ ].*/\1/p' "$known" | sort -u >"$fresh/metrics"
  { cat "$chart/files/alerts.yaml"; queries; } | grep -oE '\b(tenure|leader_election)_[a-z_]+' | sort -u >"$fresh/read"
  unknown=$(comm -13 "$fresh/metrics" "$fresh/read")
  [[ -z $unknown ]] || { echo "read, but the program has no such metric: $unknown"; return 1; }
  unread=$(comm -23 "$fresh/metrics" "$fresh/read")
  [[ -z $unread ]] || { echo "the program has metrics that neither an alert nor the dashboard reads: $unread"; return 1; }
  sed -nE '/periodicjob_(last|next|cons|active)/s/.*\{(.*)\}.*/\1/p' "$known" | head -n 1 | grep -q 'periodicjob=.*periodicjob_namespace=' ||
    { echo "the labels of jobs are not the ones that alerts and dashboard read"; return 1; }
  echo "$(wc -l <"$fresh/read") metrics"
}

if [[ ${1:-} == --update ]]; then
  scripts/manifests.sh || exit 1
  rm -rf tests/chart/snapshots
  mkdir -p tests/chart/snapshots
  for values in tests/chart/values/*.yaml; do
    snapshot "$values" >"tests/chart/snapshots/$(basename "$values")" || exit 1
  done
  ls tests/chart/snapshots | wc -l | sed 's/$/ snapshots written/'
  exit 0
fi

# A set of values that is not there any more leaves no snapshot behind, and the other way round.
check "helm lint --strict" lint
check "snapshots" snapshots
check "wrong values" wrong_values
check "values and flags" flags
check "versions" versions
check "names" other_names
check "generated files" scripts/manifests.sh --check
check "alerts" alerts
check "dashboard" dashboard
check "dashboard with data" with_data
check "metrics" metrics
((failures == 0)) || { echo "$failures checks of the chart failed" >&2; exit 1; }
