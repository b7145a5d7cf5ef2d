#!/usr/bin/env bash
# Aimed kills of the release binary, judged from outside; then the same with a guard that always says yes, which must fail.
#
#   scripts/kills.sh                      the full number of trials
#   scripts/kills.sh --trials-scale 0.2   a fifth of them (CI); every argument is one of the `kills` binary
#
# TENURE_BINARY is a release binary to judge in place of the one that is built here. KILLS_PROFILE=dev builds the judge, and
# the API server in it, without the optimiser: that takes minutes less, and the judge some of the processor's time more.
#
# Exits 1 if a family fails, or if the broken binary passes; 2 if the trials could not be run.
set -euo pipefail
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}
profile=${KILLS_PROFILE:-release}
tenure=${TENURE_BINARY:-$target/release/tenure}

# Each package on its own: built together, the features of the one would be the features of the other.
[[ -n ${TENURE_BINARY:-} ]] || cargo build --quiet --release --package tenure --bin tenure
cargo build --quiet --profile "$profile" --package trials --bin kills
kills=$target/${profile/#dev/debug}/kills

status=0
"$kills" --tenure "$tenure" "$@" || status=$?
((status == 0)) || exit "$status"

# Each freeze of the broken binary lets the old leader work beside its successor: a few trials are enough.
broken=$(scripts/broken.sh --build election-06-guard-always-yes)
echo
echo "The same with a guard that always says yes, which must fail:"
status=0
report=$("$kills" --tenure "$broken" --families stop --trials-scale 0.1 --directory "$target/kills/guard-always-yes") ||
  status=$?
echo "$report"
((status <= 1)) || exit "$status"
# It must fail for its own fault, not for one that is in the rest too.
if ((status == 0)) || ! grep -q '^FAILED .*\(overlap their successor\|of an old token\)' <<<"$report"; then
  echo "the guard that always says yes was not caught: these trials prove nothing" >&2
  exit 1
fi
echo "the guard that always says yes was caught, as it must be"
