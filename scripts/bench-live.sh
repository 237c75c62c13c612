#!/usr/bin/env bash
# Measures live streams: thousands of WebSocket subscribers on one gateway, what clients of
# everything that never read do to them, and how late a replayed row reaches a client. All on this
# machine.
#   SUBSCRIBERS (5000), STUCK (1000), SECONDS_EACH (30), ROUNDS (6), PHASES (fan,stuck,flow,idle)
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$here/scripts/lib.sh"

need etcd etcdctl cargo
# A descriptor a connection, here and at the gateway, which inherits the limit.
files=$((${SUBSCRIBERS:-5000} + ${STUCK:-1000} + 1000))
ulimit -n "$files" 2>/dev/null || die "bench-live: $files open files are needed, the limit is $(ulimit -Hn): raise it, or set SUBSCRIBERS"
cargo build --release --workspace --bins
export NEXUS_BIN_DIR=$BIN_DIR
exec cargo bench -p nexus-gateway --bench subscribers
