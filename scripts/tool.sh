#!/usr/bin/env bash
# Prints the path of a development tool: the one on PATH, else the one in the cache, which is built there once.
# The cache lies outside the clone, keyed by version, so that a clean clone does not pay for it again.
set -euo pipefail

tool=${1:?"usage: scripts/tool.sh TOOL"}
case $tool in
  cargo-deny) version=0.20.2 ;;
  *) echo "scripts/tool.sh knows no tool named $tool" >&2; exit 2 ;;
esac

if on_path=$(command -v "$tool"); then
  echo "$on_path"
  exit 0
fi
root=${TENURE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/tenure}/tools/$tool-$version
if [[ ! -x $root/bin/$tool ]]; then
  echo "building $tool $version into $root (once)" >&2
  # An own target folder: two clones that build at once must not meet. cargo moves the binary into place only when whole.
  CARGO_TARGET_DIR=$(mktemp -d) && export CARGO_TARGET_DIR
  trap 'rm -rf "$CARGO_TARGET_DIR"' EXIT
  cargo install --quiet --locked --root "$root" "$tool@$version" >&2
fi
echo "$root/bin/$tool"
