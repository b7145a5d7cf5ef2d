#!/usr/bin/env bash
# Runs every test of the workspace and counts what ran. A skipped test fails the run: what is not run is not tested.
set -euo pipefail
cd "$(dirname "$0")/.."

log=target/test.log
mkdir -p target
: >"$log"
status=0

# Failures are collected, not fatal at once: the counts at the end are part of the answer.
run() { "$@" 2>&1 | tee -a "$log" || status=1; }

if cargo nextest --version >/dev/null 2>&1; then
  run cargo nextest run --workspace --all-features --no-fail-fast
  run cargo test --workspace --all-features --no-fail-fast --doc
else
  run cargo test --workspace --all-features --no-fail-fast
fi

# Two spellings: "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; …" of libtest, and
# "Summary [ 0.1s] 3 tests run: 3 passed (1 slow), 0 skipped" of nextest.
read -r ran failed skipped < <(awk '
  function count(word,   i) { for (i = 2; i <= NF; i++) { w = $i; gsub(/[^a-z]/, "", w); if (w == word) return $(i - 1) + 0 } return 0 }
  /^test result:/ { f = count("failed"); ran += count("passed") + f; failed += f; skipped += count("ignored") + count("filtered") }
  /^ *Summary \[/ { sub(/.*\] */, "_ "); f = count("failed") + count("timed"); ran += $2; failed += f; skipped += count("skipped") }
  END { print ran + 0, failed + 0, skipped + 0 }' "$log")

summary="tests: $ran run, $failed failed, $skipped skipped"
echo "$summary" | tee target/test-summary
if ((ran == 0)); then
  echo "no test ran" >&2
  exit 1
elif ((skipped != 0)); then
  echo "skipped must be 0" >&2
  exit 1
fi
exit $((status != 0 || failed != 0))
