#!/usr/bin/env bash
# From nothing to a running pipeline with INSTANCES (2) of each role, its sample read, counted
# and served. Safe to run again. Ends with the pipeline running.
# LIVE=1: GPUs that are made up and go on for ever instead of a count, in a keyspace of their own.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
source "$(dirname "${BASH_SOURCE[0]}")/api.sh"

INSTANCES=${INSTANCES:-2}
DRAIN_SECONDS_MAX=120 # an idle commit waits 10 s for more to pack; the rest is for a busy machine
unset CSV_FILE        # the demo is about the sample
LIVE=${LIVE:-0}
LIVE_SECONDS_MAX=60      # a claim, a tick and a commit, on a busy machine
DEMO_ROOT=$STATE_DIR/demo-root
# The sample is counted to the last one: what goes on for ever must not be counted with it.
if [[ $LIVE == 1 ]]; then export NEXUS_ROOT=/live; fi

step() { printf '\n== %s\n' "$*"; }

# stop_earlier_builds: a demo that shows what was built before shows nothing.
stop_earlier_builds() {
    local role n
    for role in "${ROLES[@]}"; do
        for n in $(instance_numbers "$role"); do
            if instance_runs "$role" "$n" && runs_earlier_build "$role" "$n"; then
                say "instances of an earlier build still run: draining all"
                scripts/scale.sh all 0
                return
            fi
        done
    done
}

# stop_other_demo: one fleet has these ports; the one of the other keyspace makes room.
stop_other_demo() {
    local root=${NEXUS_ROOT:-/telemetry}
    if [[ -f $DEMO_ROOT && $(<"$DEMO_ROOT") != "$root" ]]; then
        say "instances work on $(<"$DEMO_ROOT"): draining all"
        scripts/scale.sh all 0
    fi
    mkdir -p "$STATE_DIR"
    printf '%s\n' "$root" >"$DEMO_ROOT"
}

# go_live: asks for GPUs that are made up and waits until one of them is served.
go_live() {
    local deadline=$((SECONDS + LIVE_SECONDS_MAX))
    ETCD_ENDPOINTS=$(etcd_endpoints) "$(binary streamer)" source apply -f scripts/live.yaml
    until api "/api/v1/hosts/live-0001/gpus" 2>/dev/null | jq -e '.count > 0' >/dev/null; do
        ((SECONDS < deadline)) || die "no GPU of the live source is served after $LIVE_SECONDS_MAX s: see logs/"
        sleep 0.25
    done
    ETCD_ENDPOINTS=$(etcd_endpoints) "$(binary streamer)" source list
}

# what_to_open: only addresses that answer right now.
what_to_open() {
    local path uuid n
    step "running; open or ask"
    for path in / /swagger/ /graphql; do
        if [[ $(status_of "$GATEWAY$path") == 200 ]]; then say "  $GATEWAY$path"; fi
    done
    uuid=$(api "/api/v1/gpus?limit=1" | jq -r '.data[0].uuid // empty')
    say "  curl '$GATEWAY/api/v1/gpus?limit=5'"
    if [[ -n $uuid ]]; then say "  curl '$GATEWAY/api/v1/gpus/$uuid/telemetry'"; fi
    say "  curl '$GATEWAY/api/v1/clusters/$CLUSTER_ID/stats'"
    say "  curl '$GATEWAY/audit'"
    say "  ETCDCTL_API=3 etcdctl --endpoints=$(etcd_endpoints) get --prefix ${NEXUS_ROOT:-/telemetry}/ --keys-only"
    say "gateways:"
    for n in $(instance_numbers gateway | sort -n); do
        if instance_runs gateway "$n"; then say "  http://$(instance_address gateway "$n")"; fi
    done
    say "then: make scale-status, make scale-local INSTANCES=4, make scale-logs, make scale-stop, make stop-etcd"
}

step "what is needed"
scripts/deps.sh
step "build"
cargo build --release --workspace --bins
stop_earlier_builds
stop_other_demo
step "etcd"
scripts/etcd.sh start
step "sample"
write_sample
read -r rows samples points gpus hosts < <(LC_ALL=C awk -f scripts/samples.awk "$SAMPLE_CSV")
say "${SAMPLE_CSV#"$ROOT"/}: $rows rows, $samples samples, $points points, $gpus GPUs, $hosts hosts"
step "$INSTANCES of each role"
scripts/scale.sh all "$INSTANCES"
need_gateway
if [[ $LIVE == 1 ]]; then
    step "go live"
    go_live
else
    step "stream and drain"
    wait_drained "$rows" "$DRAIN_SECONDS_MAX" || die "see logs/ and docs/DEBUGGING.md"
    step "count"
    scripts/verify-record-count.sh "$SAMPLE_CSV"
fi
what_to_open
