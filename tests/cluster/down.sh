#!/usr/bin/env bash
# make cluster-down: ends everything that make cluster has started, also when that was cut off, and looks whether
# anything is left.
set -euo pipefail
# shellcheck source=lib/all.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/all.sh"

require_root cluster-down
take_lock
take_down
left=$(leftovers)
[[ -z $left ]] || fail "this is left:"$'\n'"$left"
say "nothing is left of it"
