#!/usr/bin/env bash
# Measures how soon a gateway that is started before a full store answers for all of it. Fills an
# etcd of its own with BENCH_START_SAMPLES (50 million) and starts a gateway BENCH_START_RUNS (3)
# times: first as the blocks were committed, then merged. Everything is gone afterwards.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export NEXUS_PID_DIR=$here/.pids/bench-start NEXUS_LOG_DIR=$here/logs/bench-start
export GATEWAY_PORT_BASE=${GATEWAY_PORT_BASE:-8295}
export STREAMER_METRICS_PORT_BASE=${STREAMER_METRICS_PORT_BASE:-9531}
export COLLECTOR_METRICS_PORT_BASE=${COLLECTOR_METRICS_PORT_BASE:-9631}
unset GATEWAY_URL LOOP_MODE REPLAY_SPEED ETCD_ENDPOINTS
source "$here/scripts/lib.sh"
source "$here/scripts/bench-lib.sh"

SAMPLES=${BENCH_START_SAMPLES:-50000000}
RUNS=${BENCH_START_RUNS:-3}
PER_SECOND=$((31 * 8 * 8)) # the wide layout has eight metrics
TELEMETRY_SECONDS=$(((SAMPLES + PER_SECOND - 1) / PER_SECOND))
TOTAL=$((TELEMETRY_SECONDS * PER_SECOND))
DIR=$STATE_DIR/bench-start
PORT=${BENCH_ETCD_PORT:-12509}
API=http://127.0.0.1:$GATEWAY_PORT_BASE

clean_up() {
    scripts/scale.sh all 0 >/dev/null 2>&1 || true
    stop_etcd
    rm -rf "$DIR"
}
stats() { curl -fs --noproxy '*' --max-time 2 "$API/api/v1/clusters/$CLUSTER_ID/stats"; }
stored() { [[ $(stats | jq '.samples.stored') == "$TOTAL" ]]; }
counted() { [[ $(stats | jq '.samples.stored + .samples.queued') == "$TOTAL" ]]; }
merged() { (($(stats | jq '.blocks') < 2000)); }

# starts NAME: starts a gateway RUNS times, each beginning with nothing.
starts() {
    local n began took pid
    for ((n = 1; n <= RUNS; n++)); do
        scripts/scale.sh gateway 0 >/dev/null
        began=$EPOCHREALTIME
        detach "$LOG_DIR/gateway-1.log" env PORT="$GATEWAY_PORT_BASE" "$(binary gateway)" run --instance-id gateway-1
        pid=$DETACHED_PID
        until counted; do
            if ! [[ $(command_of "$pid") ]]; then die "bench-start: the gateway ended; see $LOG_DIR/gateway-1.log"; fi
            awk "BEGIN { exit !($EPOCHREALTIME - $began < 60) }" || die "bench-start: no full view within 60 s"
            sleep 0.02
        done
        took=$(awk "BEGIN { printf \"%.2f\", $EPOCHREALTIME - $began }")
        say "$1: $TOTAL samples in $(stats | jq .blocks) blocks: back in $took s, $(peak "$pid") MiB"
        kill -TERM "$pid"
        gone() { [[ -z $(command_of "$pid") ]]; }
        wait_until 15 gone || true
    done
}

need etcd curl jq awk
for role in "${ROLES[@]}"; do need_binary "$role"; done
mkdir -p "$DIR" "$LOG_DIR" "$PID_DIR"
trap clean_up EXIT
export CSV_FILE=$DIR/wide.csv
"$(binary streamer)" generate --layout wide --hosts 31 --gpus-per-host 8 --seconds "$TELEMETRY_SECONDS" --seed 1 --out "$CSV_FILE"
start_etcd
export BUCKET_SECONDS=4 MERGE_EVERY_SECONDS=1
MERGE_EVERY_SECONDS=3600 scripts/scale.sh collector 1 >/dev/null
scripts/scale.sh gateway 1 >/dev/null
scripts/scale.sh streamer 1 >/dev/null
wait_until 300 stored || die "bench-start: not stored after 300 s: $(stats)"
scripts/scale.sh streamer 0 >/dev/null
starts "as committed"
scripts/scale.sh collector 0 >/dev/null
scripts/scale.sh gateway 1 >/dev/null
scripts/scale.sh collector 1 >/dev/null
wait_until 120 merged || warn "bench-start: still more than 2000 blocks after 120 s"
scripts/scale.sh collector 0 >/dev/null
starts merged
