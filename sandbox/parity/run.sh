#!/usr/bin/env bash
# Starts a real etcd and kube-apiserver on loopback and holds the conformance suite against them:
#   1. one session of kubectl must print the same on both;
#   2. the recording must be what the real server answers now (PARITY_RECORD=1 writes it anew instead);
#   3. the sandbox must answer as recorded, but for the differences that are listed with a reason.
# Everything it starts it ends, and everything it writes is in a folder that it removes.
set -euo pipefail
# Each program in a process group of its own, so that it ends with all that it started.
set -m

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ready_within=60

mapfile -t programs < <("$here/../../tests/cluster/programs/build.sh" kube-apiserver etcd)
if [[ ${#programs[@]} -ne 2 ]]; then
    echo "parity: the programs could not be built" >&2
    exit 1
fi
apiserver=${programs[0]} etcd=${programs[1]}

folder=$(mktemp -d)
# Whatever is written by the way, by the programs started here too.
export TMPDIR="$folder"
started=()
finish() {
    # The last one started is the first to end: the API server waits for its store when it stops, so it is not asked
    # to stop but killed. Both hold nothing that anyone wants.
    for ((i = ${#started[@]} - 1; i >= 0; i--)); do
        kill -KILL -- "-${started[i]}" 2>/dev/null || true
        wait "${started[i]}" 2>/dev/null || true
    done
    rm -rf "$folder"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Runs a command so that a signal to this script is heard at once, not when the command has ended.
attend() {
    "$@" &
    started+=($!)
    wait $!
}

# A port of loopback that nobody listens on.
free_port() {
    local port
    while true; do
        port=$((20000 + RANDOM))
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
    done
    echo "$port"
}

# wait_for NAME LOG COMMAND...: until the command succeeds, or the program has ended, or the time is over.
wait_for() {
    local name=$1 log=$2 pid=${started[-1]} deadline=$((SECONDS + ready_within))
    shift 2
    until "$@" >/dev/null 2>&1; do
        if ! kill -0 "$pid" 2>/dev/null || ((SECONDS > deadline)); then
            echo "parity: $name did not become ready within $ready_within s; the end of its log:" >&2
            tail -n 20 "$log" >&2
            exit 1
        fi
        sleep 0.2
    done
}

store=$(free_port) peer=$(free_port) port=$(free_port)
"$etcd" --data-dir "$folder/etcd" --unsafe-no-fsync --log-level error \
    --listen-client-urls "http://127.0.0.1:$store" --advertise-client-urls "http://127.0.0.1:$store" \
    --listen-peer-urls "http://127.0.0.1:$peer" --initial-advertise-peer-urls "http://127.0.0.1:$peer" \
    --initial-cluster "default=http://127.0.0.1:$peer" >"$folder/etcd.log" 2>&1 &
started+=($!)
wait_for etcd "$folder/etcd.log" curl -fsS "http://127.0.0.1:$store/readyz"

token=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
echo "$token,conformance,conformance,system:masters" >"$folder/tokens.csv"
# What else a COMMAND may need of the server: RBAC instead of no check at all, and an audit log in the file it names.
flags=(--authorization-mode "${PARITY_AUTHORIZATION:-AlwaysAllow}")
if [[ -n ${PARITY_AUDIT:-} ]]; then
    printf 'apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: Metadata}]\n' >"$folder/audit-policy.yaml"
    flags+=(--audit-policy-file "$folder/audit-policy.yaml" --audit-log-path "$PARITY_AUDIT")
fi
openssl genrsa -out "$folder/accounts.key" 2048 2>/dev/null
# The server listens on loopback only, but does not let itself be advertised there; nobody dials what is advertised.
"$apiserver" --etcd-servers "http://127.0.0.1:$store" --bind-address 127.0.0.1 --secure-port "$port" \
    --advertise-address 192.0.2.1 --cert-dir "$folder/certificates" \
    --token-auth-file "$folder/tokens.csv" --anonymous-auth=false "${flags[@]}" \
    --service-cluster-ip-range 10.96.0.0/24 --service-account-issuer https://kubernetes.default.svc \
    --service-account-key-file "$folder/accounts.key" --service-account-signing-key-file "$folder/accounts.key" \
    >"$folder/apiserver.log" 2>&1 &
started+=($!)
wait_for kube-apiserver "$folder/apiserver.log" curl -fsS --cacert "$folder/certificates/apiserver.crt" \
    --header "Authorization: Bearer $token" "https://127.0.0.1:$port/readyz"

export PARITY_KUBECONFIG="$folder/kubeconfig"
(umask 077 && cat >"$PARITY_KUBECONFIG") <<KUBECONFIG
apiVersion: v1
kind: Config
clusters:
- name: real
  cluster: {server: "https://127.0.0.1:$port", certificate-authority: "$folder/certificates/apiserver.crt"}
users:
- name: conformance
  user: {token: "$token"}
contexts:
- name: real
  context: {cluster: real, user: conformance, namespace: default}
current-context: real
KUBECONFIG

if [[ $# -gt 0 ]]; then
    # Anything else that wants a real server for its lifetime: run.sh COMMAND...
    export KUBECONFIG=$PARITY_KUBECONFIG
    attend "$@"
    exit
fi
cd "$here/../.."
attend cargo build --quiet --package sandbox
mkfifo "$folder/alive"
"${CARGO_TARGET_DIR:-target}/debug/sandbox" --kubeconfig "$folder/sandbox" --until-stdin-closes \
    <"$folder/alive" >"$folder/sandbox.log" 2>&1 &
started+=($!)
# It ends when this script does, however that comes about.
exec 8>"$folder/alive"
wait_for sandbox "$folder/sandbox.log" test -s "$folder/sandbox"

# kubectl comes first: it prints what all namespaces hold.
KUBECONFIG=$PARITY_KUBECONFIG attend "$here/kubectl-session.sh" >"$folder/session.real"
KUBECONFIG=$folder/sandbox attend "$here/kubectl-session.sh" >"$folder/session.sandbox"
failed=0
if diff --unified=8 --label "real API server" "$folder/session.real" --label sandbox "$folder/session.sandbox"; then
    echo "kubectl: $(grep -c '^\$ ' "$folder/session.real") commands print the same on both"
else
    echo "parity: kubectl prints something else on the sandbox than on the real API server" >&2
    failed=1
fi
attend cargo test --quiet --package sandbox --test parity || failed=1
attend cargo test --quiet --package sandbox --test conformance || failed=1
exit "$failed"
