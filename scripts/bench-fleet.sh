#!/usr/bin/env bash
# Measures live fleets: hosts with 8 GPUs of 21 metrics and a job each, made up once a second by two
# streamers, through an etcd with fsync and two collectors to a gateway, all on this machine.
#   bench-fleet.sh        BENCH_FLEET_HOSTS (125 500 1250), BENCH_FLEET_SECONDS (300) each; a line
#                         for each, and all in .nexus/bench/fleet.json
#   bench-fleet.sh soak   1042 hosts (10 million samples a minute) for an hour, of which the last
#                         quarter is kept; .nexus/bench/soak.json, and soak.svg, the database
# BENCH_FLEET_WARM_SECONDS (15) of each are not counted. The settings of collectors are taken from
# the environment. Everything it starts is gone afterwards.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export NEXUS_PID_DIR=$here/.pids/bench-fleet NEXUS_LOG_DIR=$here/logs/bench-fleet
export GATEWAY_PORT_BASE=${GATEWAY_PORT_BASE:-8298}
export STREAMER_METRICS_PORT_BASE=${STREAMER_METRICS_PORT_BASE:-9541}
export COLLECTOR_METRICS_PORT_BASE=${COLLECTOR_METRICS_PORT_BASE:-9641}
unset GATEWAY_URL LOOP_MODE REPLAY_SPEED ETCD_ENDPOINTS CSV_FILE
source "$here/scripts/lib.sh"
source "$here/scripts/bench-lib.sh"

NAME=fleet
if [[ ${1:-} == soak ]]; then
    NAME=soak BENCH_FLEET_HOSTS=${BENCH_FLEET_HOSTS:-1042} BENCH_FLEET_SECONDS=${BENCH_FLEET_SECONDS:-3600}
    export BUCKET_SECONDS=${BUCKET_SECONDS:-300} RETENTION_SECONDS=${RETENTION_SECONDS:-900}
    export RETENTION_EVERY_SECONDS=${RETENTION_EVERY_SECONDS:-30}
elif (($# > 0)); then
    die "bench-fleet: unknown word '$1'; allowed: soak"
fi
read -ra FLEETS <<<"${BENCH_FLEET_HOSTS:-125 500 1250}"
LASTING=${BENCH_FLEET_SECONDS:-300}
EVERY=5 # seconds between two looks at the database
WARM=${BENCH_FLEET_WARM_SECONDS:-15}
DIR=$STATE_DIR/bench
PORT=${BENCH_ETCD_PORT:-12519}
API=http://127.0.0.1:$GATEWAY_PORT_BASE

# What scale.sh did not start, it does not stop.
streamers=()
stop_streamers() {
    local pid
    for pid in "${streamers[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done
    for pid in "${streamers[@]}"; do
        ended() { [[ -z $(command_of "$pid") ]]; }
        wait_until 15 ended || true
    done
    streamers=()
}
clean_up() {
    stop_streamers
    scripts/scale.sh all 0 >/dev/null 2>&1 || true
    stop_etcd
}
ask() { curl -fs --noproxy '*' --max-time 5 "$@"; }
# all ROLE FIGURE: of every instance of a role, one a line (cpu: seconds so far; peak: MiB).
all() {
    local n pid
    if [[ $1 == streamer ]]; then
        for pid in "${streamers[@]}"; do "$2" "$pid"; done
        return
    fi
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
        '{at: $at, accepted: $stats.samples.accepted, txns: $txns, puts: $puts,
          missed: $missed, cpu: {streamers: $streamers, collectors: $collectors, gateway: $gateway, etcd: $etcd}}'
}
rss() { awk '/^VmRSS/ { printf "%d", $2 / 1024 }' "/proc/$1/status"; }
# timeline FILE: a line every EVERY seconds while it is measured: seconds so far, the database and
# what of it is in use (MiB), the age in seconds of the newest sample that a client is served, the
# worst of that, the gateway's memory and etcd's (MiB).
timeline() {
    local begin=$SECONDS next=$SECONDS newest lag worst=0
    while ((SECONDS < begin + LASTING)); do
        newest=$(ask "$API/api/v1/telemetry?limit=1" | jq -r '.data[0].timestamp')
        read -r lag worst < <(awk -v now="$EPOCHREALTIME" -v at="$(date -d "$newest" +%s.%N)" -v worst="$worst" \
            'BEGIN { lag = now - at; printf "%.2f %.2f\n", lag, (lag > worst ? lag : worst) }')
        if ((SECONDS >= next)); then
            next=$((next + EVERY))
            printf '%d %d %d %s %s %d %d\n' $((SECONDS - begin)) $(($(figure etcd_mvcc_db_total_size_in_bytes) >> 20)) \
                $(($(figure etcd_mvcc_db_total_size_in_use_in_bytes) >> 20)) "$lag" "$worst" \
                "$(all gateway rss)" "$(rss "$etcd_pid")"
        fi
        sleep 1
    done >"$1"
}
# plot FILE: a timeline's database as SVG.
plot() {
    awk '{ t[NR] = $1; size[NR] = $2; used[NR] = $3; if ($2 > top) top = $2 }
        function line(values, colour,   i, points) {
            for (i = 1; i <= NR; i++) points = points sprintf("%.1f,%.1f ", 60 + t[i] / t[NR] * 620, 240 - values[i] / top * 210)
            printf "<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"1.5\" points=\"%s\"/>\n", colour, points
        }
        function text(x, y, anchor, colour, what) {
            printf "<text x=\"%d\" y=\"%d\" text-anchor=\"%s\" fill=\"%s\">%s</text>\n", x, y, anchor, colour, what
        }
        END {
            step = int(top / 5 / 10 + 1) * 10
            print "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 700 280\" font-family=\"sans-serif\" font-size=\"12\">"
            print "<rect width=\"700\" height=\"280\" fill=\"white\"/>"
            for (y = 0; y <= top; y += step) {
                printf "<line x1=\"60\" x2=\"680\" y1=\"%d\" y2=\"%d\" stroke=\"#ddd\"/>\n", 240 - y / top * 210, 240 - y / top * 210
                text(54, 244 - y / top * 210, "end", "#333", y)
            }
            for (m = 0; m * 600 <= t[NR]; m++) text(60 + m * 600 / t[NR] * 620, 258, "middle", "#333", m * 10)
            text(370, 276, "middle", "#333", "minutes")
            text(60, 20, "start", "#1f5fa8", "database, MiB"); text(170, 20, "start", "#c2571a", "of it in use")
            line(size, "#1f5fa8"); line(used, "#c2571a")
            print "</svg>"
        }' "$1"
}

fleet() {
    local hosts=$1 lines n pid before after lag size
    lines=$DIR/$NAME-$1.txt
    start_etcd
    scripts/scale.sh collector 2 >/dev/null
    scripts/scale.sh gateway 1 >/dev/null
    for ((n = 1; n <= 2; n++)); do
        detach "$LOG_DIR/streamer-$n.log" env METRICS_LISTEN="127.0.0.1:$((STREAMER_METRICS_PORT_BASE + n - 1))" \
            "$(binary streamer)" simulate --hosts "$hosts" --gpus 8 --name fleet --instance-id "streamer-$n"
        streamers+=("$DETACHED_PID")
    done
    sleep "$WARM" # what is measured has begun
    for pid in "${streamers[@]}"; do
        [[ -n $(command_of "$pid") ]] || die "bench-fleet: a streamer has ended; see $LOG_DIR/streamer-*.log"
    done
    before=$(reading)
    timeline "$lines"
    lag=$(tail -n 1 "$lines" | cut -d ' ' -f 5)
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
    stop_streamers
    scripts/scale.sh all 0 >/dev/null
    stop_etcd
}

need etcd etcdctl curl jq awk
for role in "${ROLES[@]}"; do need_binary "$role"; done
mkdir -p "$DIR" "$LOG_DIR" "$PID_DIR"
trap clean_up EXIT
say "live fleets of 8 GPUs a host, 21 metrics and a job a second each; 2 streamers, 2 collectors, 1 gateway, 1 etcd on $(getconf _NPROCESSORS_ONLN) cores; $LASTING s each"
: >"$DIR/$NAME-runs.json"
for hosts in "${FLEETS[@]}"; do keep "$DIR/$NAME-runs.json" fleet "$hosts"; done
jq -s . "$DIR/$NAME-runs.json" >"$DIR/$NAME.json"
if [[ $NAME == soak ]]; then plot "$DIR/soak-${FLEETS[0]}.txt" >"$DIR/soak.svg"; fi
