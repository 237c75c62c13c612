#!/usr/bin/env bash
# Measures the pipeline beside what people use instead, on the same data in the same run, one
# after the other: VictoriaMetrics 1.112 imports the same CSV (columns by its own format
# parameter), InfluxDB 1.6 the same samples as line protocol, prepared beforehand. Prints each
# run and ratios of medians; writes .nexus/bench/peers.json. All it starts is gone afterwards.
#   BENCH_PEERS_ROUNDS (3); BENCH_SECONDS, BENCH_STREAMERS, BENCH_COLLECTORS as bench.sh has them
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export NEXUS_LOG_DIR=$here/logs/bench-peers
source "$here/scripts/lib.sh"
source "$here/scripts/bench-lib.sh"

ROUNDS=${BENCH_PEERS_ROUNDS:-3}
export BENCH_SECONDS=${BENCH_SECONDS:-1000}
ROWS=$((31 * 8 * 10 * BENCH_SECONDS))
DIR=$STATE_DIR/bench
CSV=$DIR/long-$BENCH_SECONDS.csv
PEERS=$STATE_DIR/peers
VM=http://127.0.0.1:${BENCH_VM_PORT:-18429}
INFLUX=http://127.0.0.1:${BENCH_INFLUX_PORT:-18086}
# Lines a request, and requests at once: InfluxDB takes at most 25 MB a request.
INFLUX_LINES=20000
INFLUX_AT_ONCE=2
peer_pid=

ask() { curl -fs --noproxy '*' --max-time 300 "$@"; }
stop_peer() {
    if [[ -z $peer_pid ]]; then return 0; fi
    kill -TERM "$peer_pid" 2>/dev/null || true
    peer_gone() { [[ -z $(command_of "$peer_pid") ]]; }
    wait_until 60 peer_gone || die "bench-peers: process $peer_pid does not end"
    peer_pid=
}
clean_up() {
    stop_peer
    rm -rf "$DIR/vm" "$DIR/influx" "$DIR/headless.csv" "$DIR/lines"
}

# told PEER BEGAN ENDED FOLDER: what a peer needed, as JSON.
told() {
    local bytes
    bytes=$(du -sb "$4" | cut -f1)
    jq -nc --arg name "$1" --argjson rows "$ROWS" --argjson seconds "$(awk "BEGIN { print $3 - $2 }")" \
        --argjson cpu "$(cpu "$peer_pid")" --argjson peak "$(peak "$peer_pid")" --argjson bytes "$bytes" \
        '{name: $name, seconds: $seconds, samples_per_second: ($rows / $seconds | floor),
          cpu_us_per_sample: ($cpu * 1e6 / $rows * 1000 | round / 1000), peak_mib: $peak,
          bytes_per_sample: ($bytes / $rows * 1000 | round / 1000)}'
}
# expect PEER COUNT: every sample is there and can be asked for.
expect() { [[ $2 == "$ROWS" ]] || die "bench-peers: $1 answers with $2 of $ROWS samples"; }

victoria_metrics() {
    local began ended count
    rm -rf "$DIR/vm"
    detach "$LOG_DIR/vm.log" "$PEERS/bin/victoria-metrics" -storageDataPath="$DIR/vm" -retentionPeriod=100y \
        -httpListenAddr="${VM#http://}" -search.latencyOffset=0s -search.maxUniqueTimeseries=1000000 -loggerLevel=ERROR
    peer_pid=$DETACHED_PID
    vm_up() { ask "$VM/health" >/dev/null; }
    wait_until 30 vm_up || die "bench-peers: VictoriaMetrics does not start; see $LOG_DIR/vm.log"
    cat "$DIR/headless.csv" >/dev/null
    began=$EPOCHREALTIME
    ask -X POST -T "$DIR/headless.csv" \
        "$VM/api/v1/import/csv?format=1:time:rfc3339,2:label:metric,3:label:gpu,5:label:UUID,6:label:modelName,7:label:Hostname,11:metric:value"
    ask "$VM/internal/force_flush" >/dev/null
    ended=$EPOCHREALTIME
    count=$(ask -G "$VM/api/v1/query" --data-urlencode "query=sum(count_over_time(value[$((BENCH_SECONDS + 60))s]))" \
        --data-urlencode "time=$((FIRST + BENCH_SECONDS))" | jq -r '.data.result[0].value[1]')
    expect VictoriaMetrics "$count"
    told victoria_metrics "$began" "$ended" "$DIR/vm"
    stop_peer
}

influxdb() {
    local began ended count
    rm -rf "$DIR/influx"
    mkdir -p "$DIR/influx"
    cat >"$DIR/influx.conf" <<CONF
reporting-disabled = true
bind-address = "127.0.0.1:$((${INFLUX##*:} + 2))"
[meta]
dir = "$DIR/influx/meta"
[data]
dir = "$DIR/influx/data"
wal-dir = "$DIR/influx/wal"
query-log-enabled = false
[http]
bind-address = "${INFLUX#http://}"
log-enabled = false
[monitor]
store-enabled = false
[logging]
level = "error"
CONF
    detach "$LOG_DIR/influx.log" "$PEERS/bin/influxd" run -config "$DIR/influx.conf"
    peer_pid=$DETACHED_PID
    influx_up() { ask "$INFLUX/ping" >/dev/null; }
    wait_until 30 influx_up || die "bench-peers: InfluxDB does not start; see $LOG_DIR/influx.log"
    ask -X POST "$INFLUX/query" --data-urlencode 'q=CREATE DATABASE bench' >/dev/null
    cat "$DIR/lines/"* >/dev/null
    began=$EPOCHREALTIME
    find "$DIR/lines" -type f -print0 | sort -z |
        xargs -0 -P "$INFLUX_AT_ONCE" -I '{}' curl -fsS --noproxy '*' --max-time 300 \
            "$INFLUX/write?db=bench&precision=s" --data-binary '@{}'
    ended=$EPOCHREALTIME
    count=$(ask -G "$INFLUX/query" --data-urlencode db=bench --data-urlencode 'q=SELECT count(value) FROM /.*/' |
        jq '[.results[0].series[].values[0][1]] | add')
    expect InfluxDB "$count"
    told influxdb "$began" "$ended" "$DIR/influx"
    stop_peer
}

nexus() {
    BENCH_RUNS=1 scripts/bench.sh >/dev/null
    jq -c '.runs[0] | {name: "nexus", seconds, samples_per_second,
        cpu_us_per_sample: (.cpu_us_per_sample | add * 1000 | round / 1000), peak_mib: (.peak_mib | add), bytes_per_sample}' "$DIR/results.json"
}

need etcd curl jq awk split
for role in "${ROLES[@]}"; do need_binary "$role"; done
scripts/get-peers.sh
mkdir -p "$DIR" "$LOG_DIR"
trap clean_up EXIT
if [[ ! -f $CSV ]]; then
    "$(binary streamer)" generate --hosts 31 --gpus-per-host 8 --seconds "$BENCH_SECONDS" --seed 1 --out "$CSV.new"
    mv "$CSV.new" "$CSV"
fi
FIRST=$(TZ=UTC date -d "$(sed -n '2s/^"\([^"]*\)".*/\1/p' "$CSV")" +%s)
tail -n +2 "$CSV" >"$DIR/headless.csv"
rm -rf "$DIR/lines"
mkdir "$DIR/lines"
TZ=UTC awk -F'","' 'NR > 1 {
    at = substr($1, 2)
    if (at != text) { text = at; gsub(/[-:TZ]/, " ", at); time = mktime(at) }
    model = $6; gsub(/ /, "\\ ", model)
    printf "%s,UUID=%s,Hostname=%s,gpu=%s,modelName=%s value=%s %d\n", $2, $5, $7, $3, model, $11, time
}' "$CSV" | split -l "$INFLUX_LINES" -a 4 - "$DIR/lines/"
say "$ROWS samples, $ROUNDS rounds, one after the other on $(getconf _NPROCESSORS_ONLN) cores"
: >"$DIR/peers-runs.json"
for ((round = 1; round <= ROUNDS; round++)); do
    for peer in nexus victoria_metrics influxdb; do keep "$DIR/peers-runs.json" "$peer"; done
done
jq -s 'def median: sort | .[length / 2 | floor];
    def of($name): map(select(.name == $name));
    . as $runs | [("nexus", "victoria_metrics", "influxdb") as $name | ($runs | of($name)) | {
        name: $name, samples_per_second: (map(.samples_per_second) | median), spread: (map(.samples_per_second) | [min, max]),
        cpu_us_per_sample: (map(.cpu_us_per_sample) | median), peak_mib: (map(.peak_mib) | max),
        bytes_per_sample: (map(.bytes_per_sample) | median)}] as $medians
    | {runs: $runs, medians: $medians, ratios: [$medians[1:][] | {name, times: ($medians[0].samples_per_second / .samples_per_second * 100 | round / 100)}]}' \
    "$DIR/peers-runs.json" >"$DIR/peers.json"
jq -r '(.medians[] | "\(.name): \(.samples_per_second) samples/s (\(.spread[0]) to \(.spread[1])), \(.cpu_us_per_sample) us a sample, \(.peak_mib) MiB, \(.bytes_per_sample) bytes a sample"),
    (.ratios[] | "nexus is \(.times) times as fast as \(.name)")' "$DIR/peers.json"
