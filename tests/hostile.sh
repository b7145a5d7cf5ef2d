#!/usr/bin/env bash
# A hostile tenant's objects on a real API server: what one namespace writes, no other may feel.
#   PARITY_AUTHORIZATION=RBAC sandbox/parity/run.sh tests/hostile.sh
# `make hostile` does. The server is taken for its own. Each condition is printed; the exit code is 1 if one does not hold.
# shellcheck disable=SC2317 # conditions are called by their names
set -euo pipefail
cd "$(dirname "$0")/.."

: "${KUBECONFIG:?run it by sandbox/parity/run.sh}"
kubectl=$(sandbox/parity/kubectl.sh)
tenure="${CARGO_TARGET_DIR:-target}/debug/tenure"
work=$(mktemp -d)
within_s=30
# What the tenant has written, and nobody else may read.
marker=a-tenant-s-own-text
replica='' failures=0

# Ends the replica, if there is one.
end() {
  [[ -n $replica ]] || return 0
  kill -TERM "$replica" 2>/dev/null || true
  wait "$replica" || true
}
trap 'end; rm -rf "$work"' EXIT

# holds WHAT COMMAND...: within a while.
holds() {
  local what=$1 deadline=$((SECONDS + within_s))
  shift
  until "$@"; do
    if ((SECONDS > deadline)); then
      echo "FAILED  $what"
      failures=$((failures + 1))
      return
    fi
    sleep 0.2
  done
  echo "ok      $what"
}

# nested LEVELS: JSON of so many objects in each other.
nested() {
  printf '{"f:a":%.0s' $(seq "$1")
  printf '"%s"' "$marker"
  printf '}%.0s' $(seq "$1")
}

periodic_job() {
  printf '{"apiVersion":"tenure.dev/v1alpha1","kind":"PeriodicJob","metadata":{"name":"%s","namespace":"%s"},"spec":{"interval":"1s",%s}}' "$@"
}

ran() { [[ $("$kubectl" -n quiet get periodicjob good -o 'jsonpath={.status.counts.ran}') -ge $1 ]]; }
event_says() { "$kubectl" -n "$1" get events -o 'jsonpath={.items[*].note}{.items[*].message}' | grep -q "$2"; }
ready() { curl -fs "http://$admin/readyz" >/dev/null; }
# start NUMBER: a replica, after the one before it has ended.
start() {
  end
  local port
  # One of loopback that nobody listens on.
  until port=$((20000 + RANDOM)) && ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do :; done
  admin=127.0.0.1:$port
  # The tenants' target is this machine's own.
  "$tenure" run --namespace default --identity "replica-$1" --admin-address "$admin" \
    --egress-allow 127.0.0.0/8 --termination-grace-period 30s >>"$work/log" 2>&1 &
  replica=$!
}

cargo build --quiet --all-features --bin tenure
"$kubectl" apply --kustomize deploy/crds >/dev/null
"$kubectl" wait --for condition=Established --timeout "${within_s}s" crd/periodicjobs.tenure.dev >/dev/null
"$kubectl" create namespace quiet >/dev/null
"$kubectl" create namespace hostile >/dev/null

echo 'Objects that no parser follows'
http='"http":{"url":"http://127.0.0.1:9/"}'
periodic_job good quiet "$http" | "$kubectl" create -f - >/dev/null
periodic_job deep hostile "\"jobTemplate\":$(printf '{"spec":{"x":%s}}' "$(nested 200)")" |
  "$kubectl" create --validate=false -f - >/dev/null
start 1
holds 'a replica that starts is ready' ready
holds 'the job of another namespace runs' ran 3
holds 'the namespace of the object has an Event that says why' event_says hostile 'nested more than 127 levels deep'
periodic_job deeper hostile "\"jobTemplate\":$(printf '{"spec":{"x":%s}}' "$(nested 900)")" |
  "$kubectl" create --validate=false -f - >/dev/null
before=$("$kubectl" -n quiet get periodicjob good -o 'jsonpath={.status.counts.ran}')
holds 'the job goes on beside one more that comes by the watch' ran $((before + 3))
start 2
holds 'the next replica is ready' ready
before=$("$kubectl" -n quiet get periodicjob good -o 'jsonpath={.status.counts.ran}')
holds 'and runs the job' ran $((before + 3))
if grep -q "$marker" "$work/log"; then
  echo 'FAILED  no log shows what the tenant has written'
  failures=$((failures + 1))
else
  echo 'ok      no log shows what the tenant has written'
fi

((failures == 0)) || { echo "$failures conditions do not hold; the end of the replicas' log:"; tail -n 20 "$work/log"; }
exit $((failures != 0))
