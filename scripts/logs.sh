#!/usr/bin/env bash
# Follows the logs: logs.sh [NAME]   NAME: a role, an instance (collector-2) or etcd; default all.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

name=${1:-}
files=()
for file in "$LOG_DIR"/"$name"*.log; do
    if [[ -f $file ]]; then files+=("$file"); fi
done
((${#files[@]} > 0)) || die "no logs${name:+ of $name} in $LOG_DIR yet"
exec tail -n 20 -F "${files[@]}"
