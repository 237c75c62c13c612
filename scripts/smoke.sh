#!/usr/bin/env bash
# The README, done: the demo, its curl commands, scaling up and down, the counts after each
# step. Everything in a directory and on ports of its own; nothing of it stays.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
NEXUS_STATE_DIR=$(mktemp -d)
export NEXUS_STATE_DIR
export ETCD_PORT=${SMOKE_ETCD_PORT:-14379} ETCD_PEER_PORT=${SMOKE_ETCD_PEER_PORT:-14380}
export GATEWAY_PORT_BASE=${SMOKE_GATEWAY_PORT_BASE:-18080}
export STREAMER_METRICS_PORT_BASE=19101 COLLECTOR_METRICS_PORT_BASE=19201
export UPLOAD_DIR=$NEXUS_STATE_DIR/uploads
mkdir "$UPLOAD_DIR"
unset ETCD_ENDPOINTS NEXUS_ROOT NEXUS_PID_DIR NEXUS_LOG_DIR GATEWAY_URL CSV_FILE LOOP_MODE REPLAY_SPEED
source "$here/scripts/lib.sh"

passed=0
clean_up() {
    local status=$?
    make -s scale-stop stop-etcd >/dev/null 2>&1 || true
    if ((status == 0)); then rm -rf "$NEXUS_STATE_DIR"; else warn "smoke: failed after $passed steps; logs are in $NEXUS_STATE_DIR/logs"; fi
}
trap clean_up EXIT

# try COMMAND...: runs it; what it says is only shown when it fails.
try() {
    local said
    if ! said=$("$@" 2>&1); then
        printf '%s\n' "$said" >&2
        die "smoke: '$*' failed"
    fi
    passed=$((passed + 1))
    say "smoke: ok  $*"
}

# ask_as_told: every curl of the README, on our port.
ask_as_told() {
    local url
    while read -r url; do
        try curl -fsS --noproxy '*' --max-time 5 -o /dev/null "${url//127.0.0.1:8080/127.0.0.1:$GATEWAY_PORT_BASE}"
    done < <(grep -oE "^curl '[^']+'" README.md | cut -d"'" -f2)
    for url in swagger/ graphql; do
        try curl -fsS --noproxy '*' --max-time 5 -H 'Accept: text/html' -o /dev/null "http://127.0.0.1:$GATEWAY_PORT_BASE/$url"
    done
    while read -r url; do
        try first_event "${url//127.0.0.1:8080/127.0.0.1:$GATEWAY_PORT_BASE}"
    done < <(grep -oE "^curl -N '[^']+'" README.md | cut -d"'" -f2)
    # From npm, where there is npm: the client that people know.
    if have npx; then try wscat_hears; else say "smoke: no npx here: wscat was not tried"; fi
}

# first_event URL: whether a stream of events begins to tell.
first_event() { grep -m1 '^event: telemetry_update' < <(timeout 10 curl -fsSN --noproxy '*' "$1"); }

# wscat_hears: the README's wscat, on our port.
wscat_hears() {
    local line
    line=$(grep -m1 '^npx wscat' README.md)
    line=${line//127.0.0.1:8080/127.0.0.1:$GATEWAY_PORT_BASE}
    # It ends with its input, as it would with a terminal.
    grep -m1 telemetry_update < <(timeout 60 bash -c "${line/npx/npx --yes}" < <(sleep 30))
}

# send_a_file: a file that is sent to a gateway is read to its end, and once only.
send_a_file() {
    local api=http://127.0.0.1:$GATEWAY_PORT_BASE file=$NEXUS_STATE_DIR/sent.csv answer url rows
    "$(binary streamer)" generate --hosts 2 --gpus-per-host 2 --seconds 5 --seed 3 --out "$file"
    answer=$(curl -fsS --noproxy '*' --max-time 30 -F "file=@$file" "$api/api/v1/csv/upload")
    url=$api$(jq -r .status_url <<<"$answer")
    rows=$(jq .record_count <<<"$answer")
    read_whole() { [[ $(curl -fs --noproxy '*' --max-time 5 "$url" | jq -c '[.state, .rows_accepted]') == "[\"done\",$rows]" ]]; }
    wait_until 60 read_whole
    [[ $(curl -fsS --noproxy '*' --max-time 30 -F "file=@$file" "$api/api/v1/csv/upload" | jq .duplicate) == true ]]
}

cd "$here"
# Shown, because it takes minutes the first time.
cargo build --release --workspace --bins
try make demo
ask_as_told
try make scale-status
try make scale-collectors COLLECTOR_INSTANCES=5
try make scale-streamers STREAMER_INSTANCES=4
try make scale-gateways API_GW_INSTANCES=1
try make verify
try make demo
try env GATEWAY_PORT_BASE=$((GATEWAY_PORT_BASE + 100)) STREAMER_METRICS_PORT_BASE=19301 COLLECTOR_METRICS_PORT_BASE=19401 \
    make demo-scaling SCALING_SECONDS=20 SCALING_HOSTS=4 REPLAY_SPEED=2
try make demo LIVE=1
try send_a_file
try make scale-stop stop-etcd
say "smoke: $passed steps passed"
