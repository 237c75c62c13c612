#!/usr/bin/env bash
# Converges to N instances: scale.sh streamer|collector|gateway|all N
# Starts the missing, drains the surplus (highest number first), leaves the others alone.
# Ports: gateways GATEWAY_PORT_BASE+n-1 (8080), metrics STREAMER_METRICS_PORT_BASE+n-1 (9101)
# and COLLECTOR_METRICS_PORT_BASE+n-1 (9201). CSV_FILE (default: the demo's sample) and the
# other variables of the binaries reach those that are started now. Logs in logs/{role}-{n}.log, pids in .pids/.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

INSTANCES_MAX=64       # the queue has 64 partitions: a 65th collector would have nothing to claim
READY_SECONDS_MAX=30   # session, claims and the first list of the keyspace
STOP_SECONDS_MAX=15    # a drain takes 6 s at most; twice that means it hangs
LOG_BYTES_MAX=16777216 # an older log than this is put aside (one is kept) before a start

# port_of ROLE N and port_variable ROLE: where it listens, and what changes that.
port_of() {
    case $1 in
        streamer) echo $((${STREAMER_METRICS_PORT_BASE:-9101} + $2 - 1)) ;;
        collector) echo $((${COLLECTOR_METRICS_PORT_BASE:-9201} + $2 - 1)) ;;
        gateway) echo $((${GATEWAY_PORT_BASE:-8080} + $2 - 1)) ;;
    esac
}
port_variable() {
    case $1 in
        streamer) echo STREAMER_METRICS_PORT_BASE ;;
        collector) echo COLLECTOR_METRICS_PORT_BASE ;;
        gateway) echo GATEWAY_PORT_BASE ;;
    esac
}

put_log_aside() {
    if [[ -f $1 ]] && (($(wc -c <"$1") > LOG_BYTES_MAX)); then mv -f "$1" "$1.1"; fi
}

# start ROLE N. The identity stands in the command line, so that pid files can be checked
# against it; everything else goes by environment.
start() {
    local role=$1 n=$2 port id log
    port=$(port_of "$role" "$n")
    if port_taken "$port"; then
        die "$role-$n: port $port is taken by $(port_owner "$port"); choose others with $(port_variable "$role")=<port>"
    fi
    id=$(instance_id "$role" "$n")
    log=$(log_file "$role" "$n")
    put_log_aside "$log"
    local environment=(
        # What is meant for one process in the foreground (make run-nexus-...) is not meant for all.
        -u PORT -u LISTEN -u METRICS_LISTEN -u STREAMER_ID -u COLLECTOR_ID -u GATEWAY_ID
        "ETCD_ENDPOINTS=$(etcd_endpoints)" "CLUSTER_ID=$CLUSTER_ID"
    )
    # Our own etcd has a larger quota than etcd's default: streamers must know when it is full,
    # and collectors what they may keep.
    if [[ -z ${ETCD_ENDPOINTS:-} ]]; then
        environment+=("ETCD_QUOTA_BYTES=$ETCD_QUOTA_BYTES" "RETENTION_BYTES=${RETENTION_BYTES:-$((ETCD_QUOTA_BYTES / 2))}")
    fi
    case $role in
        streamer) environment+=("METRICS_LISTEN=127.0.0.1:$port" "CSV_FILE=$(csv_file)") ;;
        collector) environment+=("METRICS_LISTEN=127.0.0.1:$port") ;;
        gateway) environment+=("LISTEN=127.0.0.1:$port") ;;
    esac
    detach "$log" env "${environment[@]}" "$(binary "$role")" run --instance-id "$id"
    echo "$DETACHED_PID" >"$(pid_file "$role" "$n")"
    echo "127.0.0.1:$port" >"$(address_file "$role" "$n")"
    say "$role-$n: started, pid $DETACHED_PID, 127.0.0.1:$port"
}

ready() { curl -fs --noproxy '*' --max-time 2 -o /dev/null "http://$(instance_address "$1" "$2")/readyz"; }

# wait_ready ROLE N: fails with the end of its log when it dies or stays unready.
wait_ready() {
    local role=$1 n=$2 pid
    pid=$(pid_in "$(pid_file "$role" "$n")")
    settled() { ready "$role" "$n" || [[ -z $(command_of "$pid") ]]; }
    if wait_until "$READY_SECONDS_MAX" settled && instance_runs "$role" "$n"; then return; fi
    tail -n 15 "$(log_file "$role" "$n")" >&2 || true
    if instance_runs "$role" "$n"; then
        die "$role-$n: not ready after ${READY_SECONDS_MAX} s; the end of $(log_file "$role" "$n") is above"
    fi
    forget "$role" "$n"
    die "$role-$n: exited at once; the end of $(log_file "$role" "$n") is above"
}

forget() { rm -f "$(pid_file "$1" "$2")" "$(address_file "$1" "$2")"; }

grow() {
    local role=$1 want=$2 n
    for ((n = 1; n <= want; n++)); do
        if instance_runs "$role" "$n"; then
            if runs_earlier_build "$role" "$n"; then
                say "$role-$n: runs an earlier build; 'make scale-stop' and scaling again renews it"
            fi
        else
            forget "$role" "$n"
            start "$role" "$n"
        fi
    done
    for ((n = 1; n <= want; n++)); do wait_ready "$role" "$n"; done
}

# shrink ROLE WANT: asks every surplus instance to drain, then waits for all of them.
shrink() {
    local role=$1 want=$2 n failed=0
    for n in $(instance_numbers "$role"); do
        if ((n <= want)); then continue; fi
        if instance_runs "$role" "$n"; then
            say "$role-$n: draining, pid $(pid_in "$(pid_file "$role" "$n")")"
            kill -TERM "$(pid_in "$(pid_file "$role" "$n")")" 2>/dev/null || true
        fi
    done
    for n in $(instance_numbers "$role"); do
        if ((n <= want)); then continue; fi
        await_exit "$role" "$n" || failed=1
        forget "$role" "$n"
    done
    return "$failed"
}

# await_exit ROLE N: past the deadline it is killed, which loses nothing (its claims end with
# its lease), but is a failure to report.
await_exit() {
    local role=$1 n=$2
    gone() { ! instance_runs "$role" "$n"; }
    if wait_until "$STOP_SECONDS_MAX" gone; then return; fi
    warn "$role-$n: still there after ${STOP_SECONDS_MAX} s; killing it (its claims are free when its lease ends)"
    kill -KILL "$(pid_in "$(pid_file "$role" "$n")")" 2>/dev/null || true
    wait_until 5 gone || warn "$role-$n: cannot be killed"
    return 1
}

converge() {
    local role=$1 want=$2 running=0 n
    if ((want > 0)); then grow "$role" "$want"; fi
    shrink "$role" "$want" || failures=1
    for n in $(instance_numbers "$role"); do
        if instance_runs "$role" "$n"; then running=$((running + 1)); fi
    done
    say "$role: $running running"
}

usage="usage: scale.sh streamer|collector|gateway|all N   (N from 0 to $INSTANCES_MAX)"
role=${1:-} want=${2:-}
[[ $role =~ ^(streamer|collector|gateway|all)$ && $want =~ ^(0|[1-9][0-9]?)$ ]] || die "$usage"
((want <= INSTANCES_MAX)) || die "$usage"

# Up: whoever takes comes before whoever gives. Down: the other way round.
if [[ $role != all ]]; then
    order=("$role")
elif ((want > 0)); then
    order=(collector gateway streamer)
else
    order=(streamer collector gateway)
fi

mkdir -p "$PID_DIR" "$LOG_DIR"
if ((want > 0)); then
    need curl
    for role in "${order[@]}"; do need_binary "$role"; done
    if [[ " ${order[*]} " == *" streamer "* ]]; then need_csv_file; fi
    "$ROOT/scripts/etcd.sh" start
fi
# Two at once would start the same number twice.
if have flock; then
    exec 9>"$PID_DIR/scale.lock"
    flock -w 60 9 || die "another scale.sh has been at work for a minute"
fi
failures=0
for role in "${order[@]}"; do converge "$role" "$want"; done
exit "$failures"
