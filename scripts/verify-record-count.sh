#!/usr/bin/env bash
# Compares what was in the files with what the pipeline says and what it serves; fails on any
# difference.   verify-record-count.sh [CSV...]   (default: the demo's CSV, when it is there)
# Give every file that was ever read into this etcd: the pipeline's numbers cover all of them.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
source "$(dirname "${BASH_SOURCE[0]}")/api.sh"

DRAIN_SECONDS_MAX=60
PAGE=1000 # rows a request; small enough for any gateway's answer limit
differences=0

# check WHAT EXPECTED ACTUAL: a line of the table.
check() {
    local verdict=ok
    if [[ $2 != "$3" ]]; then
        verdict=DIFFERENT
        differences=$((differences + 1))
    fi
    printf '%-52s %12s %12s  %s\n' "$1" "$2" "$3" "$verdict"
}

# count_files FILE...: sets what the files themselves hold, by a reader that is not Nexus'.
count_files() {
    local file rows samples points gpus hosts
    FILE_ROWS=0 FILE_SAMPLES=0 FILE_POINTS=0
    for file in "$@"; do
        [[ -r $file ]] || die "$file cannot be read"
        read -r rows samples points gpus hosts < <(LC_ALL=C awk -f scripts/samples.awk "$file") || die "$file cannot be counted"
        say "$file: $rows rows, $samples samples, $points points, $gpus GPUs, $hosts hosts"
        FILE_ROWS=$((FILE_ROWS + rows)) FILE_SAMPLES=$((FILE_SAMPLES + samples)) FILE_POINTS=$((FILE_POINTS + points))
    done
    FILE_GPUS=$(for file in "$@"; do LC_ALL=C awk -v mode=list -f scripts/samples.awk "$file"; done | cut -f2 | LC_ALL=C sort -u | wc -l | tr -d ' ')
}

# list_gpus: every uuid, a line each, page by page.
list_gpus() {
    local answer cursor=
    while true; do
        answer=$(api "/api/v1/gpus?limit=$PAGE${cursor:+&cursor=$cursor}") || return 1
        jq -r '.data[].uuid' <<<"$answer"
        cursor=$(jq -r '.next_cursor // "" | @uri' <<<"$answer")
        [[ -n $cursor ]] || return 0
    done
}

# page_of SKIP < answers: for each answer that holds more than SKIP rows: uuid, last time, rows,
# measured values. A point's values are its named columns and the custom ones; absent is null.
page_of() {
    jq -r --argjson skip "$1" '.data[$skip:] | select(length > 0)
        | [(.[0].uuid | @uri), (.[-1].timestamp | @uri), length,
           (map([.gpu_utilization, .memory_utilization, .memory_used_mb, .memory_free_mb, .temperature,
                 .power_draw, .sm_clock_mhz, .memory_clock_mhz, (.custom_metrics // {})[]]
                | map(select(. != null)) | length) | add)] | map(tostring) | join(" ")'
}

# count_served: sets what the API really hands out, GPU by GPU, page after page until a page
# brings nothing new. A page starts at the last instant of the one before (both ends are
# inclusive), so its first row is known already.
count_served() {
    local skip=0 uuid at rows values
    SERVED_POINTS=0 SERVED_SAMPLES=0
    list_gpus >"$work/gpus" || die "the gateway's list of GPUs failed"
    SERVED_GPUS=$(wc -l <"$work/gpus" | tr -d ' ')
    jq -rR '(@uri) + " 1970-01-01T00%3A00%3A00Z"' "$work/gpus" >"$work/todo"
    while [[ -s $work/todo ]]; do
        # One curl for all of them: a process for each GPU would take longer than the answers.
        while read -r uuid at; do
            printf 'url = "%s/api/v1/gpus/%s/telemetry?start_time=%s&limit=%s"\n' "$GATEWAY" "$uuid" "$at" "$PAGE"
        done <"$work/todo" >"$work/urls"
        http --globoff --fail-early --config "$work/urls" >"$work/answers" || die "a page of telemetry could not be read"
        page_of "$skip" <"$work/answers" >"$work/pages"
        while read -r uuid at rows values; do
            SERVED_POINTS=$((SERVED_POINTS + rows)) SERVED_SAMPLES=$((SERVED_SAMPLES + values))
        done <"$work/pages"
        cut -d' ' -f1,2 "$work/pages" >"$work/todo"
        skip=1
    done
}

need_gateway
need awk
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

files=()
for file in "$@"; do
    if [[ $file != /* ]]; then file=$CALLER_DIR/$file; fi
    files+=("$file")
done
if ((${#files[@]} == 0)) && [[ -r $SAMPLE_CSV ]]; then files=("$SAMPLE_CSV"); fi

audit || die "$GATEWAY/audit does not answer as expected"
if ((${#files[@]} > 0)); then
    count_files "${files[@]}"
else
    say "no CSV to count: only what the pipeline itself says is compared"
    FILE_ROWS=$ROWS_OFFERED FILE_SAMPLES=$SAMPLES_ACCEPTED
fi
if ((ROWS_OFFERED < FILE_ROWS || SAMPLES_QUEUED > 0)); then
    wait_drained "$FILE_ROWS" "$DRAIN_SECONDS_MAX" || differences=$((differences + 1))
fi
count_served
audit || die "$GATEWAY/audit does not answer as expected"

say
printf '%-52s %12s %12s\n' "" expected found
if ((${#files[@]} > 0)); then
    check "rows in the files = rows offered" "$FILE_ROWS" "$ROWS_OFFERED"
    check "samples in the files = samples accepted" "$FILE_SAMPLES" "$SAMPLES_ACCEPTED"
    check "GPUs in the files = GPUs served" "$FILE_GPUS" "$SERVED_GPUS"
fi
check "rows offered = accepted + rejected" "$ROWS_OFFERED" $((ROWS_ACCEPTED + ROWS_REJECTED))
check "samples accepted = committed + queued" "$SAMPLES_ACCEPTED" $((SAMPLES_COMMITTED + SAMPLES_QUEUED))
check "samples committed = stored + retired + dead" "$SAMPLES_COMMITTED" $((SAMPLES_STORED + SAMPLES_RETIRED + SAMPLES_DEAD))
check "samples dead" 0 "$SAMPLES_DEAD"
check "samples stored + queued = samples served" $((SAMPLES_STORED + SAMPLES_QUEUED)) "$SERVED_SAMPLES"
if ((${#files[@]} == 0)); then
    printf '%-52s %12s %12s\n' "points served (nothing to compare with)" - "$SERVED_POINTS"
elif ((SAMPLES_RETIRED > 0)); then
    printf '%-52s %12s %12s\n' "points served ($SAMPLES_RETIRED samples have left by retention)" "<= $FILE_POINTS" "$SERVED_POINTS"
else
    check "points in the files = points served" "$FILE_POINTS" "$SERVED_POINTS"
fi
check "audit is clean" true "$AUDIT_CLEAN"
check "audit's delta" 0 "$AUDIT_DELTA"
say
if ((differences > 0)); then
    die "$differences difference(s). Were other files read into this etcd, or does one loop? Name all files as arguments."
fi
say "all equal: nothing lost, nothing twice"
