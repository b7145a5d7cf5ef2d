#!/usr/bin/env bash
# An image of Tenure whose time of day can be wrong, put into every node of the test cluster; prints its name.
#   tests/cluster/skewed-image.sh BINARY
# BINARY is dynamically linked, for the time of day is changed by LD_PRELOAD (images/skew.c); its libraries come from this
# computer. A container of it with LD_PRELOAD=/skew.so and SKEW_SECONDS=3600 believes that it is an hour later.
set -euo pipefail
# shellcheck source=lib/all.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/all.sh"

image=localhost/tenure-cluster/skewed:1

require_root cluster
require_running
binary=${1:?skewed-image.sh BINARY}
[[ -x $binary ]] || fail "$binary is no program"
# A static binary has no interpreter, and nothing could be loaded into it.
libraries=$(ldd "$binary" 2>/dev/null | grep -oE '/[^ ]+') || fail "$binary is static: its time of day cannot be changed"

build_skew
context=$(mktemp -d "$run/context.XXXXXX")
trap 'rm -rf "$context"' EXIT
install -D -s "$binary" "$context/root/tenure"
install "$skew_library" "$context/root/skew.so"
for library in $libraries; do install -D "$library" "$context/root$library"; done
build_image "$image" "$run/skewed.tar" "$here/images/skewed.Dockerfile" "$context"
load_image "$run/skewed.tar"
echo "$image"
