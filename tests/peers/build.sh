#!/usr/bin/env bash
# Checks and builds the contenders, statically, into a folder: tests/peers/build.sh FOLDER
# It needs Go 1.26 or newer and a Rust toolchain. client-go's version is that of the cluster's Kubernetes.
set -euo pipefail
cd "$(dirname "$0")"
folder=$(realpath -m "${1:?"build.sh FOLDER"}")
target=$(realpath -m "${CARGO_TARGET_DIR:-../../target}/peers")

kubernetes=$(sed -n 's/^kubernetes //p' ../cluster/programs/versions)
grep -q "k8s.io/client-go v0.${kubernetes#1.}\$" client-go/go.mod || {
  echo "tests/cluster/programs/versions says kubernetes $kubernetes, tests/peers/client-go/go.mod another client-go; run make cluster-versions" >&2
  exit 1
}
mkdir -p "$folder"

unformatted=$(gofmt -l client-go)
[[ -z $unformatted ]] || { echo "gofmt would change $unformatted" >&2; exit 1; }
(
  cd client-go
  go vet ./...
  CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$folder/client-go" .
)

cargo fmt --manifest-path rust/Cargo.toml --all --check
# The host's target is named, or the flags would apply to procedural macros, too, which are not static.
host=$(rustc -vV | sed -n 's/^host: //p')
export RUSTFLAGS="-C target-feature=+crt-static"
cargo=(--manifest-path rust/Cargo.toml --locked --target "$host" --target-dir "$target")
# Clippy is the compiler here, as it is for cargo clippy, which would compile all that they are made of once more.
RUSTC_WORKSPACE_WRAPPER=$(command -v clippy-driver) CLIPPY_ARGS="-Dwarnings__CLIPPY_HACKERY__" cargo build --quiet "${cargo[@]}" --workspace
for name in kube-lease-manager kube-leader-election; do
  install "$target/$host/debug/$name-contender" "$folder/$name"
done
