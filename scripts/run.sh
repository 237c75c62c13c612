#!/usr/bin/env bash
# Runs one instance in the foreground against the private etcd (or ETCD_ENDPOINTS):
#   run.sh streamer|collector|gateway [FLAGS...]      PORT moves the gateway, CSV_FILE names the input
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

role=${1:-}
[[ $role =~ ^(streamer|collector|gateway)$ ]] || die "usage: run.sh streamer|collector|gateway [FLAGS...]"
shift
need_binary "$role"
if [[ $role == streamer ]]; then
    need_csv_file
    CSV_FILE=$(csv_file)
    export CSV_FILE
fi
"$ROOT/scripts/etcd.sh" start
ETCD_ENDPOINTS=$(etcd_endpoints)
export ETCD_ENDPOINTS CLUSTER_ID
exec "$(binary "$role")" run "$@"
