#!/usr/bin/env bash
# Measures scraping: SCRAPE_TARGETS (10000) exporters on loopback, each asked every
# SCRAPE_INTERVAL (15) seconds by SCRAPE_STREAMERS (2) streamers for SCRAPE_SECONDS (120), through an
# etcd with fsync and two collectors; then one streamer is killed, and how long its targets wait is
# told. Prints a line for each part; writes .nexus/bench/scrape.json. Everything it starts is gone
# afterwards.
#   bench-scrape.sh small   what a streamer costs that has little to do: 1000 exporters, one streamer,
#                           a source as it is without being told more
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export NEXUS_PID_DIR=$here/.pids/bench-scrape NEXUS_LOG_DIR=$here/logs/bench-scrape
export GATEWAY_PORT_BASE=${GATEWAY_PORT_BASE:-8398}
export STREAMER_METRICS_PORT_BASE=${STREAMER_METRICS_PORT_BASE:-9551}
export COLLECTOR_METRICS_PORT_BASE=${COLLECTOR_METRICS_PORT_BASE:-9651}
unset GATEWAY_URL LOOP_MODE REPLAY_SPEED ETCD_ENDPOINTS CSV_FILE
source "$here/scripts/lib.sh"
source "$here/scripts/bench-lib.sh"

case ${1:-large} in
large) targets=10000 streamers=2 shards=16 ;;
small) targets=1000 streamers=1 shards=8 ;;
*) die "usage: bench-scrape.sh [small]" ;;
esac
TARGETS=${SCRAPE_TARGETS:-$targets}
INTERVAL=${SCRAPE_INTERVAL:-15}
STREAMERS=${SCRAPE_STREAMERS:-$streamers}
LASTING=${SCRAPE_SECONDS:-120}
TTL=${LEASE_TTL_SECONDS:-10}
DIR=$STATE_DIR/bench
PORT=${BENCH_ETCD_PORT:-12539}
EXPORTERS=127.0.0.1:${EXPORTERS_PORT:-9400}
API=http://127.0.0.1:$GATEWAY_PORT_BASE
exporters_pid=

clean_up() {
    if [[ -n $exporters_pid ]]; then kill "$exporters_pid" 2>/dev/null || true; fi
    scripts/scale.sh all 0 >/dev/null 2>&1 || true
    stop_etcd
}
ask() { curl -fs --noproxy '*' --max-time 30 "$@"; }
streamer_pid() { pid_in "$(pid_file streamer "$1")"; }
streamers() {
    local n
    for n in $(instance_numbers streamer); do
        if [[ -n $(command_of "$(streamer_pid "$n")") ]]; then echo "$n"; fi
    done
}
cpu_of_streamers() {
    local n
    for n in $(streamers); do cpu "$(streamer_pid "$n")"; done | awk '{ sum += $1 } END { print sum + 0 }'
}
# What the largest has in memory now, in MiB: all of it, and what is not its program's file.
resident_of_streamers() {
    local n
    for n in $(streamers); do
        awk '/^VmRSS/ { all = $2 } /^RssAnon/ { own = $2 } END { printf "[%d, %d]\n", all / 1024, own / 1024 }' \
            "/proc/$(streamer_pid "$n")/status"
    done | sort -t '[' -k 2n | tail -n 1
}
peak_of_streamers() {
    local n
    for n in $(streamers); do peak "$(streamer_pid "$n")"; done | sort -n | tail -n 1
}
transactions() { ask "$ETCD_ENDPOINTS/metrics" | awk '$1 == "etcd_mvcc_txn_total" { printf "%d", $2 }'; }
# part NAME SECONDS: what the exporters saw meanwhile, and what it cost.
part() {
    local cpu_before txns_before before
    ask "http://$EXPORTERS/report" >/dev/null
    cpu_before=$(cpu_of_streamers) txns_before=$(transactions) before=$EPOCHREALTIME
    sleep "$2"
    jq -c --arg part "$1" --argjson a "[$before, $cpu_before, $txns_before]" --argjson peak "$(peak_of_streamers)" \
        --argjson resident "$(resident_of_streamers)" \
        --argjson b "[$EPOCHREALTIME, $(cpu_of_streamers), $(transactions)]" --argjson streamers "$(streamers | wc -l)" \
        '($b[0] - $a[0]) as $seconds | {part: $part, streamers: $streamers} + .
         + {cores: (($b[1] - $a[1]) / $seconds * 1000 | round / 1000),
            txns_per_second: (($b[2] - $a[2]) / $seconds | round), peak_mib: $peak,
            resident_mib: $resident[0], own_mib: $resident[1]}' \
        < <(ask "http://$EXPORTERS/report")
}

need etcd curl jq awk cargo
for role in "${ROLES[@]}"; do need_binary "$role"; done
cargo build --quiet --release -p nexus-streamer --example exporters
mkdir -p "$DIR" "$LOG_DIR" "$PID_DIR"
trap clean_up EXIT
start_etcd
detach "$LOG_DIR/exporters.log" "$BIN_DIR/examples/exporters" --listen "$EXPORTERS" --targets "$TARGETS" --interval "$INTERVAL"
exporters_pid=$DETACHED_PID
listening() { ask "http://$EXPORTERS/targets" -o "$DIR/targets.json"; }
wait_until 10 listening || die "bench-scrape: the exporters do not listen; see $LOG_DIR/exporters.log"
say "$TARGETS exporters every $INTERVAL s by $STREAMERS streamers; 2 collectors, 1 gateway, 1 etcd on $(getconf _NPROCESSORS_ONLN) cores; $LASTING s"
export LEASE_TTL_SECONDS=$TTL
scripts/scale.sh collector 2 >/dev/null
scripts/scale.sh gateway 1 >/dev/null
jq -n --arg file "$DIR/targets.json" --arg interval "${INTERVAL}s" --argjson shards "$shards" \
    '{sources: [{name: "exporters", scrape: {interval: $interval, files: [$file], shards: $shards}}]}' >"$DIR/scrape.yaml"
"$(binary streamer)" source apply -f "$DIR/scrape.yaml" >/dev/null
for ((n = 1; n <= STREAMERS; n++)); do
    detach "$LOG_DIR/streamer-$n.log" env METRICS_LISTEN="127.0.0.1:$((STREAMER_METRICS_PORT_BASE + n - 1))" \
        "$(binary streamer)" run --instance-id "streamer-$n"
    echo "$DETACHED_PID" >"$(pid_file streamer "$n")"
done
sleep $((INTERVAL * 2)) # every target was asked
{
    part steady "$LASTING"
    if ((STREAMERS > 1)); then
        kill -KILL "$(streamer_pid "$STREAMERS")"
        part "one killed" $((TTL + INTERVAL * 3))
    fi
} | tee "$DIR/scrape-runs.json"
jq -s . "$DIR/scrape-runs.json" >"$DIR/scrape.json"
ask "$API/audit" >"$DIR/scrape-audit.json"
[[ $(jq -r .clean "$DIR/scrape-audit.json") == true ]] || die "bench-scrape: the audit is not clean; see $DIR/scrape-audit.json"
