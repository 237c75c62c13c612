#!/usr/bin/env bash
# Shows collectors go from 2 to 5 to 1 while a generated file flows, and counts at the end.
# A fleet of its own (root, pids, logs, ports), so that a running demo and its counts are left
# alone; it is stopped and its keys are deleted when the script ends.
#   SCALING_HOSTS (20, of 8 GPUs), SCALING_SECONDS (45) of telemetry, REPLAY_SPEED (1: as recorded)
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export NEXUS_PID_DIR=$here/.pids/scaling NEXUS_LOG_DIR=$here/logs/scaling
export NEXUS_ROOT="/scaling-$$-${EPOCHSECONDS:-0}"
export GATEWAY_PORT_BASE=${GATEWAY_PORT_BASE:-8180}
export STREAMER_METRICS_PORT_BASE=${STREAMER_METRICS_PORT_BASE:-9301}
export COLLECTOR_METRICS_PORT_BASE=${COLLECTOR_METRICS_PORT_BASE:-9401}
export REPLAY_SPEED=${REPLAY_SPEED:-1}
unset GATEWAY_URL LOOP_MODE
source "$here/scripts/lib.sh"
source "$here/scripts/api.sh"

HOSTS=${SCALING_HOSTS:-20}
SECONDS_OF_TELEMETRY=${SCALING_SECONDS:-45}
FLOW_SECONDS_MAX=$((SECONDS_OF_TELEMETRY * 2 + 120))
export CSV_FILE=$STATE_DIR/scaling.csv

step() { printf '\n== %s\n' "$*"; }

# Whatever happened, nothing of this fleet stays behind.
clean_up() {
    step "stop this fleet, delete its keys"
    scripts/scale.sh all 0 || true
    if [[ ${ETCD_ENDPOINTS:-} == https://* ]] || ! have etcdctl; then
        say "keys under $NEXUS_ROOT/ stay: no etcdctl that could delete them"
        return
    fi
    env -u ETCDCTL_ENDPOINTS ETCDCTL_API=3 etcdctl --endpoints="$(etcd_endpoints)" del --prefix "$NEXUS_ROOT/" >/dev/null ||
        say "keys under $NEXUS_ROOT/ stay: etcdctl could not delete them"
}

need etcd awk jq
need_binary streamer
if instance_runs streamer 1; then die "another demo-scaling.sh is at work (or was killed): NEXUS_PID_DIR=.pids/scaling scripts/scale.sh all 0"; fi
step "generate: $HOSTS hosts of 8 GPUs, $SECONDS_OF_TELEMETRY s"
mkdir -p "$STATE_DIR"
"$(binary streamer)" generate --hosts "$HOSTS" --gpus-per-host 8 --seconds "$SECONDS_OF_TELEMETRY" --seed 1 --layout long --out "$CSV_FILE"
read -r rows samples points gpus hosts < <(LC_ALL=C awk -f scripts/samples.awk "$CSV_FILE")
say "${CSV_FILE#"$ROOT"/}: $rows rows, $samples samples, $points points, $gpus GPUs, $hosts hosts"

trap clean_up EXIT
step "2 collectors, a gateway, then 2 streamers that replay at $REPLAY_SPEED x"
scripts/scale.sh collector 2
scripts/scale.sh gateway 1
need_gateway
scripts/scale.sh streamer 2
wait_rows "$rows" $((rows / 5)) "$FLOW_SECONDS_MAX"
scripts/scale-status.sh
step "2 -> 5 collectors, in flow"
scripts/scale.sh collector 5
wait_rows "$rows" $((rows / 2)) "$FLOW_SECONDS_MAX"
scripts/scale-status.sh
step "5 -> 1 collector, in flow"
scripts/scale.sh collector 1
audit
((ROWS_OFFERED < rows)) || say "(the file was through before the last step: raise SCALING_SECONDS to see it in flow)"
scripts/scale-status.sh
step "drain and count"
wait_drained "$rows" "$FLOW_SECONDS_MAX"
scripts/verify-record-count.sh "$CSV_FILE"
