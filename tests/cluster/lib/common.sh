# shellcheck shell=bash
# What every script of the test cluster needs. Sourced, not run.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
helper_arguments=("$@")
# shellcheck source=../settings.sh
source "$here/settings.sh"

say() { echo "cluster: $*" >&2; }
fail() {
    say "$*"
    exit 1
}

# await SECONDS WHAT LOG COMMAND...: until the command succeeds. When the time is over, says so, shows the end of the
# log and ends the script.
await() {
    local limit=$1 what=$2 log=$3 deadline=$((SECONDS + $1))
    shift 3
    until "$@" >/dev/null 2>&1; do
        if ((SECONDS >= deadline)); then
            say "$what: not within $limit s; the log is $log, its end:"
            # The log may be a pattern of several.
            # shellcheck disable=SC2086
            tail -n 15 $log >&2 || true
            exit 1
        fi
        sleep 0.2
    done
}

# One at a time: two callers would take each other's machines down.
take_lock() {
    mkdir -p "$cache/cluster"
    exec 9>"$cache/cluster/.$cluster_name.lock"
    flock --timeout "$lock_within" 9 || fail "another make cluster or cluster-down holds $cache/cluster/.$cluster_name.lock"
}

# program NAME: the path of a program that make cluster has built.
program() { echo "$run/programs/$1"; }

kubectl() { "$(program kubectl)" --kubeconfig "$kubeconfig" "$@"; }

require_root() {
    [[ $(uname -s) == Linux ]] || fail "it runs on Linux only: it is made of Linux namespaces. Elsewhere make e2e takes the cluster that KUBECONFIG names"
    ((EUID == 0)) || fail "it must run as root (namespaces, mounts, cgroups): sudo -E make $1"
}

require_running() {
    [[ -f $run/up ]] || fail "no cluster is up in $run; start one with make cluster"
    come_home
}

# A helper that is called by what runs with the network of `outside` goes back to the network of this computer first:
# there the API server is reached over loopback. The forwarder, which makes that so, lives in it.
come_home() {
    local forwarder home
    read -r forwarder _ <"$run/forwarder" || return 0
    home="/proc/$forwarder/ns/net"
    [[ ! -e $home || $(readlink "$home") == "$(readlink /proc/self/ns/net)" ]] && return
    exec nsenter --net="$home" -- "$0" "${helper_arguments[@]}"
}

require_node() {
    local node
    for node in "${nodes[@]}"; do [[ $node == "${1:-}" ]] && return; done
    fail "'${1:-}' is no node; the nodes are ${nodes[*]}"
}
