#!/usr/bin/env bash
# Measures remote write into one gateway, with etcd, a collector and the senders on the same
# machine: gateway/examples/push.rs, which makes all requests before the clock starts. The programs
# are release builds, the senders a debug build. All it starts is gone afterwards.
#   WRITE_PORT (18200) and the two ports behind it
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export NEXUS_LOG_DIR=$here/logs/bench-write
source "$here/scripts/lib.sh"
source "$here/scripts/bench-lib.sh"

PORT=${WRITE_PORT:-18200}
DIR=$STATE_DIR/bench-write
GATEWAY=http://127.0.0.1:$((PORT + 2))
collector_pid='' gateway_pid=''

ask() { curl -fs --noproxy '*' --max-time 10 "$@"; }
end() {
    local pid=$1
    if [[ -z $pid ]]; then return; fi
    kill -TERM "$pid" 2>/dev/null || true
    ended() { [[ -z $(command_of "$pid") ]]; }
    wait_until 30 ended || die "bench-write: process $pid does not end"
}
stop_all() {
    end "$gateway_pid"
    end "$collector_pid"
    gateway_pid='' collector_pid=''
    stop_etcd
}
# measure SENDERS GPUS REQUESTS: in a keyspace of its own.
measure() {
    local began ended expected=$(($1 * $2 * $3 * 10))
    start_etcd
    detach "$LOG_DIR/collector.log" "$(binary collector)" run --instance-id collector-1
    collector_pid=$DETACHED_PID
    detach "$LOG_DIR/gateway.log" "$(binary gateway)" run --gateway-id gateway-1 --port "${GATEWAY##*:}"
    gateway_pid=$DETACHED_PID
    ready() { ask "$GATEWAY/readyz" >/dev/null; }
    wait_until 30 ready || die "bench-write: the gateway is not ready; see $LOG_DIR"
    began=$(cpu "$gateway_pid")
    say "$1 senders, $2 GPUs x 10 metrics a request"
    "$ROOT/target/debug/examples/push" "$GATEWAY" "$1" "$2" "$3"
    ended=$(cpu "$gateway_pid")
    [[ $(ask "$GATEWAY/api/v1/sources/remote-write" | jq .samples) == "$expected" ]] || die "bench-write: not every sample is stored"
    awk -v cpu="$ended" -v before="$began" -v samples="$expected" -v peak="$(peak "$gateway_pid")" \
        'BEGIN { printf "gateway: %.2f us of processor a sample, %d MiB at most\n", (cpu - before) * 1e6 / samples, peak }'
    [[ $(ask "$GATEWAY/audit" | jq .clean) == true ]] || die "bench-write: the law does not hold"
    stop_all
}

need etcd curl jq awk
for role in collector gateway; do need_binary "$role"; done
cargo build -q -p nexus-gateway --example push
mkdir -p "$DIR" "$LOG_DIR"
trap stop_all EXIT
measure 1 8 500
measure 16 8 500
measure 4 200 200
measure 8 1000 50
