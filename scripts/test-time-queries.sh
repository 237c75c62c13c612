#!/usr/bin/env bash
# Asks for telemetry by time and compares the answers with the CSV itself; fails on a wrong one.
#   test-time-queries.sh [CSV]    (default: the demo's; it must have been read to its end)
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
source "$(dirname "${BASH_SOURCE[0]}")/api.sh"

wrong=0

# verdict WHAT EXPECTED FOUND
verdict() {
    if [[ $2 == "$3" ]]; then
        printf 'ok     %s\n' "$1"
    else
        printf 'WRONG  %s\n         expected %s\n         found    %s\n' "$1" "$2" "$3"
        wrong=$((wrong + 1))
    fi
}

# times WHAT QUERY EXPECTED: the instants of the GPU's rows, in the order served.
times() {
    local found
    found=$(api "/api/v1/gpus/$gpu/telemetry?$2" | jq -r '[.data[].timestamp | sub("\\.0+Z$"; "Z")] | join(" ")') || found="no answer"
    verdict "$1" "$3" "$found"
}

# refused WHAT PATH STATUS WORD: the status, and that the answer names WORD.
refused() {
    local body status
    body=$(curl -s --noproxy '*' --max-time 10 -w '\n%{http_code}' "$GATEWAY$2") || body=000
    status=${body##*$'\n'}
    if [[ ${body%$'\n'*} != *"$4"* ]]; then status="$status without naming $4"; fi
    verdict "$1" "$3" "$status"
}

# shifted TIME SECONDS: that much later, in UTC.
shifted() { jq -rn --arg t "$1" --argjson s "$2" '$t | fromdateiso8601 + $s | todateiso8601'; }
# zoned TIME: the same instant on a clock two hours ahead, escaped for a query.
zoned() { jq -rn --arg t "$1" '($t | fromdateiso8601 + 7200 | strftime("%Y-%m-%dT%H:%M:%S")) + "+02:00" | @uri'; }

# values: every named value of the GPU, from the CSV, as {time: {name: number}}.
values_in_file() {
    awk -F '\t' -v gpu="$uuid" '
        BEGIN {
            split("GPU_UTIL gpu_utilization MEM_COPY_UTIL memory_utilization FB_USED memory_used_mb FB_FREE memory_free_mb GPU_TEMP temperature POWER_USAGE power_draw SM_CLOCK sm_clock_mhz MEM_CLOCK memory_clock_mhz", pair, " ")
            for (i = 1; i in pair; i += 2) wire["DCGM_FI_DEV_" pair[i]] = pair[i + 1]
        }
        $2 == gpu && $4 in wire { print $1 "\t" wire[$4] "\t" $5 }' "$work/list" |
        jq -cSnR 'reduce (inputs | split("\t")) as [$t, $name, $value] ({}; .[$t][$name] = ($value | tonumber))'
}
values_served() {
    api "/api/v1/gpus/$gpu/telemetry?start_time=$first&limit=1000" |
        jq -cS 'reduce .data[] as $row ({};
            ($row | {gpu_utilization, memory_utilization, memory_used_mb, memory_free_mb, temperature,
                     power_draw, sm_clock_mhz, memory_clock_mhz} | with_entries(select(.value != null))) as $named
            | if $named == {} then . else .[$row.timestamp | sub("\\.0+Z$"; "Z")] = $named end)'
}

need_gateway
csv=${1:-$SAMPLE_CSV}
if [[ $csv != /* ]]; then csv=$CALLER_DIR/$csv; fi
[[ -r $csv ]] || die "$csv cannot be read: run 'make demo' first, or name a CSV"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
LC_ALL=C awk -v mode=list -f scripts/samples.awk "$csv" >"$work/list"

uuid=$(cut -f2 "$work/list" | sed -n 1p)
gpu=$(jq -rn --arg u "$uuid" '$u | @uri')
instants=()
while read -r instant; do instants+=("$instant"); done < <(awk -F '\t' -v gpu="$uuid" '$2 == gpu { print $1 }' "$work/list" | LC_ALL=C sort -u)
count=${#instants[@]}
((count >= 3)) || die "$csv has $count instants of $uuid; at least 3 are needed"
first=${instants[0]} second=${instants[1]} third=${instants[2]} last=${instants[count - 1]}
at_first=$(awk -F '\t' -v at="$first" '$1 == at { print $2 }' "$work/list" | LC_ALL=C sort -u | wc -l | tr -d ' ')
say "$uuid: $count instants from $first to $last"

if ((count <= 100)); then times "without parameters all come, oldest first" "" "${instants[*]}"; fi
times "both ends are inclusive" "start_time=$first&end_time=$first" "$first"
times "a range holds what lies in it" "start_time=$second&end_time=$third" "$second $third"
times "an open end reaches the last" "start_time=$last" "$last"
times "an open start reaches the first" "end_time=$first" "$first"
times "limit without a start gives the newest" "limit=1" "$last"
times "they still come oldest first" "limit=2" "${instants[count - 2]} $last"
times "limit with a start gives the first ones" "start_time=$first&limit=2" "$first $second"
times "half a second later the first is out" "start_time=${first%Z}.5Z&end_time=$second" "$second"
times "an offset is the same instant" "start_time=$(zoned "$first")&end_time=$(zoned "$first")" "$first"
times "before the first there is nothing" "end_time=$(shifted "$first" -1)" ""
times "after the last there is nothing" "start_time=$(shifted "$last" 1)" ""
verdict "the named values are those of the file, and no others" "$(values_in_file)" "$(values_served)"
verdict "all GPUs of one instant" "$at_first" \
    "$(api "/api/v1/telemetry?start_time=$first&end_time=$first&limit=1000" | jq -r '[.data[] | .uuid] | unique | length')"
refused "a bad start_time is refused by name" "/api/v1/gpus/$gpu/telemetry?start_time=yesterday" 400 start_time
refused "a bad end_time is refused by name" "/api/v1/gpus/$gpu/telemetry?end_time=2025-13-01T00:00:00Z" 400 end_time
refused "a bad limit is refused by name" "/api/v1/gpus/$gpu/telemetry?limit=many" 400 limit
refused "an unknown GPU is not found" "/api/v1/gpus/GPU-none/telemetry" 404 ""

if ((wrong > 0)); then die "$wrong wrong"; fi
say "all answers are right"
