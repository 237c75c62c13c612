#!/usr/bin/env bash
# Shared by the scripts: paths, ports, processes by pid file, waiting. Sourced, never run.
# shellcheck disable=SC2034  # what is set here is used by those who source it
set -euo pipefail

CALLER_DIR=$PWD
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT"

BIN_DIR=${CARGO_TARGET_DIR:-$ROOT/target}/release
# NEXUS_STATE_DIR holds everything that runs and stays elsewhere: smoke.sh leaves a demo alone.
STATE_DIR=${NEXUS_STATE_DIR:-$ROOT/.nexus}
PIDS=${NEXUS_STATE_DIR:+$STATE_DIR/pids} LOGS=${NEXUS_STATE_DIR:+$STATE_DIR/logs}
PIDS=${PIDS:-$ROOT/.pids} LOGS=${LOGS:-$ROOT/logs}
SAMPLE_CSV=$STATE_DIR/sample.csv
# A second fleet beside the first (demo-scaling.sh) has its own pid files and logs.
PID_DIR=${NEXUS_PID_DIR:-$PIDS}
LOG_DIR=${NEXUS_LOG_DIR:-$LOGS}

# Not 2379: Debian's package may already run an etcd there, and that one is not ours.
ETCD_PORT=${ETCD_PORT:-12379}
ETCD_PEER_PORT=${ETCD_PEER_PORT:-12380}
ETCD_QUOTA_BYTES=${ETCD_QUOTA_BYTES:-8589934592}
ETCD_DIR=$STATE_DIR/etcd
ETCD_PID_FILE=$PIDS/etcd.pid
ETCD_PORT_FILE=$PIDS/etcd.port
ETCD_LOG=$LOGS/etcd.log
# Files that the binaries read, wherever they are started: as the caller named them.
for name in ETCD_CA_FILE ETCD_CERT_FILE ETCD_KEY_FILE ETCD_PASSWORD_FILE; do
    if [[ -n ${!name:-} && ${!name} != /* ]]; then export "$name=$CALLER_DIR/${!name}"; fi
done
unset name

CLUSTER_ID=${CLUSTER_ID:-local-cluster}
ROLES=(streamer collector gateway)

say() { printf '%s\n' "$*"; }
warn() { printf '%s\n' "$*" >&2; }
die() {
    warn "$*"
    exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }

# need TOOL...: stops with what to do when one is missing.
need() {
    local tool
    for tool in "$@"; do
        have "$tool" || die "$tool is missing: run 'make deps'"
    done
}

# --- processes -------------------------------------------------------------------------------

# command_of PID: its command line with a space behind every word; nothing when it is gone
# (a zombie has none either, and counts as gone). One that is just being replaced by exec has none
# for a moment: up to seconds, while its program is read from a busy disk.
command_of() {
    if [[ ! -d /proc/self ]]; then
        ps -ww -o args= -p "$1" 2>/dev/null | sed 's/$/ /' || true
        return
    fi
    local words name state rest tries
    for ((tries = 0; tries < 500; tries++)); do
        words=$({ tr '\0' ' ' <"/proc/$1/cmdline"; } 2>/dev/null) || return 0
        if [[ -n $words ]]; then
            printf '%s' "$words"
            return
        fi
        state=
        { while read -r name state rest && [[ $name != State: ]]; do :; done <"/proc/$1/status"; } 2>/dev/null || return 0
        case $state in '' | Z | X) return ;; esac
        sleep 0.02
    done
}

# pid_in FILE: the number in a pid file; nothing when there is no file or no number in it.
pid_in() {
    local pid=
    if [[ -f $1 ]]; then read -r pid <"$1" || true; fi
    if [[ $pid =~ ^[1-9][0-9]*$ ]]; then echo "$pid"; fi
}

# pid_runs FILE WORDS: whether the process in a pid file lives and has WORDS in its command
# line. The system gives numbers out again, so a number alone proves nothing.
pid_runs() {
    local pid
    pid=$(pid_in "$1")
    [[ -n $pid && "$(command_of "$pid")" == *"$2"* ]]
}

# detach LOG COMMAND...: runs it in its own session, so that neither Ctrl-C nor a closed
# terminal reaches it. Leaves its process id in DETACHED_PID.
detach() {
    local log=$1
    shift
    local session=(nohup)
    if have setsid; then session=(setsid); fi
    # 9 is the lock of scale.sh: a child that kept it open would hold it for ever.
    "${session[@]}" "$@" >>"$log" 2>&1 </dev/null 9>&- &
    DETACHED_PID=$!
}

# wait_until SECONDS COMMAND...: whether the command succeeded before the deadline.
wait_until() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        ((SECONDS < deadline)) || return 1
        sleep 0.1
    done
}

# port_taken PORT: whether something listens on the loopback port.
port_taken() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# port_owner PORT: who listens there, in words, as far as this user may see it.
port_owner() {
    local line=
    if have ss; then line=$(ss -Hltnp "sport = :$1" 2>/dev/null | sed -n 's/.*users:(("\([^"]*\)",pid=\([0-9]*\).*/\1 (pid \2)/p' | head -n 1); fi
    echo "${line:-another process}"
}

# --- instances -------------------------------------------------------------------------------

pid_file() { echo "$PID_DIR/$1-$2.pid"; }
address_file() { echo "$PID_DIR/$1-$2.addr"; }
log_file() { echo "$LOG_DIR/$1-$2.log"; }

# instance_id ROLE N. Where several machines share an etcd, the machine is part of the name.
instance_id() {
    if [[ -n ${ETCD_ENDPOINTS:-} ]]; then echo "$(uname -n)-$1-$2"; else echo "$1-$2"; fi
}

# instance_runs ROLE N
instance_runs() { pid_runs "$(pid_file "$1" "$2")" "/nexus-$1 run --instance-id "; }

# instance_numbers ROLE: the numbers that have a pid file, highest first.
instance_numbers() {
    local file number
    for file in "$PID_DIR/$1"-*.pid; do
        number=${file##*-}
        number=${number%.pid}
        if [[ $number =~ ^[1-9][0-9]*$ ]]; then echo "$number"; fi
    done | sort -rn
}

# instance_address ROLE N: where it was told to listen when it was started.
instance_address() {
    local file
    file=$(address_file "$1" "$2")
    if [[ -f $file ]]; then cat "$file"; fi
}

# runs_earlier_build ROLE N: whether its binary was replaced since it started (Linux only).
runs_earlier_build() {
    local exe
    exe=$(readlink "/proc/$(pid_in "$(pid_file "$1" "$2")")/exe" 2>/dev/null || true)
    [[ $exe == *"/nexus-$1 (deleted)" ]]
}

# any_instance_runs: of any role.
any_instance_runs() {
    local role n
    for role in "${ROLES[@]}"; do
        for n in $(instance_numbers "$role"); do
            if instance_runs "$role" "$n"; then return 0; fi
        done
    done
    return 1
}

binary() { echo "$BIN_DIR/nexus-$1"; }

need_binary() {
    [[ -x $(binary "$1") ]] || die "$(binary "$1") is missing: run 'make build-nexus'"
}

# --- etcd and input --------------------------------------------------------------------------

etcd_runs() { pid_runs "$ETCD_PID_FILE" "--data-dir=$ETCD_DIR "; }

# etcd_endpoints: the ones given, otherwise those of the private etcd.
etcd_endpoints() {
    local port=$ETCD_PORT
    if [[ -n ${ETCD_ENDPOINTS:-} ]]; then
        echo "$ETCD_ENDPOINTS"
        return
    fi
    # The running one may have been started with another ETCD_PORT than this call has.
    if etcd_runs && [[ -s $ETCD_PORT_FILE ]]; then port=$(<"$ETCD_PORT_FILE"); fi
    echo "http://127.0.0.1:$port"
}

# write_sample: the demo's CSV. An unchanged file is left alone: a new one under the same name
# would be a rotation to whoever reads it.
write_sample() {
    need_binary streamer
    mkdir -p "$STATE_DIR"
    rm -f "$SAMPLE_CSV.new"
    "$(binary streamer)" generate --preset sample --out "$SAMPLE_CSV.new"
    if cmp -s "$SAMPLE_CSV.new" "$SAMPLE_CSV"; then
        rm -f "$SAMPLE_CSV.new"
    else
        mv "$SAMPLE_CSV.new" "$SAMPLE_CSV"
    fi
}

# csv_file: the absolute path of CSV_FILE, or of the sample when none is named.
csv_file() {
    local file=${CSV_FILE:-$SAMPLE_CSV}
    if [[ $file != /* ]]; then file=$CALLER_DIR/$file; fi
    echo "$file"
}

# need_csv_file: a named one must be there, the sample is written.
need_csv_file() {
    local file
    file=$(csv_file)
    if [[ -r $file ]]; then return; fi
    [[ $file == "$SAMPLE_CSV" ]] || die "CSV_FILE $file cannot be read"
    write_sample
}
