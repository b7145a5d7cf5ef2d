#!/usr/bin/env bash
# make cluster-versions: writes the go.mod files beside this anew for the versions of the file `versions`; what they say
# above their first requirement stays. Kubernetes' own parts follow: version 1.N.P of it goes with version 0.N.P of them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
export GOFLAGS=-mod=mod

# set_module NAME MODULE: requires one module in its version, and lets Go find the rest. Standard input: what is
# replaced.
set_module() {
    local version head
    version=$(sed -n "s/^$1 //p" versions)
    [[ -n $version ]] || { echo "versions names no version of $1" >&2; exit 1; }
    head=$(sed '/^require/,$d' "$1/go.mod")
    {
        printf '%s\n\n' "$head"
        echo "require $2 v$version"
        cat
    } >"$1/go.mod"
    (cd "$1" && go mod tidy)
}

# The parts that the module of Kubernetes points at folders which its published archive does not hold.
parts() {
    local version module
    version=$(sed -n 's/^kubernetes //p' versions)
    module=$(cd / && go mod download -json "k8s.io/kubernetes@v$version" | sed -nE 's/.*"GoMod": "(.*)",/\1/p')
    echo "replace ("
    sed -nE "s#^[[:space:]]*(k8s.io/[^ ]+) => ./staging/.*#\t\1 => \1 v0.${version#1.}#p" "$module" | sort -u
    echo ")"
}

replaced=$(parts)
set_module kubernetes k8s.io/kubernetes <<<"$replaced"
set_module etcd go.etcd.io/etcd/server/v3 </dev/null
set_module containerd github.com/containerd/containerd/v2 </dev/null
set_module coredns github.com/coredns/coredns </dev/null

# The contender on client-go goes with the cluster.
client=v0.$(sed -n 's/^kubernetes 1\.//p' versions)
(cd ../../peers/client-go && go get "k8s.io/client-go@$client" "k8s.io/apimachinery@$client" && go mod tidy)
