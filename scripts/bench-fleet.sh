#!/usr/bin/env bash
# Measures live fleets: BENCH_FLEET_HOSTS (125 500 1250) hosts with 8 GPUs of 12 metrics each, made
# up once a second by two streamers, through an etcd with fsync and two collectors to a gateway,
# all on this machine, BENCH_FLEET_SECONDS (300) each after BENCH_FLEET_WARM_SECONDS (15). Prints
# a line for each; writes .nexus/bench/fleet.json. Everything it starts is gone afterwards.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export NEXUS_PID_DIR=$here/.pids/bench-fleet NEXUS_LOG_DIR=$here/logs/bench-fleet
export GATEWAY_PORT_BASE=${GATEWAY_PORT_BASE:-8298}
export STREAMER_METRICS_PORT_BASE=${STREAMER_METRICS_PORT_BASE:-9541}
export COLLECTOR_METRICS_PORT_BASE=${COLLECTOR_METRICS_PORT_BASE:-9641}
unset GATEWAY_URL LOOP_MODE REPLAY_SPEED ETCD_ENDPOINTS CSV_FILE
source "$here/scripts/lib.sh"
source "$here/scripts/bench-lib.sh"

read -ra FLEETS <<<"${BENCH_FLEET_HOSTS:-125 500 1250}"
LASTING=${BENCH_FLEET_SECONDS:-300}
WARM=${BENCH_FLEET_WARM_SECONDS:-15}
DIR=$STATE_DIR/bench
PORT=${BENCH_ETCD_PORT:-12519}
API=http://127.0.0.1:$GATEWAY_PORT_BASE

clean_up() {
    scripts/scale.sh all 0 >/dev/null 2>&1 || true
    stop_etcd
}
ask() { curl -fs --noproxy '*' --max-time 5 "$@"; }
# all ROLE FIGURE: of every instance of a role, one a line (cpu: seconds so far; peak: MiB).
all() {
    local n
    for n in $(instance_numbers "$1"); do "$2" "$(pid_in "$(pid_file "$1" "$n")")"; done
}
cpu_of() { all "$1" cpu | awk '{ sum += $1 } END { print sum }'; }
peak_of() { all "$1" peak | sort -n | tail -n 1; }
# figure NAME: of etcd.
figure() { ask "$ETCD_ENDPOINTS/metrics" | awk -v name="$1" '$1 == name { printf "%d", $2 }'; }
missed() {
    ETCDCTL_API=3 etcdctl --endpoints="$ETCD_ENDPOINTS" get --prefix /telemetry/shards/ --print-value-only |
        jq -s 'map(.missed // 0) | add // 0'
}
# reading: all that is read at the beginning and at the end.
reading() {
    local stats
    stats=$(ask "$API/api/v1/clusters/$CLUSTER_ID/stats")
    jq -nc --argjson at "$EPOCHREALTIME" --argjson stats "$stats" \
        --argjson txns "$(figure etcd_mvcc_txn_total)" --argjson puts "$(figure etcd_mvcc_put_total)" --argjson missed "$(missed)" \
        --argjson streamers "$(cpu_of streamer)" --argjson collectors "$(cpu_of collector)" \
        --argjson gateway "$(cpu_of gateway)" --argjson etcd "$(cpu "$etcd_pid")" \
        '{at: $at, stored: $stats.samples.stored, accepted: ($stats.samples.stored + $stats.samples.queued), txns: $txns, puts: $puts,
          missed: $missed, cpu: {streamers: $streamers, collectors: $collectors, gateway: $gateway, etcd: $etcd}}'
}
# worst_lag: the age in seconds of the newest sample that a client is served, at worst.
worst_lag() {
    local end=$((SECONDS + LASTING)) worst=0 newest
    while ((SECONDS < end)); do
        newest=$(ask "$API/api/v1/telemetry?limit=1" | jq -r '.data[0].timestamp')
        worst=$(awk -v now="$EPOCHREALTIME" -v at="$(date -d "$newest" +%s.%N)" -v worst="$worst" \
            'BEGIN { lag = now - at; printf "%.2f", (lag > worst ? lag : worst) }')
        sleep 1
    done
    echo "$worst"
}

fleet() {
    local hosts=$1 n before after lag size
    start_etcd
    scripts/scale.sh collector 2 >/dev/null
    scripts/scale.sh gateway 1 >/dev/null
    for ((n = 1; n <= 2; n++)); do
        detach "$LOG_DIR/streamer-$n.log" env METRICS_LISTEN="127.0.0.1:$((STREAMER_METRICS_PORT_BASE + n - 1))" \
            "$(binary streamer)" simulate --hosts "$hosts" --gpus 8 --name fleet --instance-id "streamer-$n"
        echo "$DETACHED_PID" >"$(pid_file streamer "$n")"
    done
    sleep "$WARM" # what is measured has begun
    before=$(reading)
    lag=$(worst_lag)
    after=$(reading)
    size=$(figure etcd_mvcc_db_total_size_in_bytes)
    jq -nc --argjson hosts "$hosts" --argjson a "$before" --argjson b "$after" --argjson lag "$lag" --argjson size "${size:-0}" \
        --argjson bytes "$(ask "$API/api/v1/clusters/$CLUSTER_ID/stats" | jq '.bytes_per_sample')" \
        --argjson memory "{\"streamer\":$(peak_of streamer),\"collector\":$(peak_of collector),\"gateway\":$(peak_of gateway),\"etcd\":$(peak "$etcd_pid")}" \
        '($b.at - $a.at) as $seconds | ($b.accepted - $a.accepted) as $samples
        | {gpus: ($hosts * 8), seconds: ($seconds | round), samples_per_second: ($samples / $seconds | round), worst_lag_seconds: $lag,
           ticks_missed: ($b.missed - $a.missed), puts_per_second: (($b.puts - $a.puts) / $seconds | round),
           txns_per_second: (($b.txns - $a.txns) / $seconds | round),
           cores: ($b.cpu | with_entries(.value = ((.value - $a.cpu[.key]) / $seconds * 1000 | round / 1000))),
           cpu_us_per_sample: ((($b.cpu | add) - ($a.cpu | add)) * 1e6 / $samples * 100 | round / 100),
           peak_mib: $memory, db_mib: ($size / 1048576 | round), bytes_per_sample: $bytes}'
    audit=$(ask --max-time 60 "$API/audit" | jq -r .clean)
    [[ $audit == true ]] || die "bench-fleet: the audit is not clean"
    scripts/scale.sh all 0 >/dev/null
    stop_etcd
}

need etcd etcdctl curl jq awk
for role in "${ROLES[@]}"; do need_binary "$role"; done
mkdir -p "$DIR" "$LOG_DIR" "$PID_DIR"
trap clean_up EXIT
say "live fleets of 8 GPUs a host, 12 metrics a second each; 2 streamers, 2 collectors, 1 gateway, 1 etcd on $(getconf _NPROCESSORS_ONLN) cores; $LASTING s each"
for hosts in "${FLEETS[@]}"; do fleet "$hosts"; done | tee "$DIR/fleet-runs.json"
jq -s . "$DIR/fleet-runs.json" >"$DIR/fleet.json"
