#!/usr/bin/env bash
# Asks a running gateway everything its own document allows, and much that it does not: the
# document is validated, then schemathesis makes requests from it and checks every answer against
# it. A fleet and an etcd of its own with the sample in it; all gone afterwards.
#   TEST_API_EXAMPLES (40) requests an operation and kind
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export NEXUS_PID_DIR=$here/.pids/test-api NEXUS_LOG_DIR=$here/logs/test-api
export GATEWAY_PORT_BASE=${GATEWAY_PORT_BASE:-8390}
export STREAMER_METRICS_PORT_BASE=${STREAMER_METRICS_PORT_BASE:-9521}
export COLLECTOR_METRICS_PORT_BASE=${COLLECTOR_METRICS_PORT_BASE:-9621}
unset GATEWAY_URL LOOP_MODE REPLAY_SPEED ETCD_ENDPOINTS AUTH_TOKENS_FILE
source "$here/scripts/lib.sh"
source "$here/scripts/bench-lib.sh"

EXAMPLES=${TEST_API_EXAMPLES:-40}
DIR=$STATE_DIR/test-api
PORT=${TEST_API_ETCD_PORT:-12499}
VENV=$STATE_DIR/schemathesis
API=http://127.0.0.1:$GATEWAY_PORT_BASE

clean_up() {
    scripts/scale.sh all 0 >/dev/null 2>&1 || true
    stop_etcd
}
counted() {
    [[ $(curl -fs --noproxy '*' --max-time 2 "$API/api/v1/clusters/$CLUSTER_ID/stats" | jq '.samples.stored + .samples.queued') == 2470 ]]
}

need etcd curl jq python3
for role in "${ROLES[@]}"; do need_binary "$role"; done
mkdir -p "$DIR" "$LOG_DIR" "$PID_DIR"
if [[ ! -x $VENV/bin/schemathesis ]]; then
    python3 -m venv "$VENV" || die "test-api: python3 has no venv: install python3-venv"
    "$VENV/bin/pip" install --quiet schemathesis==4.32.5 openapi-spec-validator==0.9.0
fi
"$VENV/bin/python" -m openapi_spec_validator docs/openapi.json

trap clean_up EXIT
export UPLOAD_DIR=$DIR/uploads
mkdir -p "$UPLOAD_DIR"
start_etcd
export CSV_FILE=$DIR/sample.csv
"$(binary streamer)" generate --preset sample --out "$CSV_FILE" >/dev/null
scripts/scale.sh collector 1 >/dev/null
scripts/scale.sh gateway 1 >/dev/null
scripts/scale.sh streamer 1 >/dev/null
wait_until 60 counted || die "test-api: the gateway does not count the sample"
# What is asked for at random is not to be streamed.
scripts/scale.sh streamer 0 >/dev/null
# Bodies of remote write are bytes as they come.
cat >"$DIR/hooks.py" <<'END'
import schemathesis


@schemathesis.serializer("application/x-protobuf")
def as_it_is(ctx, value):
    return value if isinstance(value, bytes) else str(value).encode()
END
export SCHEMATHESIS_HOOKS=hooks PYTHONPATH=$DIR
# What streams has no end, and the audit reads everything: neither is asked at random. That agg
# needs step, and end_time may not lie before start_time, a document cannot say: a refusal of what
# it allows is no finding.
"$VENV/bin/schemathesis" run docs/openapi.json --url "$API" --max-examples "$EXAMPLES" --seed 1 \
    --exclude-path-regex '^/(audit|api/v1/telemetry/stream)$' --request-timeout 10 --no-color \
    --exclude-checks "${TEST_API_EXCLUDE:-positive_data_acceptance}"
