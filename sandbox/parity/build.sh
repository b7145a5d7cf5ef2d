#!/usr/bin/env bash
# Builds the named programs (kube-apiserver, kubectl, etcd) from source, once for each version, and prints the path of
# each, one per line.
#
# They are kept outside the source tree, in a folder named for the version, because they take minutes to build and
# stay the same until the version changes. A program is built under another name and renamed when it is whole, so an
# interrupted build is never mistaken for a program; a lock lets two callers share one build.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache="${TENURE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/tenure}"

# The version that a go.mod requires of a module, without its leading v.
version_of() {
    sed -nE "s#^(require)?[[:space:]]*$2 v([^ ]+).*#\2#p" "$here/$1/go.mod"
}

need_go() {
    command -v go >/dev/null && return
    echo "parity: building $1 needs Go 1.26 or newer on PATH (https://go.dev/dl/)" >&2
    exit 1
}

# build PROGRAM MODULE-FOLDER PACKAGE TARGET-FOLDER LDFLAGS
build() {
    local program=$1 module=$2 package=$3 folder=$4 ldflags=$5
    local target="$folder/$program"
    if [[ ! -x $target ]]; then
        need_go "$program"
        mkdir -p "$folder"
        (
            flock 9
            [[ -x $target ]] && exit 0
            echo "parity: building $program into $folder (minutes, once)" >&2
            unfinished="$folder/.$program.$$"
            trap 'rm -f "$unfinished"' EXIT
            cd "$here/$module"
            CGO_ENABLED=0 GOFLAGS=-mod=readonly nice -n 10 \
                go build -trimpath -buildvcs=false -ldflags "-s -w $ldflags" -o "$unfinished" "$package" >&2
            mv "$unfinished" "$target"
        ) 9>"$folder/.lock"
    fi
    echo "$target"
}

kubernetes=$(version_of kubernetes k8s.io/kubernetes)
etcd=$(version_of etcd go.etcd.io/etcd/server/v3)
IFS=. read -r major minor _ <<<"$kubernetes"
# Without these the server calls itself v0.0.0 and clients treat it as ancient.
stamp="k8s.io/component-base/version"
stamps="-X $stamp.gitVersion=v$kubernetes -X $stamp.gitMajor=$major -X $stamp.gitMinor=$minor"

for program in "$@"; do
    case $program in
    kube-apiserver | kubectl)
        build "$program" kubernetes "k8s.io/kubernetes/cmd/$program" "$cache/kubernetes-$kubernetes" "$stamps"
        ;;
    etcd)
        build etcd etcd go.etcd.io/etcd/server/v3 "$cache/etcd-$etcd" ""
        ;;
    *)
        echo "parity: unknown program $program; known: kube-apiserver, kubectl, etcd" >&2
        exit 1
        ;;
    esac
done
