#!/usr/bin/env bash
# Prints the path of a usable kubectl: the one on PATH, else one built from source at the version of the parity run.
set -euo pipefail
command -v kubectl || "$(dirname "${BASH_SOURCE[0]}")/../../tests/cluster/programs/build.sh" kubectl
