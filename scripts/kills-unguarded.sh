#!/usr/bin/env bash
# The judge must be able to say no: the family of frozen leaders, run with a guard that always says yes, has to fail.
# Arguments go to `kills`.
set -euo pipefail
cd "$(dirname "$0")/.."

binary=$(scripts/broken.sh --build election-06-guard-always-yes)
log=target/kills-unguarded.log
status=0
target/release/kills --tenure "$binary" --families stop --directory target/kills-unguarded "$@" >"$log" 2>&1 || status=$?
# 1 is the judge's no. 0 would be a judge that sees nothing, and 2 trials that could not be run.
if ((status != 1)); then
  cat "$log"
  echo "kills with a guard that always says yes ended with status $status instead of 1" >&2
  exit 1
fi
grep '^FAILED' "$log"
echo "with a guard that always says yes the judge says no, as it must"
