#!/usr/bin/env bash
# Prints the queries of the Grafana dashboard, one on a line: the panel's title, a tab, the query with its variables
# filled in as for the release `tenure` in namespace `tenure-system`.
#   scripts/dashboard-queries.sh [DASHBOARD]
# It reads the file line by line, as it is written in the repository, and needs no reader of JSON.
set -euo pipefail
dashboard=${1:-$(dirname "$0")/../charts/tenure/files/dashboard.json}

awk '
  /^      "title": "/ { title = $0; sub(/^ *"title": "/, "", title); sub(/",?$/, "", title) }
  /^ +"expr": "/ {
    query = $0
    sub(/^ *"expr": "/, "", query); sub(/",?$/, "", query); gsub(/\\"/, "\"", query)
    printf "%s\t%s\n", title, query
  }' "$dashboard" |
  # shellcheck disable=SC2016 # the dashboard's variables, not this script's
  sed -e 's/\$namespace/tenure-system/g' -e 's/\$lease/tenure/g' -e 's/\$jobs/.*/g' -e 's/\$job/.*/g'
