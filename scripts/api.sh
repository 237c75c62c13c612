#!/usr/bin/env bash
# Shared by the scripts that ask a gateway: which one answers, what it says, waiting for the
# queue to drain. Sourced after lib.sh, never run.

# gateway_url: GATEWAY_URL when set, otherwise the first local gateway that is ready.
gateway_url() {
    local n address
    if [[ -n ${GATEWAY_URL:-} ]]; then
        echo "${GATEWAY_URL%/}"
        return
    fi
    for n in $(instance_numbers gateway | sort -n); do
        address=$(instance_address gateway "$n")
        if instance_runs gateway "$n" && http -o /dev/null "http://$address/readyz" 2>/dev/null; then
            echo "http://$address"
            return
        fi
    done
    return 1
}

need_gateway() {
    need curl jq
    GATEWAY=$(gateway_url) || die "no gateway answers: start one with 'make scale-gateways', or name one in GATEWAY_URL"
}

# http ARGUMENTS...: curl that fails on an error status and never goes through a proxy.
http() { curl -fsS --noproxy '*' --max-time 30 "$@"; }

# api PATH: the body of a GET.
api() { http "$GATEWAY$1"; }

# status_of URL: the HTTP status of a GET; 000 when nothing answers.
status_of() { curl -s --noproxy '*' --max-time 5 -o /dev/null -w '%{http_code}' "$1" || true; }

# audit: sets what /audit says. Fails when it does not answer or a number is missing.
audit() {
    local line
    line=$(api /audit | jq -er '[.clean, .delta, .rows.offered, .rows.accepted, .rows.rejected,
        .samples.accepted, .samples.queued, .samples.committed, .samples.stored, .samples.retired,
        .samples.dead] | if any(. == null) then error("a number is missing") else map(tostring) | join(" ") end') || return 1
    # shellcheck disable=SC2034  # not every script uses every number
    read -r AUDIT_CLEAN AUDIT_DELTA ROWS_OFFERED ROWS_ACCEPTED ROWS_REJECTED \
        SAMPLES_ACCEPTED SAMPLES_QUEUED SAMPLES_COMMITTED SAMPLES_STORED SAMPLES_RETIRED \
        SAMPLES_DEAD <<<"$line"
}

# progress TEXT: one line, written over on a terminal and plain elsewhere; progress_end ends it.
progress() { if [[ -t 1 ]]; then printf '\r\033[K%s' "$*"; else say "$*"; fi; }
progress_end() { if [[ -t 1 ]]; then printf '\n'; fi; }

# progress_line TOTAL BEFORE SECONDS: how far the rows have come, from the last audit.
progress_line() {
    progress "rows $ROWS_OFFERED/$1  samples queued $SAMPLES_QUEUED, stored $SAMPLES_STORED  ($(((ROWS_OFFERED - $2) / ($3 > 0 ? $3 : 1))) rows/s)"
}

# wait_rows TOTAL UP_TO SECONDS: waits until UP_TO rows of TOTAL have been offered.
wait_rows() { wait_pipeline "$1" "$2" "$3" rows; }

# wait_drained TOTAL SECONDS: waits until all rows are offered and the queue is empty.
wait_drained() { wait_pipeline "$1" "$1" "$2" drained; }

# wait_pipeline TOTAL UP_TO SECONDS rows|drained
wait_pipeline() {
    local total=$1 up_to=$2 deadline=$((SECONDS + $3)) goal=$4 before='' since=$SECONDS told=-2
    while true; do
        # A gateway may be replaced meanwhile; only the deadline decides.
        if audit 2>/dev/null; then
            before=${before:-$ROWS_OFFERED}
            if ((ROWS_OFFERED >= up_to)) && [[ $goal == rows || $SAMPLES_QUEUED == 0 ]]; then
                progress_line "$total" "$before" $((SECONDS - since))
                progress_end
                return
            fi
            # Four times a second on a terminal, every two seconds in a log.
            if [[ -t 1 ]] || ((SECONDS >= told + 2)); then
                progress_line "$total" "$before" $((SECONDS - since))
                told=$SECONDS
            fi
        fi
        if ((SECONDS >= deadline)); then
            progress_end
            warn "not $goal after $3 s: rows ${ROWS_OFFERED:-?} of $total offered, samples queued ${SAMPLES_QUEUED:-?}"
            return 1
        fi
        sleep 0.25
    done
}
