#!/usr/bin/env bash
# Measures remote write into one gateway, with etcd, a collector and the senders on the same
# machine: gateway/examples/push.rs, which makes all requests before the clock starts. Then the same
# requests into Prometheus and VictoriaMetrics (both from Debian). The programs are release builds,
# the senders a debug build. All it starts is gone afterwards.
#   WRITE_PORT (18200) and the two ports behind it; WRITE_PEERS ("prometheus victoria-metrics")
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export NEXUS_LOG_DIR=$here/logs/bench-write
source "$here/scripts/lib.sh"
source "$here/scripts/bench-lib.sh"

PORT=${WRITE_PORT:-18200}
DIR=$STATE_DIR/bench-write
GATEWAY=http://127.0.0.1:$((PORT + 2))
PEERS=${WRITE_PEERS-prometheus victoria-metrics}
collector_pid='' gateway_pid='' peer_pid=''

ask() { curl -fs --noproxy '*' --max-time 10 "$@"; }
end() {
    local pid=$1
    # In a trap a bare `return` fails as what came before it did.
    if [[ -z $pid ]]; then return 0; fi
    kill -TERM "$pid" 2>/dev/null || true
    ended() { [[ -z $(command_of "$pid") ]]; }
    wait_until 30 ended || die "bench-write: process $pid does not end"
}
stop_all() {
    end "$peer_pid"
    end "$gateway_pid"
    end "$collector_pid"
    peer_pid='' gateway_pid='' collector_pid=''
    rm -rf "$DIR/peer"
    stop_etcd
}
# cpu_of PID...: seconds of processor so far, of all of them.
cpu_of() {
    local pid
    for pid in "$@"; do cpu "$pid"; done | awk '{ sum += $1 } END { print sum + 0 }'
}
# push NAME SENDERS GPUS REQUESTS PID...: a line of what the sender says, and what these processes
# needed, of which the first is the one that is written to.
push() {
    local name=$1 samples=$(($2 * $3 * $4 * 10)) before said
    local -a load=("${@:2:3}") pids=("${@:5}")
    before=$(cpu_of "${pids[@]}")
    said=$("$ROOT/target/debug/examples/push" "$GATEWAY" "${load[@]}")
    printf '%s: %s; %s\n' "$name" "$said" "$(awk -v cpu="$(cpu_of "${pids[@]}")" -v before="$before" -v samples="$samples" \
        -v peak="$(peak "${pids[0]}")" 'BEGIN { printf "%.2f us of processor a sample, %d MiB at most", (cpu - before) * 1e6 / samples, peak }')"
}
# nexus SENDERS GPUS REQUESTS: in a keyspace of its own.
nexus() {
    local expected=$(($1 * $2 * $3 * 10))
    start_etcd
    detach "$LOG_DIR/collector.log" "$(binary collector)" run --instance-id collector-1
    collector_pid=$DETACHED_PID
    detach "$LOG_DIR/gateway.log" "$(binary gateway)" run --gateway-id gateway-1 --port "${GATEWAY##*:}"
    gateway_pid=$DETACHED_PID
    ready() { ask "$GATEWAY/readyz" >/dev/null; }
    wait_until 30 ready || die "bench-write: the gateway is not ready; see $LOG_DIR"
    # shellcheck disable=SC2154  # set by start_etcd
    push nexus "$@" "$gateway_pid" "$collector_pid" "$etcd_pid"
    # The gateway shows what etcd has a moment later.
    stored() { [[ $(ask "$GATEWAY/api/v1/sources/remote-write" | jq .samples) == "$expected" ]]; }
    wait_until 10 stored || die "bench-write: not every sample is stored"
    [[ $(ask "$GATEWAY/audit" | jq .clean) == true ]] || die "bench-write: the law does not hold"
    stop_all
}
# peer NAME SENDERS GPUS REQUESTS: where the gateway was.
peer() {
    local health=/health
    mkdir -p "$DIR/peer"
    if [[ $1 == prometheus ]]; then
        health=/-/ready
        echo 'global: {}' >"$DIR/peer.yml"
        detach "$LOG_DIR/prometheus.log" "$STATE_DIR/peers/bin/prometheus" --config.file="$DIR/peer.yml" --log.level=error \
            --storage.tsdb.path="$DIR/peer" --web.listen-address="${GATEWAY#http://}" --web.enable-remote-write-receiver
    else
        detach "$LOG_DIR/vm.log" "$STATE_DIR/peers/bin/victoria-metrics" -storageDataPath="$DIR/peer" -loggerLevel=ERROR \
            -httpListenAddr="${GATEWAY#http://}"
    fi
    peer_pid=$DETACHED_PID
    up() { ask "$GATEWAY$health" >/dev/null; }
    wait_until 30 up || die "bench-write: $1 does not start; see $LOG_DIR"
    push "$@" "$peer_pid"
    stop_all
}
# measure SENDERS GPUS REQUESTS
measure() {
    local name
    say "$1 senders, $2 GPUs x 10 metrics a request"
    nexus "$@"
    for name in $PEERS; do peer "$name" "$@"; done
}

need etcd curl jq awk
for role in collector gateway; do need_binary "$role"; done
cargo build -q -p nexus-gateway --example push
if [[ -n $PEERS ]]; then scripts/get-peers.sh; fi
mkdir -p "$DIR" "$LOG_DIR"
trap stop_all EXIT
measure 1 8 500
measure 16 8 500
measure 4 200 200
measure 8 1000 50
