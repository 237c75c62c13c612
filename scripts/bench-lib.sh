#!/usr/bin/env bash
# Shared by the benchmarks: an etcd of their own, and what a process costs. Sourced after lib.sh,
# never run. DIR is where that etcd stores, PORT where it listens.
etcd_pid=

stop_etcd() {
    if [[ -n $etcd_pid ]]; then kill -TERM "$etcd_pid" 2>/dev/null || true; fi
    gone() { [[ -z $(command_of "$etcd_pid") ]]; }
    if [[ -n $etcd_pid ]]; then wait_until 15 gone || true; fi
    etcd_pid=
    rm -rf "$DIR/etcd"
}
start_etcd() {
    local client=http://127.0.0.1:$PORT peer=http://127.0.0.1:$((PORT + 1))
    if port_taken "$PORT"; then die "port $PORT is taken; choose another with BENCH_ETCD_PORT=<port>"; fi
    detach "$LOG_DIR/etcd.log" etcd --data-dir="$DIR/etcd" --listen-client-urls="$client" \
        --advertise-client-urls="$client" --listen-peer-urls="$peer" \
        --initial-advertise-peer-urls="$peer" --initial-cluster="default=$peer" \
        --snapshot-count=2000 --auto-compaction-mode=periodic --auto-compaction-retention=1m \
        --quota-backend-bytes=8589934592 --logger=zap --log-level=error
    etcd_pid=$DETACHED_PID
    healthy() { curl -fs --noproxy '*' --max-time 2 "$client/health" >/dev/null; }
    wait_until 30 healthy || die "etcd is not healthy; see $LOG_DIR/etcd.log"
    export ETCD_ENDPOINTS=$client
}

# keep FILE COMMAND...: shows what it prints, and adds it to a file. Not by a pipeline: what is
# started in one of its shells is not known to the trap that ends it.
keep() {
    local file=$1
    "${@:2}" >"$file.new"
    tee -a "$file" <"$file.new"
    rm "$file.new"
}

# cpu PID: seconds of processor time so far. peak PID: largest resident memory, in MiB.
cpu() { awk -v hz="$(getconf CLK_TCK)" '{ sub(/.*\) /, ""); print ($12 + $13) / hz }' "/proc/$1/stat"; }
peak() { awk '/^VmHWM/ { printf "%d\n", $2 / 1024 }' "/proc/$1/status"; }
