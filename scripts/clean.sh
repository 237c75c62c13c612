#!/usr/bin/env bash
# Removes what was built and logged. Never what etcd stores, never what still runs.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

any_instance_runs && die "instances still run: 'make scale-stop' first"
cargo clean
rm -f "$LOG_DIR"/{streamer,collector,gateway}-*.log "$LOG_DIR"/{streamer,collector,gateway}-*.log.1
rm -rf "$LOG_DIR/scaling" "$PID_DIR/scaling"
if ! etcd_runs; then rm -f "$ETCD_LOG"; fi
say "what etcd stores stays under ${ETCD_DIR#"$ROOT"/}"
