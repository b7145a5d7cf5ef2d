#!/usr/bin/env bash
# Writes what is generated from other files, so that each thing is said in one place only:
#   charts/tenure/files/crds   from deploy/crds, which `make crds` writes
#   charts/tenure/README.md    its table, from the comments in values.yaml
#   deploy/                    plain manifests, from the chart
# With --check it writes nothing and demands that all of it is as it would be written.
set -euo pipefail
cd "$(dirname "$0")/.."

chart=charts/tenure
helm=$(scripts/helm.sh)
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
mkdir -p "$fresh/$chart/files" "$fresh/deploy/namespaced" "$fresh/deploy/monitoring"

# A row of the table for each key with a comment directly above it; a heading for each line `## …`.
values_table() {
  awk '
    function cell(text) { gsub(/\|/, "\\|", text); return text }
    /^## / { printf "\n### %s\n\n| value | default | what |\n|---|---|---|\n", substr($0, 4); heading = 1; comment = ""; next }
    /^ *# / { line = $0; sub(/^ *# /, "", line); comment = comment (comment == "" ? "" : " ") line; next }
    /^ *$/ { comment = ""; next }
    /^ *[A-Za-z_]+:/ {
      match($0, /^ */); depth = RLENGTH / 2
      key = $1; sub(/:$/, "", key); path[depth] = key
      value = $0; sub(/^ *[A-Za-z_]+: */, "", value)
      name = path[0]; for (i = 1; i <= depth; i++) name = name "." path[i]
      if (comment != "" && heading) {
        printf "| `%s` | %s | %s |\n", name, (value == "" ? "see values.yaml" : "`" cell(value) "`"), cell(comment)
      }
      comment = ""
    }' "$chart/values.yaml"
}

# What helm adds for itself has no meaning in a plain manifest.
plain() {
  "$helm" template tenure "$chart" --namespace tenure-system --skip-tests "$@" |
    sed -e '/^# Source: /d' -e '/app.kubernetes.io\/managed-by: Helm$/d' -e '/helm.sh\/chart: /d'
}

generated() {
  echo "# Generated from charts/tenure by scripts/manifests.sh. Do not edit: change it with kustomize, or use the chart."
}

kustomization() {
  generated
  sed 's/^/# /' <<<"$1"
  printf 'apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources:\n'
  shift
  printf '  - %s\n' "$@"
}

mkdir "$fresh/$chart/files/crds"
cp deploy/crds/*.tenure.dev.yaml "$fresh/$chart/files/crds/"

{
  sed '/^<!-- values -->$/q' "$chart/README.md"
  values_table
} >"$fresh/$chart/README.md"

namespace=$(
  generated
  cat <<'YAML'
apiVersion: v1
kind: Namespace
metadata:
  name: tenure-system
  labels:
    pod-security.kubernetes.io/enforce: restricted
YAML
)
for mode in . namespaced; do
  echo "$namespace" >"$fresh/deploy/$mode/namespace.yaml"
done
{ generated; plain --set crds.enabled=false; } >"$fresh/deploy/tenure.yaml"
{ generated; plain --set crds.enabled=false --set watchNamespace=tenure-system; } >"$fresh/deploy/namespaced/tenure.yaml"
{
  generated
  plain --set metrics.monitor=pod --set alerts.enabled=true --set dashboard.enabled=true \
    -s templates/monitor.yaml -s templates/prometheusrule.yaml -s templates/dashboard.yaml
} >"$fresh/deploy/monitoring/monitoring.yaml"
kustomization 'Tenure for every namespace: kubectl apply -k deploy/
Name your image with `images:` in a kustomization of your own.' crds namespace.yaml tenure.yaml >"$fresh/deploy/kustomization.yaml"
kustomization 'Tenure for the jobs of one namespace, its own: kubectl apply -k deploy/namespaced
For another one, set `namespace:` in a kustomization of your own.' \
  ../crds namespace.yaml tenure.yaml >"$fresh/deploy/namespaced/kustomization.yaml"
kustomization 'What needs the Prometheus operator, and a dashboard for the sidecar of Grafana: kubectl apply -k deploy/monitoring' \
  monitoring.yaml >"$fresh/deploy/monitoring/kustomization.yaml"

mapfile -t files < <(cd "$fresh" && find . -type f -printf '%P\n' | sort)
# What is there but would not be written has been forgotten in these folders.
mapfile -t stale < <(
  find deploy "$chart/files/crds" -type f -not -path 'deploy/crds/*' 2>/dev/null | sort |
    comm -23 - <(printf '%s\n' "${files[@]}")
)

if [[ ${1:-} == --check ]]; then
  differ=0
  for file in "${files[@]}"; do diff -u --label "$file" --label "$file, as generated" "$file" "$fresh/$file" || differ=1; done
  for file in "${stale[@]}"; do echo "$file is not generated any more"; differ=1; done
  ((differ == 0)) || { echo "generated files are out of date; run scripts/manifests.sh" >&2; exit 1; }
  echo "${#files[@]} generated files are as they would be written"
else
  ((${#stale[@]} == 0)) || rm -f "${stale[@]}"
  for file in "${files[@]}"; do
    mkdir -p "$(dirname "$file")"
    cp "$fresh/$file" "$file"
  done
  echo "${#files[@]} files written"
fi
