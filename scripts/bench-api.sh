#!/usr/bin/env bash
# Measures what the gateway answers a second, beside VictoriaMetrics with the same samples in the
# same run; both, etcd and the load generator share this machine. Prints a table; writes
# .nexus/bench/api.json. Everything it starts is gone afterwards.
#   BENCH_API_SECONDS (10) each measurement, BENCH_API_ROUNDS (3), BENCH_API_CONNECTIONS (8)
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export NEXUS_PID_DIR=$here/.pids/bench-api NEXUS_LOG_DIR=$here/logs/bench-api
export GATEWAY_PORT_BASE=${GATEWAY_PORT_BASE:-8290}
export STREAMER_METRICS_PORT_BASE=${STREAMER_METRICS_PORT_BASE:-9511}
export COLLECTOR_METRICS_PORT_BASE=${COLLECTOR_METRICS_PORT_BASE:-9611}
unset GATEWAY_URL LOOP_MODE REPLAY_SPEED ETCD_ENDPOINTS
source "$here/scripts/lib.sh"
source "$here/scripts/bench-lib.sh"

LASTING=${BENCH_API_SECONDS:-10}
ROUNDS=${BENCH_API_ROUNDS:-3}
CONNECTIONS=${BENCH_API_CONNECTIONS:-8}
TELEMETRY_SECONDS=200
ROWS=$((31 * 8 * 10 * TELEMETRY_SECONDS))
DIR=$STATE_DIR/bench
PORT=${BENCH_ETCD_PORT:-12489}
VM_PORT=${BENCH_VM_PORT:-18428}
FORGETFUL_PORT=$((GATEWAY_PORT_BASE + 1))
PEERS=$STATE_DIR/peers
others=()

clean_up() {
    scripts/scale.sh all 0 >/dev/null 2>&1 || true
    for pid in "${others[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done
    stop_etcd
    rm -rf "$DIR/vm"
}
ask() { curl -fs --noproxy '*' --max-time 5 "$@"; }
counted() {
    [[ $(ask "$1/api/v1/clusters/$CLUSTER_ID/stats" | jq '.samples.stored + .samples.queued') == "$ROWS" ]]
}

# fill_vm CSV: the same samples, as VictoriaMetrics takes them.
fill_vm() {
    TZ=UTC awk -F'","' 'NR > 1 {
        at = substr($1, 2); gsub(/[-:TZ]/, " ", at)
        printf "%s{UUID=\"%s\",Hostname=\"%s\",gpu=\"%s\"} %s %d000\n", $2, $5, $7, $3, $11, mktime(at)
    }' "$1" | ask --max-time 120 --data-binary @- "$VM/api/v1/import/prometheus"
    ask "$VM/internal/force_flush" >/dev/null
}
start_vm() {
    rm -rf "$DIR/vm"
    detach "$LOG_DIR/vm.log" "$PEERS/bin/victoria-metrics" -storageDataPath="$DIR/vm" -retentionPeriod=100y \
        -httpListenAddr="127.0.0.1:$VM_PORT" -search.latencyOffset=0s -loggerLevel=ERROR
    others+=("$DETACHED_PID")
    vm_up() { ask "$VM/health" >/dev/null; }
    wait_until 30 vm_up || die "bench-api: VictoriaMetrics does not start; see $LOG_DIR/vm.log"
}
start_forgetful() {
    detach "$LOG_DIR/gateway-uncached.log" env PORT="$FORGETFUL_PORT" ANSWER_CACHE_BYTES=0 "$(binary gateway)" run --instance-id gateway-uncached
    others+=("$DETACHED_PID")
}

# load URL [DELAY_MS]: requests a second, p50 and p99 in milliseconds, as JSON. With a delay each
# connection waits that long between an answer and its next request.
load() {
    local script=$DIR/wrk.lua connections=$CONNECTIONS
    cat >"$script" <<'LUA'
local pause = 0
function init(args) pause = tonumber(args[1] or "0") end
function done(summary, latency)
    local bad = summary.errors.status + summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout
    io.write(string.format('{"per_second":%d,"p50_ms":%.2f,"p99_ms":%.2f,"bad":%d}\n',
        summary.requests / summary.duration * 1e6, latency:percentile(50) / 1000, latency:percentile(99) / 1000, bad))
end
LUA
    if (($# > 1)); then
        echo 'function delay() return pause end' >>"$script"
        connections=10
    fi
    "$PEERS/bin/wrk" -t2 -c"$connections" -d"${LASTING}s" -s "$script" "$1" -- "${2:-0}" | tail -n 1
}
# measure NAME URL [DELAY_MS]
measure() {
    local name=$1
    shift
    load "$@" | jq -c --arg name "$name" '{name: $name} + .' | tee -a "$DIR/api-runs.json"
}

need etcd curl jq awk
for role in "${ROLES[@]}"; do need_binary "$role"; done
scripts/get-peers.sh
mkdir -p "$DIR" "$LOG_DIR" "$PID_DIR"
export CSV_FILE=$DIR/long-$TELEMETRY_SECONDS.csv
if [[ ! -f $CSV_FILE ]]; then
    "$(binary streamer)" generate --hosts 31 --gpus-per-host 8 --seconds "$TELEMETRY_SECONDS" --seed 1 --out "$CSV_FILE.new"
    mv "$CSV_FILE.new" "$CSV_FILE"
fi
trap clean_up EXIT
VM=http://127.0.0.1:$VM_PORT
GATEWAY=http://127.0.0.1:$GATEWAY_PORT_BASE
UNCACHED=http://127.0.0.1:$FORGETFUL_PORT
start_etcd
scripts/scale.sh collector 1 >/dev/null
scripts/scale.sh gateway 1 >/dev/null
start_forgetful
scripts/scale.sh streamer 1 >/dev/null
start_vm
fill_vm "$CSV_FILE"
wait_until 60 counted "$GATEWAY" || die "bench-api: the gateway does not count $ROWS samples"
wait_until 60 counted "$UNCACHED" || die "bench-api: the other gateway does not count $ROWS samples"
scripts/scale.sh streamer 0 >/dev/null

uuid=$(ask "$GATEWAY/api/v1/gpus?limit=1" | jq -r '.data[0].uuid')
end=$(ask "$GATEWAY/api/v1/gpus/$uuid/telemetry?limit=1" | jq -r '.data[0].timestamp | sub("\\.[0-9]+"; "") | fromdate')
points="/api/v1/gpus/$uuid/telemetry?limit=100"
latest='/api/v1/telemetry/latest?metrics=gpu_utilization'
vm_points="$VM/api/v1/query_range?query=%7BUUID%3D%22$uuid%22%7D&start=$((end - 99))&end=$end&step=1s"
vm_latest="$VM/api/v1/query?query=DCGM_FI_DEV_GPU_UTIL&time=$end"
[[ $(ask "$vm_points" | jq '[.data.result[].values | length] | add') == 1000 ]] || die "bench-api: VictoriaMetrics does not hold the same samples"
[[ $(ask "$vm_latest" | jq '.data.result | length') == 248 ]] || die "bench-api: VictoriaMetrics does not know 248 GPUs"
[[ $(ask "$GATEWAY$points" | jq '[.data[] | ([.gpu_utilization, .memory_utilization, .memory_used_mb, .memory_free_mb, .temperature, .power_draw, .sm_clock_mhz, .memory_clock_mhz] | map(values) | length) + (.custom_metrics | length)] | add') == 1000 ]] || die "bench-api: the gateway does not answer with 1,000 samples"
[[ $(ask "$GATEWAY$latest" | jq .count) == 248 ]] || die "bench-api: the gateway does not know 248 GPUs"

say "248 GPUs x 10 metrics x $TELEMETRY_SECONDS s on $(getconf _NPROCESSORS_ONLN) cores; wrk, $CONNECTIONS connections, $LASTING s each, $ROUNDS rounds"
: >"$DIR/api-runs.json"
for ((i = 1; i <= ROUNDS; i++)); do
    measure points/victoria-metrics "$vm_points"
    measure points/gateway "$GATEWAY$points"
    measure points/gateway-uncached "$UNCACHED$points"
    measure points-at-1000/gateway "$GATEWAY$points" 9
    measure points-at-1000/gateway-uncached "$UNCACHED$points" 9
    measure latest/victoria-metrics "$vm_latest"
    measure latest/gateway "$GATEWAY$latest"
    measure latest/gateway-uncached "$UNCACHED$latest"
    measure gpus/gateway "$GATEWAY/api/v1/gpus"
    measure gpus/gateway-uncached "$UNCACHED/api/v1/gpus"
done
jq -s 'def median: sort | .[length / 2 | floor];
    group_by(.name) | map({name: .[0].name, per_second: (map(.per_second) | median), p50_ms: (map(.p50_ms) | median),
        p99_ms: (map(.p99_ms) | median), bad: (map(.bad) | add)})' "$DIR/api-runs.json" >"$DIR/api.json"
jq -r '.[] | "\(.name)  \(.per_second)/s  p50 \(.p50_ms) ms  p99 \(.p99_ms) ms  bad \(.bad)"' "$DIR/api.json"
jq -e 'all(.bad == 0)' "$DIR/api.json" >/dev/null || die "bench-api: some requests were not answered"
