#!/usr/bin/env bash
# Runs the reference audit of GraphQL over HTTP (npm graphql-http) against a gateway, and follows a
# subscription with the reference client (npm graphql-ws). Needs node and npm.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh
# shellcheck source=scripts/api.sh
. scripts/api.sh

need node npm
need_gateway

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Versions are fixed: another audit would be another aim.
(cd "$work" && npm init -y && npm install graphql@16.15.0 graphql-http@1.23.1 graphql-ws@6.4.2 ws@8.23.0) >"$work/npm.log" 2>&1 ||
    die "cannot install the audit: $(tail -n 3 "$work/npm.log")"

cat >"$work/audit.mjs" <<'EOF'
import { auditServer } from "graphql-http";
import { createClient } from "graphql-ws";
import WebSocket from "ws";

const gateway = process.argv[2];
const results = await auditServer({ url: `${gateway}/graphql` });
const failed = results.filter((result) => result.status !== "ok");
for (const { status, id, name, reason } of failed) console.log(`${status} ${id} ${name}: ${reason}`);
console.log(`audit: ${results.length - failed.length} of ${results.length}`);

const client = createClient({
  url: `${gateway.replace(/^http/, "ws")}/graphql/ws`,
  webSocketImpl: WebSocket,
});
let updates = 0;
for await (const { data, errors } of client.iterate({
  query: "subscription { pipelineUpdates { revision samplesAccepted } }",
})) {
  if (errors || data.pipelineUpdates.revision <= 0) throw new Error(JSON.stringify(errors ?? data));
  updates += 1;
  if (updates === 2) break;
}
await client.dispose();
console.log(`subscription: ${updates} updates`);
process.exit(failed.length === 0 ? 0 : 1);
EOF
node "$work/audit.mjs" "$GATEWAY"
