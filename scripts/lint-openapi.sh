#!/usr/bin/env bash
# Checks docs/openapi.yaml by the rules of .redocly.yaml (npm @redocly/cli). Needs node and npm.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$here/scripts/lib.sh"

need node npm
# The version is fixed: other rules would be another aim.
CLI=$STATE_DIR/redocly-2.77.0
if [[ ! -x $CLI/node_modules/.bin/redocly ]]; then
    mkdir -p "$CLI"
    (cd "$CLI" && npm init -y && npm install @redocly/cli@2.77.0) >"$CLI/npm.log" 2>&1 ||
        die "lint-openapi: cannot install the linter: $(tail -n 3 "$CLI/npm.log")"
fi
# It is asked for nothing but the document.
REDOCLY_TELEMETRY=off "$CLI/node_modules/.bin/redocly" lint --config .redocly.yaml docs/openapi.yaml
