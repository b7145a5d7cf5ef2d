#!/usr/bin/env bash
# Builds the named programs from source, once for each version, and prints the path of each, one per line.
#
# They are kept outside the source tree, in a folder named for the version, because they take minutes to build and
# stay the same until the version changes. A program is built under another name and renamed when it is whole, so an
# interrupted build is never mistaken for a program; a lock lets two callers share one build.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache="${TENURE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/tenure}"

# version NAME MODULE: the version of the file `versions`, which the go.mod of the same name must agree with.
version() {
    local wanted required
    wanted=$(sed -n "s/^$1 //p" "$here/versions")
    required=$(sed -nE "s#^(require)?[[:space:]]*$2 v([^ ]+).*#\2#p" "$here/$1/go.mod")
    if [[ $wanted != "$required" ]]; then
        echo "build: tests/cluster/programs/versions says $1 $wanted, its go.mod $required; run make cluster-versions" >&2
        return 1
    fi
    echo "$wanted"
}

need_go() {
    command -v go >/dev/null && return
    echo "build: building $1 needs Go 1.26 or newer on PATH (https://go.dev/dl/)" >&2
    exit 1
}

# build PROGRAM MODULE PACKAGE TARGET-FOLDER LDFLAGS [TAGS]
build() {
    local program=$1 module=$2 package=$3 folder=$4 ldflags=$5 tags=${6:-}
    local target="$folder/$program"
    if [[ ! -x $target ]]; then
        need_go "$program"
        mkdir -p "$folder"
        (
            flock 9
            [[ -x $target ]] && exit 0
            echo "build: building $program into $folder (minutes, once)" >&2
            unfinished="$folder/.$program.$$"
            trap 'rm -f "$unfinished"' EXIT
            cd "$here/$module"
            CGO_ENABLED=0 GOFLAGS=-mod=readonly nice -n 10 go build -p "$(nproc)" -trimpath -buildvcs=false \
                -tags "$tags" -ldflags "-s -w $ldflags" -o "$unfinished" "$package" >&2
            mv "$unfinished" "$target"
        ) 9>"$folder/.lock"
    fi
    echo "$target"
}

kubernetes=$(version kubernetes k8s.io/kubernetes)
etcd=$(version etcd go.etcd.io/etcd/server/v3)
containerd=$(version containerd github.com/containerd/containerd/v2)
coredns=$(version coredns github.com/coredns/coredns)
IFS=. read -r major minor _ <<<"$kubernetes"
# Without these the server calls itself v0.0.0 and clients treat it as ancient.
stamp="k8s.io/component-base/version"
stamps="-X $stamp.gitVersion=v$kubernetes -X $stamp.gitMajor=$major -X $stamp.gitMinor=$minor"

for program in "$@"; do
    case $program in
    kube-apiserver | kube-controller-manager | kube-scheduler | kubelet | kube-proxy | kubectl)
        build "$program" kubernetes "k8s.io/kubernetes/cmd/$program" "$cache/kubernetes-$kubernetes" "$stamps"
        ;;
    etcd)
        build etcd etcd go.etcd.io/etcd/server/v3 "$cache/etcd-$etcd" ""
        ;;
    containerd | containerd-shim-runc-v2 | ctr)
        # The snapshotters left out need headers of C libraries, or devices.
        build "$program" containerd "github.com/containerd/containerd/v2/cmd/$program" "$cache/containerd-$containerd" \
            "-X github.com/containerd/containerd/v2/version.Version=v$containerd" "no_btrfs no_devmapper no_zfs"
        ;;
    coredns)
        build coredns coredns . "$cache/coredns-$coredns" ""
        ;;
    *)
        echo "build: unknown program $program" >&2
        exit 1
        ;;
    esac
done
