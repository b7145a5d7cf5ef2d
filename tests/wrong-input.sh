#!/usr/bin/env bash
# The table of docs/wrong-input.md on a real API server with RBAC, by the tests that `make test` plays on the sandbox.
#   PARITY_AUTHORIZATION=RBAC sandbox/parity/run.sh tests/wrong-input.sh
# `make wrong-input` does. The server is taken for the tests' own: they install, remove and grant as they need.
set -euo pipefail
cd "$(dirname "$0")/.."

: "${KUBECONFIG:?run it by sandbox/parity/run.sh}"
output=$(mktemp)
trap 'rm -f "$output"' EXIT
status=0
# One after the other: there is one server, and one set of definitions in it.
WRONG_INPUT_KUBECONFIG=$KUBECONFIG cargo test --quiet --all-features --test it wrong_input:: -- \
  --nocapture --test-threads 1 2>&1 | tee "$output" || status=1
# Every row of the table, or something was not played.
rows=$(grep -c '^| ' docs/wrong-input.md) played=$(grep -cE '(^|[^A-Z])(as in the table|NOT IN THE TABLE) ' "$output" || true)
# The first one is the head.
echo "$played of $((rows - 1)) rows of docs/wrong-input.md were played on a real API server"
exit $((status != 0 || played != rows - 1))
