#!/usr/bin/env bash
# make cluster-versions: brings the go.mod files beside this to the versions of the file `versions`. It changes nothing
# if they agree already. Kubernetes' own parts follow: version 1.N.P of it goes with version 0.N.P of them, and where a
# release has other parts than the one before, they are taken from its go.mod.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
export GOFLAGS=-mod=mod

versions=$PWD/versions
wanted() { sed -n "s/^$1 //p" "$versions"; }

# set_module NAME PACKAGE: the version of one module.
set_module() {
    (cd "$1" && go mod edit -require "$2@v$(wanted "$1")" && go mod tidy)
}

# What the module zip of Kubernetes points at folders that it does not hold.
staged() {
    local module
    module=$(cd /tmp && go mod download -json "k8s.io/kubernetes@v$1" | sed -nE 's/.*"GoMod": "(.*)",/\1/p')
    sed -nE 's#^[[:space:]]*(k8s.io/[^ ]+) => ./staging/.*#\1#p' "$module" | sort -u
}

set_kubernetes() {
    local version part parts arguments=()
    version=$(wanted kubernetes)
    parts=$(staged "$version")
    [[ -n $parts ]] || { echo "k8s.io/kubernetes v$version names no parts of its own" >&2; exit 1; }
    for part in $parts; do arguments+=(-replace "$part=$part@v0.${version#1.}"); done
    for part in $(sed -nE 's#^[[:space:]]*(k8s.io/[^ ]+) => .*#\1#p' kubernetes/go.mod); do
        grep -qxF "$part" <<<"$parts" || arguments+=(-dropreplace "$part")
    done
    (cd kubernetes && go mod edit "${arguments[@]}")
    set_module kubernetes k8s.io/kubernetes
}

set_kubernetes
set_module etcd go.etcd.io/etcd/server/v3
set_module containerd github.com/containerd/containerd/v2
