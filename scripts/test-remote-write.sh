#!/usr/bin/env bash
# Lets the real Prometheus and the real vmagent send to gateways of which each is killed (-9) on the
# way, and counts: what they say they sent, what Prometheus itself has kept, what Nexus stored, and
# whether the law holds. Needs the release build. All it starts is gone afterwards.
#   WRITE_SECONDS (30) of scraping; WRITE_TARGETS (50) scraped by each; WRITE_PORT (18200) and the
#   nine ports behind it
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export NEXUS_LOG_DIR=$here/logs/test-remote-write
source "$here/scripts/lib.sh"
source "$here/scripts/bench-lib.sh"

SECONDS_LONG=${WRITE_SECONDS:-30}
TARGETS=${WRITE_TARGETS:-50}
BASE=${WRITE_PORT:-18200}
DIR=$STATE_DIR/remote-write
PORT=$BASE
SENDERS=$STATE_DIR/peers
COLLECTOR=127.0.0.1:$((BASE + 2))
PROMETHEUS=127.0.0.1:$((BASE + 3)) VMAGENT=127.0.0.1:$((BASE + 4))
declare -A running=()

ask() { curl -fs --noproxy '*' --max-time 10 "$@"; }
# start NAME COMMAND...
start() {
    local name=$1
    shift
    detach "$LOG_DIR/$name.log" "$@"
    disown "$DETACHED_PID" # the shell need not say who was killed
    running[$name]=$DETACHED_PID
}
# stop NAME SIGNAL: and waits until it is gone.
stop() {
    local pid=${running[$1]:-}
    if [[ -z $pid ]]; then return; fi
    kill "-$2" "$pid" 2>/dev/null || true
    gone() { [[ -z $(command_of "$pid") ]]; }
    wait_until 60 gone || die "test-remote-write: $1 does not end"
    unset "running[$1]"
}
clean_up() {
    local name
    for name in "${!running[@]}"; do stop "$name" KILL; done
    stop_etcd
    rm -rf "$DIR"
}
# gateway N SOURCE: the Nth gateway.
gateway_port() { echo $((BASE + 4 + $1)); }
gateway() {
    start "gateway-$1" "$(binary gateway)" run --gateway-id "gateway-$1" --port "$(gateway_port "$1")" --write-source "$2"
    ready() { ask "http://127.0.0.1:$(gateway_port "$1")/readyz" >/dev/null; }
    wait_until 30 ready "$1" || die "test-remote-write: gateway $1 is not ready; see $LOG_DIR"
}
# of ADDRESS NAME: a metric of a process, all its series together.
of() { ask "http://$1/metrics" | awk -v name="$2" '$1 == name || index($1, name "{") == 1 { sum += $2 } END { printf "%.0f\n", sum }'; }
# source_of SOURCE FIELD
source_of() { ask "http://127.0.0.1:$(gateway_port 1)/api/v1/sources/$1" | jq -r ".$2"; }

# scrape_config: the collector's own metrics, under as many names as there are targets.
scrape_config() {
    local n
    printf 'global:\n  scrape_interval: 1s\n  external_labels:\n    cluster: %s\n' "$1"
    printf 'scrape_configs:\n  - job_name: nexus\n    relabel_configs:\n'
    printf '      - {source_labels: [__address__], target_label: instance}\n'
    printf '      - {target_label: __address__, replacement: "%s"}\n' "$COLLECTOR"
    printf '    static_configs:\n      - targets:\n'
    for ((n = 1; n <= TARGETS; n++)); do printf '          - host-%s:9100\n' "$n"; done
}
prometheus_config() {
    if (($1)); then scrape_config prometheus; else printf 'global:\n  external_labels:\n    cluster: prometheus\n'; fi
    cat <<CONFIG
remote_write:
  - url: http://127.0.0.1:$(gateway_port 1)/api/v1/write
    queue_config: {batch_send_deadline: 1s, min_backoff: 100ms, max_backoff: 1s, retry_on_http_429: true}
CONFIG
}
vmagent_config() { if (($1)); then scrape_config vmagent; else printf 'global:\n  scrape_interval: 1s\n'; fi; }

need etcd curl jq awk
for role in collector gateway; do need_binary "$role"; done
scripts/get-peers.sh
rm -rf "$DIR"
mkdir -p "$DIR" "$LOG_DIR"
trap clean_up EXIT
start_etcd
start collector "$(binary collector)" run --instance-id collector-1 --metrics-listen "$COLLECTOR"
gateway 1 prometheus
gateway 2 vmagent
gateway 3 vmagent
prometheus_config 1 >"$DIR/prometheus.yml"
vmagent_config 1 >"$DIR/vmagent.yml"
start prometheus "$SENDERS/bin/prometheus" --config.file="$DIR/prometheus.yml" --storage.tsdb.path="$DIR/tsdb" \
    --web.listen-address="$PROMETHEUS" --log.level=warn
start vmagent "$SENDERS/bin/vmagent" -promscrape.config="$DIR/vmagent.yml" -httpListenAddr="$VMAGENT" -loggerLevel=WARN \
    -remoteWrite.tmpDataPath="$DIR/vmagent" -remoteWrite.shardByURL -remoteWrite.label=cluster=vmagent \
    -remoteWrite.url="http://127.0.0.1:$(gateway_port 2)/api/v1/write" \
    -remoteWrite.url="http://127.0.0.1:$(gateway_port 3)/api/v1/write"

say "$TARGETS targets for $SECONDS_LONG s; each gateway is killed once"
for n in 1 2 3; do
    sleep $((SECONDS_LONG / 4))
    stop "gateway-$n" KILL
    sleep 2
    if ((n == 1)); then gateway 1 prometheus; else gateway "$n" vmagent; fi
done
sleep $((SECONDS_LONG / 4))

# Nothing more is scraped; what was is sent to its end.
prometheus_config 0 >"$DIR/prometheus.yml"
vmagent_config 0 >"$DIR/vmagent.yml"
kill -HUP "${running[prometheus]}" "${running[vmagent]}"
sent_by() {
    case $1 in
        # A try that failed is counted, and counted as tried again.
        prometheus) echo $(($(of "$PROMETHEUS" prometheus_remote_storage_samples_total) - $(of "$PROMETHEUS" prometheus_remote_storage_samples_retried_total))) ;;
        vmagent) of "$VMAGENT" vmagent_remotewrite_block_size_rows_sum ;;
    esac
}
pending() {
    case $1 in
        prometheus) of "$PROMETHEUS" prometheus_remote_storage_samples_pending ;;
        vmagent) echo $(($(of "$VMAGENT" vmagent_remotewrite_pending_data_bytes) + $(of "$VMAGENT" vmagent_remotewrite_pending_inmemory_blocks))) ;;
    esac
}
# settled SENDER: nothing waits, and nothing came for three seconds (stale markers come late).
settled() {
    local before
    before=$(sent_by "$1")
    sleep 3
    [[ $(pending "$1") == 0 && $(sent_by "$1") == "$before" && $(source_of "$1" rows_accepted) == "$before" ]]
}
failed=0
for sender in prometheus vmagent; do
    wait_until 60 settled "$sender" || failed=1
    sent=$(sent_by "$sender")
    accepted=$(source_of "$sender" rows_accepted)
    rejected=$(source_of "$sender" rows_rejected)
    say "$sender: sent $sent, taken $accepted, refused $rejected, stored $(source_of "$sender" samples)"
    if [[ $sent != "$accepted" || $rejected != 0 || $sent == 0 ]]; then failed=1; fi
done
# What Prometheus scraped is in its own database, too: the same number of values, whatever was sent.
kept=0
for name in $(ask "http://$PROMETHEUS/api/v1/label/__name__/values" | jq -r '.data[]'); do
    kept=$((kept + $(ask -G "http://$PROMETHEUS/api/v1/query" --data-urlencode "query=sum(count_over_time(${name}[1h]))" |
        jq -r '.data.result[0].value[1]')))
done
stored=$(source_of prometheus samples)
say "prometheus: $kept values in its own database, $stored stored"
if [[ $kept != "$stored" ]]; then failed=1; fi
audit=$(ask "http://127.0.0.1:$(gateway_port 1)/audit")
say "audit: $(jq -c '{clean, delta, samples}' <<<"$audit")"
if [[ $(jq -r .clean <<<"$audit") != true ]]; then failed=1; fi
again=0
for n in 1 2 3; do
    again=$((again + $(ask "http://127.0.0.1:$(gateway_port "$n")/metrics" | awk '/^nexus_write_requests_total\{outcome="stored-before"\}/ { sum += $2 } END { printf "%.0f\n", sum }')))
done
say "$again requests came again after they had been stored"
((failed == 0)) || die "test-remote-write: the counts differ; logs are in $LOG_DIR"
say "test-remote-write: nothing lost, nothing twice"
