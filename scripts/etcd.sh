#!/usr/bin/env bash
# A private etcd on loopback: etcd.sh start|stop|status
#   ETCD_PORT (12379), ETCD_PEER_PORT (12380); what it stores lies under .nexus/etcd.
#   With ETCD_ENDPOINTS set, that etcd is used and nothing is started or stopped; for https ones
#   ETCD_CA_FILE, ETCD_CERT_FILE and ETCD_KEY_FILE say whom to trust and who we are.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

START_SECONDS_MAX=30 # an etcd with a large WAL replays it first
STOP_SECONDS_MAX=15

# healthy ENDPOINT: whether it has a leader and accepts writes.
healthy() {
    local tls=()
    if [[ $1 == https://* ]]; then
        if [[ -n ${ETCD_CA_FILE:-} ]]; then tls+=(--cacert "$ETCD_CA_FILE"); fi
        if [[ -n ${ETCD_CERT_FILE:-} ]]; then tls+=(--cert "$ETCD_CERT_FILE" --key "${ETCD_KEY_FILE:-}"); fi
    fi
    curl -fs --noproxy '*' --max-time 2 "${tls[@]}" "$1/health" 2>/dev/null | grep -q '"health": *"true"'
}

# given_answers: whether one of ETCD_ENDPOINTS does.
given_answers() {
    local endpoint
    for endpoint in ${ETCD_ENDPOINTS//,/ }; do
        if healthy "${endpoint%/}"; then return 0; fi
    done
    return 1
}

check_ports() {
    local pair
    for pair in "ETCD_PORT:$ETCD_PORT" "ETCD_PEER_PORT:$ETCD_PEER_PORT"; do
        if port_taken "${pair#*:}"; then
            die "etcd: port ${pair#*:} is taken by $(port_owner "${pair#*:}"); choose another with ${pair%%:*}=<port>, or point ETCD_ENDPOINTS at an etcd that runs"
        fi
    done
}

# flags: what this etcd version understands, a line each.
flags() {
    local known flag
    known=$(etcd --help 2>&1)
    local wanted=(
        # a member that comes back must not depose the leader
        --pre-vote=true
        # entries stay in memory until a snapshot: 100,000 of them with blocks would fill it
        --snapshot-count=2000
        # history is space; readers that fall further behind list again
        --auto-compaction-mode=periodic --auto-compaction-retention=1m
        --quota-backend-bytes="$ETCD_QUOTA_BYTES"
        # a silent watch is told apart from a dead one
        --experimental-watch-progress-notify-interval=5s --watch-progress-notify-interval=5s
        # interfaces nobody here speaks
        --enable-v2=false --enable-grpc-gateway=false
        --logger=zap --log-level=warn
    )
    for flag in "${wanted[@]}"; do
        # As a word of the help text: 3.6 dropped --enable-v2, and a flag may be the tail of another.
        if grep -qE -- "(^|[^a-z-])${flag%%=*}( |$)" <<<"$known"; then echo "$flag"; fi
    done
}

start() {
    need curl
    if [[ -n ${ETCD_ENDPOINTS:-} ]]; then
        given_answers || die "etcd: none of ETCD_ENDPOINTS=$ETCD_ENDPOINTS answers /health"
        say "etcd: using ETCD_ENDPOINTS=$ETCD_ENDPOINTS; nothing started"
        return
    fi
    need etcd
    mkdir -p "$PIDS" "$LOGS"
    if etcd_runs; then
        wait_until "$START_SECONDS_MAX" healthy "$(etcd_endpoints)" ||
            die "etcd: pid $(pid_in "$ETCD_PID_FILE") runs but is not healthy; see $ETCD_LOG"
        say "etcd: already running at $(etcd_endpoints), pid $(pid_in "$ETCD_PID_FILE")"
        return
    fi
    rm -f "$ETCD_PID_FILE" "$ETCD_PORT_FILE"
    check_ports
    launch
}

launch() {
    local client=http://127.0.0.1:$ETCD_PORT peer=http://127.0.0.1:$ETCD_PEER_PORT
    local name flag arguments=() clean=(env)
    mkdir -p "$STATE_DIR"
    # etcd complains about a directory that others may read
    [[ -d $ETCD_DIR ]] || mkdir -m 700 "$ETCD_DIR"
    # etcd reads every ETCD_* variable as a flag and refuses those also given as flags.
    for name in $(compgen -e ETCD_ || true); do clean+=(-u "$name"); done
    while read -r flag; do arguments+=("$flag"); done < <(flags)
    detach "$ETCD_LOG" "${clean[@]}" etcd --name=nexus --data-dir="$ETCD_DIR" \
        --listen-client-urls="$client" --advertise-client-urls="$client" \
        --listen-peer-urls="$peer" --initial-advertise-peer-urls="$peer" \
        --initial-cluster="nexus=$peer" "${arguments[@]}"
    echo "$DETACHED_PID" >"$ETCD_PID_FILE"
    echo "$ETCD_PORT" >"$ETCD_PORT_FILE"
    local pid=$DETACHED_PID
    settled() { healthy "$client" || [[ -z $(command_of "$pid") ]]; }
    wait_until "$START_SECONDS_MAX" settled || die "etcd: not healthy after ${START_SECONDS_MAX} s; see $ETCD_LOG"
    if ! etcd_runs; then
        rm -f "$ETCD_PID_FILE" "$ETCD_PORT_FILE"
        tail -n 15 "$ETCD_LOG" >&2
        die "etcd: did not start; the end of $ETCD_LOG is above"
    fi
    say "etcd: running at $client, pid $pid, storing under ${ETCD_DIR#"$ROOT"/}"
}

stop() {
    local pid
    if [[ -n ${ETCD_ENDPOINTS:-} ]]; then
        say "etcd: ETCD_ENDPOINTS is set; that etcd is not ours to stop"
        return
    fi
    if ! etcd_runs; then
        if [[ -f $ETCD_PID_FILE ]]; then say "etcd: the pid file names no etcd of ours; removed it, stopped nothing"; else say "etcd: not running"; fi
        rm -f "$ETCD_PID_FILE" "$ETCD_PORT_FILE"
        return
    fi
    if any_instance_runs; then warn "etcd: instances of Nexus still run; they wait until etcd is back ('make scale-stop' stops them)"; fi
    pid=$(pid_in "$ETCD_PID_FILE")
    kill -TERM "$pid"
    gone() { ! etcd_runs; }
    wait_until "$STOP_SECONDS_MAX" gone || die "etcd: pid $pid still runs after ${STOP_SECONDS_MAX} s; see $ETCD_LOG"
    rm -f "$ETCD_PID_FILE" "$ETCD_PORT_FILE"
    say "etcd: stopped; what it stores stays under ${ETCD_DIR#"$ROOT"/}"
}

status() {
    if [[ -n ${ETCD_ENDPOINTS:-} ]]; then
        given_answers || die "etcd: none of ETCD_ENDPOINTS=$ETCD_ENDPOINTS answers /health"
        say "etcd: ETCD_ENDPOINTS=$ETCD_ENDPOINTS answers"
    elif ! etcd_runs; then
        say "etcd: not running"
        exit 3 # what init scripts answer for a stopped service
    else
        healthy "$(etcd_endpoints)" || die "etcd: pid $(pid_in "$ETCD_PID_FILE") runs at $(etcd_endpoints) but is not healthy"
        say "etcd: healthy at $(etcd_endpoints), pid $(pid_in "$ETCD_PID_FILE"), $(du -sh "$ETCD_DIR" | cut -f1) under ${ETCD_DIR#"$ROOT"/}"
    fi
}

case ${1:-} in
    start | stop | status) "$1" ;;
    *) die "usage: etcd.sh start|stop|status" ;;
esac
