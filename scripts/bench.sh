#!/usr/bin/env bash
# The figures of the release binary: start lateness, API requests, memory. Arguments are those of the `bench` binary.
set -euo pipefail
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}
cargo build --quiet --release --package tenure --bin tenure
cargo build --quiet --release --package sandbox --bin sandbox
cargo build --quiet --release --package trials --bin bench
exec "$target/release/bench" --tenure "$target/release/tenure" --sandbox "$target/release/sandbox" "$@"
