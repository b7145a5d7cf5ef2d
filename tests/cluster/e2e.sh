#!/usr/bin/env bash
# make e2e: Tenure under faults on a real cluster, judged from outside it.
#   tests/cluster/e2e.sh [arguments of the e2e program, such as --families pod-deleted --trials-scale 0.1]
# Without KUBECONFIG it boots the test cluster (up.sh: IMAGE and TENURE_BINARY say what is loaded) and leaves it up. With
# KUBECONFIG it takes the cluster that is named there: then IMAGE_REPOSITORY and IMAGE_TAG name an image that its nodes
# can pull, ADDRESS is an address of this computer that its pods reach, and the families that need hands on the nodes are
# not applicable.
# TENURE_DYNAMIC names a dynamically linked binary for the replica whose time of day is wrong; without it, or if it is no
# file, one is built. If no image comes of it, that family is not applicable.
# On a cluster that is given, SKEWED_IMAGE names such an image (tests/cluster/skewed-image.sh shows what is in it), and
# FRONT_CERTIFICATE and FRONT_KEY a certificate for ADDRESS of an authority that its pods trust; without it, the families in
# which the replicas come by a front are not applicable.
# FULL=1 runs every trial (about 34 minutes); otherwise one of each family (about 10 minutes). The table of all families is
# printed at the end, and written to target/e2e/table.md.
set -euo pipefail
cd "$(dirname "$0")/../.."

namespace=tenure-system
rollout_within=180s
probe_port=9901
# So small a share is one trial of each family.
scale=0
[[ ${FULL:-} != 1 ]] || scale=1

cargo build --quiet --package trials --bin e2e
e2e=$(realpath "${CARGO_TARGET_DIR:-target}/debug/e2e")
helm=$(scripts/helm.sh)
commit=$(git describe --always --dirty --abbrev=10 2>/dev/null || echo unknown)
arguments=(--probe-port "$probe_port" --namespace "$namespace" --trials-scale "$scale" --commit "$commit")
prefix=() settings=()

# The name of the image whose time of day can be wrong.
skewed_image() {
  local binary=${TENURE_DYNAMIC:-} folder=${CARGO_TARGET_DIR:-target}
  if [[ -z $binary ]]; then
    cargo build --quiet --release --locked --package tenure --bin tenure >&2 && binary=$folder/release/tenure
  elif [[ ! -f $binary ]]; then
    echo "e2e: $binary is not there: building it" >&2
    cargo build --quiet --all-features --bin tenure >&2 && binary=$folder/debug/tenure
  fi
  tests/cluster/skewed-image.sh "$binary"
}
if [[ -n ${KUBECONFIG:-} ]]; then
  : "${IMAGE_REPOSITORY:?names an image that the nodes of that cluster can pull}"
  : "${ADDRESS:?an address of this computer that pods of that cluster reach}"
  settings=(--set "image.repository=$IMAGE_REPOSITORY" --set "image.tag=${IMAGE_TAG:-}")
  [[ -z ${SKEWED_IMAGE:-} ]] || arguments+=(--skewed-image "$SKEWED_IMAGE")
  [[ -z ${FRONT_CERTIFICATE:-} ]] || arguments+=(--front-certificate "$FRONT_CERTIFICATE" --front-key "${FRONT_KEY:?}")
else
  tests/cluster/up.sh
  tests/cluster/clear.sh >&2
  # shellcheck source=tests/cluster/lib/all.sh
  source tests/cluster/lib/all.sh
  export KUBECONFIG=$kubeconfig
  ADDRESS=$outside_address
  make_front_certificate
  arguments+=(--faults "$PWD/tests/cluster/faults" --front-certificate "$front_certificate" --front-key "$front_key")
  prefix=("$PWD/tests/cluster/faults/outside")
  # A tag says nothing of what is loaded: the pods of what was loaded before are replaced because of this.
  settings=(--set-string "podAnnotations.loaded=$(cat "$run/tenure.sha256" 2>/dev/null || echo none)")
  if skewed=$(skewed_image); then
    arguments+=(--skewed-image "$skewed")
  else
    echo "e2e: no image whose time of day can be wrong: the family wall-clock is not applicable" >&2
  fi
fi
"$helm" upgrade --install tenure charts/tenure --namespace "$namespace" --create-namespace --wait --timeout "$rollout_within" \
  "${settings[@]}" --set-json 'extraEnv=[{"name":"TENURE_PROBE","value":"'"$ADDRESS:$probe_port"'"}]' >/dev/null
"${prefix[@]}" "$e2e" --address "$ADDRESS" "${arguments[@]}" "$@"
