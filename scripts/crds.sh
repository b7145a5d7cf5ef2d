#!/usr/bin/env bash
# Writes deploy/crds from what `tenure crds` prints, one file for each definition, and a list of them for kustomize. With
# --check it writes nothing and demands that the folder is exactly that. scripts/manifests.sh brings them into the chart.
set -euo pipefail
cd "$(dirname "$0")/.."

fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
cargo run --quiet --all-features --bin tenure -- crds >"$fresh/all"
mkdir "$fresh/crds"
# Documents are parted by a line of dashes; the first `name:` below `metadata:` names the file.
awk -v folder="$fresh/crds" '
  function flush() { if (text != "") { printf "%s", text >(folder "/" name ".yaml"); text = name = "" } }
  /^---$/ { flush(); next }
  { text = text $0 "\n" }
  name == "" && /^  name: / { name = $2 }
  END { flush() }' "$fresh/all"
[[ -n $(ls "$fresh/crds") ]] || { echo "tenure crds printed no definition" >&2; exit 1; }
{
  printf 'apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources:\n'
  (cd "$fresh/crds" && printf '  - %s\n' *.tenure.dev.yaml)
} >"$fresh/kustomization.yaml"
mv "$fresh/kustomization.yaml" "$fresh/crds/"

if [[ ${1:-} == --check ]]; then
  diff -r deploy/crds "$fresh/crds" || { echo "deploy/crds is not what the types say; run \`make crds\`" >&2; exit 1; }
  echo "deploy/crds is what \`tenure crds\` prints"
else
  rm -rf deploy/crds
  mv "$fresh/crds" deploy/crds
fi
