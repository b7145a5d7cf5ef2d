#!/usr/bin/env bash
# make e2e-peers: Tenure beside client-go's elector, kube-lease-manager and kube-leader-election under the same faults, and
# Tenure and client-go handing one Lease to each other. See ../peers/README.md.
#   tests/cluster/peers.sh [arguments of the peers program, such as --families pod-frozen --trials 2 --hand-overs 0]
# It boots the test cluster (up.sh: IMAGE and TENURE_BINARY say what is loaded) and leaves it up. FULL=1 strikes five times
# by each fault, twice where the contenders come by a front, and hands over 30 times in each direction (about 43 minutes);
# otherwise five of the faults strike once, and two hand-overs are made. The table of all is printed at the end, and written
# to target/peers-evidence/table.md.
set -euo pipefail
cd "$(dirname "$0")/../.."

namespace=tenure-peers
rollout_within=180s
deletion_within=120s
# What is on two nodes of three, as each contender has two pods; a fault never meets both.
peers_nodes=(node-1 node-2)
image=localhost/tenure-cluster/peers:1
trials=1 hand_overs=2
[[ ${FULL:-} != 1 ]] || trials=5 hand_overs=30

tests/cluster/up.sh
# shellcheck source=lib/all.sh
source tests/cluster/lib/all.sh
export KUBECONFIG=$kubeconfig

# One image with all of them, made anew when anything of them has changed.
load_contenders() {
  local context archive
  context="$cache/cluster-images/peers-$(find tests/peers -type f ! -name '*.md' -exec sha256sum {} + | sort | sha256sum | cut -c1-12)"
  archive="$context.tar"
  if [[ ! -f $archive ]]; then
    say "checking and building the contenders (minutes, once)"
    tests/peers/build.sh "$context"
    build_image "$image" "$archive" tests/peers/Dockerfile "$context"
    rm -rf "$context"
  fi
  load_image "$archive"
}

# contender NAME REPLICAS PORT PROGRAM ARGUMENTS...: its Deployment.
contender() {
  local name=$1 replicas=$2 port=$3 program=$4 argument command
  shift 4
  command="\"/$program\""
  for argument in "--namespace=$namespace" "$@"; do command+=", \"$argument\""; done
  sed -e "s#CONTENDER#$name#" -e "s#REPLICAS#$replicas#" -e "s#IMAGE#$image#" \
    -e "s#COMMAND#$command#" -e "s#ADDRESS#$outside_address:$port#" tests/peers/contender.yaml
}

# All of them may release their Lease: that is the best that each can do.
contenders() {
  cat tests/peers/peers.yaml
  contender client-go 2 9912 client-go --lease=client-go --release-on-cancel
  contender kube-lease-manager 2 9913 kube-lease-manager --lease=kube-lease-manager --release-on-cancel
  contender kube-leader-election 2 9914 kube-leader-election --lease=kube-leader-election --release-on-cancel
  contender prompt-client-go 1 9915 client-go --lease=prompt-tenure --release-on-cancel
  contender slow-client-go 1 9916 client-go --lease=slow-tenure --release-on-cancel --stop-takes=3s
}

# tenure RELEASE REPLICAS PORT: the chart, on the same nodes. Its Lease is named as the release.
tenure() {
  "$helm" install "$1" charts/tenure --namespace "$namespace" --wait --timeout "$rollout_within" --set crds.enabled=false \
    --set "replicas=$2,podLabels.peers=$1,nodeSelector.tenure-peers=yes" --set-json 'topologySpreadConstraints=[{"maxSkew":1,
      "topologyKey":"kubernetes.io/hostname","whenUnsatisfiable":"DoNotSchedule","matchLabelKeys":["pod-template-hash"]}]' \
    --set-json 'extraEnv=[{"name":"TENURE_PROBE","value":"'"$outside_address:$3"'"}]' >/dev/null
}

cargo build --quiet --package trials --bin peers
helm=$(scripts/helm.sh)
commit=$(git describe --always --dirty --abbrev=10 2>/dev/null || echo unknown)
load_contenders
make_front_certificate
kubectl delete namespace "$namespace" --ignore-not-found --timeout "$deletion_within"
kubectl label --overwrite node "${peers_nodes[@]}" tenure-peers=yes >/dev/null
kubectl apply --server-side --force-conflicts --kustomize deploy/crds >/dev/null
contenders | kubectl apply --filename - >/dev/null
tenure tenure 2 9911
tenure prompt-tenure 1 9915
tenure slow-tenure 1 9916
kubectl --namespace "$namespace" wait --for=condition=Available --timeout "$rollout_within" deployment --all >/dev/null
tests/cluster/faults/outside "$(realpath "${CARGO_TARGET_DIR:-target}/debug/peers")" --address "$outside_address" \
  --faults "$PWD/tests/cluster/faults" --front-certificate "$front_certificate" --front-key "$front_key" --trials "$trials" --hand-overs "$hand_overs" \
  --commit "$commit" "$@"
