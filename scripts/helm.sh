#!/usr/bin/env bash
# Prints the path of helm: the one on PATH if it is of the version that is tested, else one built from source into the
# cache, once. Snapshots are compared letter by letter, so any other version will not do.
set -euo pipefail

version=4.3.1
if on_path=$(command -v helm) && [[ $("$on_path" version --template '{{.Version}}' 2>/dev/null) == "v$version" ]]; then
  echo "$on_path"
  exit 0
fi
folder=${TENURE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/tenure}/tools/helm-$version/bin
if [[ ! -x $folder/helm ]]; then
  command -v go >/dev/null || { echo "building helm needs Go 1.26 or newer on PATH (https://go.dev/dl/)" >&2; exit 1; }
  mkdir -p "$folder"
  (
    # Two callers share one build; a build that is cut off leaves nothing that looks like a program.
    flock 9
    [[ -x $folder/helm ]] && exit 0
    echo "building helm $version into $folder (minutes, once)" >&2
    unfinished=$(mktemp -d "$folder/.build.XXXXXX")
    trap 'rm -rf "$unfinished"' EXIT
    # The version is stamped: helm calls itself v4.3 otherwise, without the patch.
    CGO_ENABLED=0 GOBIN=$unfinished nice -n 10 go install -trimpath \
      -ldflags "-s -w -X helm.sh/helm/v4/internal/version.version=v$version" "helm.sh/helm/v4/cmd/helm@v$version" >&2
    mv "$unfinished/helm" "$folder/helm"
  ) 9>"$folder/.lock"
fi
echo "$folder/helm"
