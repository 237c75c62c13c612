#!/usr/bin/env bash
# Measures the pipeline: a long DCGM CSV (page-cached) through etcd (fsync on) until the gateway
# counts every sample, all on this machine. Prints each run and the median; writes
# .nexus/bench/results.json. A fleet and an etcd of its own; both are gone afterwards.
#   BENCH_SECONDS (1000) of telemetry of 248 GPUs x 10 metrics at 1 Hz: 2,480 rows a second
#   BENCH_RUNS (5), BENCH_STREAMERS (2), BENCH_COLLECTORS (2)
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export NEXUS_PID_DIR=$here/.pids/bench NEXUS_LOG_DIR=$here/logs/bench
export GATEWAY_PORT_BASE=${GATEWAY_PORT_BASE:-8280}
export STREAMER_METRICS_PORT_BASE=${STREAMER_METRICS_PORT_BASE:-9501}
export COLLECTOR_METRICS_PORT_BASE=${COLLECTOR_METRICS_PORT_BASE:-9601}
unset GATEWAY_URL LOOP_MODE REPLAY_SPEED ETCD_ENDPOINTS
source "$here/scripts/lib.sh"
source "$here/scripts/bench-lib.sh"

SECONDS_OF_TELEMETRY=${BENCH_SECONDS:-1000}
RUNS=${BENCH_RUNS:-5}
STREAMERS=${BENCH_STREAMERS:-2}
COLLECTORS=${BENCH_COLLECTORS:-2}
HOSTS=31
ROWS=$((HOSTS * 8 * 10 * SECONDS_OF_TELEMETRY))
RUN_SECONDS_MAX=$((60 + ROWS / 50000)) # a twentieth of what is aimed at: slower is broken
DIR=$STATE_DIR/bench
PORT=${BENCH_ETCD_PORT:-12479}
API=http://127.0.0.1:$GATEWAY_PORT_BASE/api/v1/clusters/$CLUSTER_ID/stats

clean_up() {
    scripts/scale.sh all 0 >/dev/null 2>&1 || true
    stop_etcd
}

# of ROLE FIGURE: the sum (cpu) or the largest (peak) over the instances of a role.
of() {
    local n values=()
    for n in $(instance_numbers "$1"); do values+=("$("$2" "$(pid_in "$(pid_file "$1" "$n")")")"); done
    printf '%s\n' "${values[@]}" | awk -v figure="$2" '{ sum += $1; if ($1 > max) max = $1 } END { print figure == "cpu" ? sum : max }'
}

# counted: whether the gateway counts every sample; leaves its answer in $stats.
counted() {
    stats=$(curl -fs --noproxy '*' --max-time 2 "$API") || return 1
    [[ $(jq '.samples.stored + .samples.queued' <<<"$stats") == "$ROWS" ]]
}
drained() {
    stats=$(curl -fs --noproxy '*' --max-time 2 "$API") || return 1
    [[ $(jq '.samples.stored' <<<"$stats") == "$ROWS" ]]
}

run() {
    local began ended stored
    start_etcd
    scripts/scale.sh collector "$COLLECTORS" >/dev/null
    scripts/scale.sh gateway 1 >/dev/null
    cat "$CSV_FILE" >/dev/null
    began=$EPOCHREALTIME
    # Not by scale.sh: its waiting for readiness would count as time of the pipeline.
    for ((n = 1; n <= STREAMERS; n++)); do
        detach "$LOG_DIR/streamer-$n.log" env METRICS_LISTEN="127.0.0.1:$((STREAMER_METRICS_PORT_BASE + n - 1))" \
            "$(binary streamer)" run --instance-id "streamer-$n" --csv-file "$CSV_FILE"
        echo "$DETACHED_PID" >"$(pid_file streamer "$n")"
    done
    deadline=$((SECONDS + RUN_SECONDS_MAX))
    until counted; do
        ((SECONDS < deadline)) || die "bench: not counted after $RUN_SECONDS_MAX s: $stats"
        sleep 0.02
    done
    ended=$EPOCHREALTIME
    until drained; do
        ((SECONDS < deadline)) || die "bench: not drained after $RUN_SECONDS_MAX s: $stats"
        sleep 0.02
    done
    stored=$EPOCHREALTIME
    jq -nc --argjson rows "$ROWS" --argjson stats "$stats" \
        --argjson seconds "$(awk "BEGIN { print $ended - $began }")" \
        --argjson stored_seconds "$(awk "BEGIN { print $stored - $began }")" \
        --argjson cpu "{\"etcd\":$(cpu "$etcd_pid"),\"streamers\":$(of streamer cpu),\"collectors\":$(of collector cpu),\"gateway\":$(of gateway cpu)}" \
        --argjson peak_mib "{\"etcd\":$(peak "$etcd_pid"),\"streamer\":$(of streamer peak),\"collector\":$(of collector peak),\"gateway\":$(of gateway peak)}" \
        '{rows: $rows, seconds: $seconds, samples_per_second: ($rows / $seconds | floor), stored_seconds: $stored_seconds,
          bytes_per_sample: ($stats.bytes / $stats.samples.stored * 1000 | round / 1000), blocks: $stats.blocks,
          cpu_us_per_sample: ($cpu | map_values(. * 1e6 / $rows * 1000 | round / 1000)), peak_mib: $peak_mib}'
    scripts/scale.sh all 0 >/dev/null
    stop_etcd
}

need etcd curl jq awk
for role in "${ROLES[@]}"; do need_binary "$role"; done
mkdir -p "$DIR" "$LOG_DIR" "$PID_DIR"
export CSV_FILE=$DIR/long-$SECONDS_OF_TELEMETRY.csv
if [[ ! -f $CSV_FILE ]]; then
    "$(binary streamer)" generate --hosts "$HOSTS" --gpus-per-host 8 --seconds "$SECONDS_OF_TELEMETRY" --seed 1 --out "$CSV_FILE.new"
    mv "$CSV_FILE.new" "$CSV_FILE"
fi
trap clean_up EXIT
say "$ROWS rows, $(($(wc -c <"$CSV_FILE") / 1048576)) MiB; $STREAMERS streamers, $COLLECTORS collectors, 1 gateway, 1 etcd on $(getconf _NPROCESSORS_ONLN) cores; $RUNS runs"
: >"$DIR/runs.json"
for ((i = 1; i <= RUNS; i++)); do keep "$DIR/runs.json" run; done
jq -s 'def median: sort | .[length / 2 | floor];
    {runs: ., median: {samples_per_second: (map(.samples_per_second) | median), stored_seconds: (map(.stored_seconds) | median),
     bytes_per_sample: (map(.bytes_per_sample) | median), spread: (map(.samples_per_second) | [min, max])}}' "$DIR/runs.json" >"$DIR/results.json"
jq -r '"median \(.median.samples_per_second) samples/s to counted (\(.median.spread[0]) to \(.median.spread[1])), \(.median.bytes_per_sample) bytes a sample"' "$DIR/results.json"
