#!/usr/bin/env bash
# A table of the running instances, as the first gateway that answers sees them; from the pid
# files alone when none answers.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
source "$(dirname "${BASH_SOURCE[0]}")/api.sh"

ROW='%-10s %-22s %8s  %-21s %-10s %6s %16s %9s %8s\n'

header() {
    # shellcheck disable=SC2059  # the format is the table's shape
    printf "$ROW" ROLE INSTANCE PID ADDRESS STATE CLAIMS RATE BACKLOG LAG
}

# Unknown numbers are shown as -, never as 0. A streamer's rate is in rows, the others' in samples.
from_gateway() {
    local stats role instance pid address state claims rate backlog lag
    stats=$(api "/api/v1/clusters/$CLUSTER_ID/stats") || return 1
    say "cluster $CLUSTER_ID by $GATEWAY: $(jq -r '"\(.hosts // "-") hosts, \(.gpus // "-") GPUs, samples stored \(.samples.stored // "-"), queued \(.samples.queued // "-")"' <<<"$stats")"
    say
    header
    jq -r 'def show: if . == null then "-" elif type == "number" then (. * 10 | round / 10 | tostring) else tostring end;
        def rate(unit): if . == null then "-" else (round | tostring) + " " + unit end;
        .instances // [] | sort_by(.role, .instance)[]
        | [.role, .instance, .pid, .address, .state,
           (.claims | if type == "array" then length else . end),
           (if .role == "streamer" then .rows_per_second | rate("rows/s") else .samples_per_second | rate("samples/s") end),
           .backlog, (if .lag_ms == null then null else "\(.lag_ms | round) ms" end)]
        | map(show) | map(if . == "" then "-" else . end) | join("\t")' <<<"$stats" |
        while IFS=$'\t' read -r role instance pid address state claims rate backlog lag; do
            # shellcheck disable=SC2059  # as above
            printf "$ROW" "$role" "$instance" "$pid" "$address" "$state" "$claims" "$rate" "$backlog" "$lag"
        done
}

from_pid_files() {
    local role n state
    header
    for role in "${ROLES[@]}"; do
        for n in $(instance_numbers "$role" | sort -n); do
            if instance_runs "$role" "$n"; then state=running; else state=dead; fi
            # shellcheck disable=SC2059  # as above
            printf "$ROW" "$role" "$(instance_id "$role" "$n")" "$(pid_in "$(pid_file "$role" "$n")")" "$(instance_address "$role" "$n")" "$state" - - - -
        done
    done
}

if have curl && have jq && GATEWAY=$(gateway_url) && from_gateway; then exit; fi
say "no gateway answers: this is what the pid files say"
say
from_pid_files
