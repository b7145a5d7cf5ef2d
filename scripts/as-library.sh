#!/usr/bin/env bash
# Builds tests/as-library, a crate outside the workspace: what a user of the library writes, with the version of
# k8s-openapi that the user chooses. Its lock file is a copy of ours, so that the versions are the ones tested here.
set -euo pipefail
cd "$(dirname "$0")/.."

cp Cargo.lock tests/as-library/Cargo.lock
cargo clippy --manifest-path tests/as-library/Cargo.toml --target-dir target --all-targets -- -D warnings
# The whole of the binary's own dependencies must stay out of a user's build.
tree=$(cargo tree --manifest-path tests/as-library/Cargo.toml --edges normal --prefix none)
for crate in axum clap croner prometheus sandbox; do
  if grep -q "^$crate v" <<<"$tree"; then
    echo "tests/as-library depends on $crate, which only the binary needs" >&2
    exit 1
  fi
done
