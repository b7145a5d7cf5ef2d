# shellcheck shell=bash
# Everything of lib/. Sourced, not run.
lib=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
for part in common cgroups machine certificates control images node container packages down; do
    # shellcheck source=/dev/null
    source "$lib/$part.sh"
done
