#!/usr/bin/env bash
# make kind, make minikube: a cluster made by that tool, with three nodes for pods, with Tenure's image loaded, and the e2e suite on it.
#   scripts/local-cluster.sh kind|minikube [arguments of the e2e program]
# It needs Docker, the tool, and a Rust toolchain for the suite itself. The cluster is called `tenure` and is left up; one
# of that name that is up already is taken as it is. NAME=... names another. Its kubeconfig is target/TOOL-NAME.kubeconfig:
# yours, and the context that you use, stay as they are.
set -euo pipefail
cd "$(dirname "$0")/.."

name=${NAME:-tenure}
version=$(sed -nE '/^\[workspace.package\]/,/^\[/s/^version = "(.*)"$/\1/p' Cargo.toml)
# A repository of no registry: nothing but what is loaded here can be meant.
image=localhost/tenure

needed() { command -v "$1" >/dev/null || { echo "make $tool needs $1: $2" >&2; exit 1; }; }

# The address of this computer as seen from the containers that are the nodes.
gateway() {
  docker network inspect "$1" --format '{{range .IPAM.Config}}{{.Gateway}}{{"\n"}}{{end}}' | grep -m 1 -F .
}

start_kind() {
  if ! grep -qx "$name" <<<"$(kind get clusters 2>/dev/null)"; then
    printf 'kind: Cluster\napiVersion: kind.x-k8s.io/v1alpha4\nnodes: [{role: control-plane}, {role: worker}, {role: worker}, {role: worker}]\n' |
      kind create cluster --name "$name" --wait 180s --config -
  fi
  kind load docker-image "$image:$version" --name "$name"
  kind export kubeconfig --name "$name" --kubeconfig "$kubeconfig"
  network=kind
}

start_minikube() {
  if ! minikube status --profile "$name" >/dev/null 2>&1; then
    minikube start --profile "$name" --driver docker --nodes 3 --wait all
  fi
  minikube image load "$image:$version" --profile "$name"
  # One that was up already has written it elsewhere.
  minikube update-context --profile "$name"
  network=$name
}

tool=${1:-}
case $tool in
  kind) where=https://kind.sigs.k8s.io ;;
  minikube) where=https://minikube.sigs.k8s.io ;;
  *) echo "usage: scripts/local-cluster.sh kind|minikube [arguments of the e2e program]" >&2; exit 2 ;;
esac
shift
needed docker https://docs.docker.com/engine/install
needed "$tool" "$where"
needed cargo https://rustup.rs
docker info >/dev/null 2>&1 || { echo "make $tool: Docker does not answer; is it running, and may you use it (docker info)?" >&2; exit 1; }

mkdir -p target
kubeconfig=$PWD/target/$tool-$name.kubeconfig
# The tool writes there what it otherwise writes into ~/.kube/config.
export KUBECONFIG=$kubeconfig
docker build --tag "$image:$version" .
"start_$tool"
address=$(gateway "$network") || { echo "the network $network of Docker has no gateway with an IPv4 address" >&2; exit 1; }
echo "jobs call this computer at $address"
echo "export KUBECONFIG=$kubeconfig"
IMAGE_REPOSITORY=$image IMAGE_TAG=$version ADDRESS=$address tests/cluster/e2e.sh "$@"
