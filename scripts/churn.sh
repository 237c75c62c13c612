#!/usr/bin/env bash
# Every fault there is, on the real programs and real etcds, and what it costs (docs/RELIABILITY.md):
#   churn.sh [long]     all of it: 10,000 faults on wires, 100 million samples; minutes, alone
#   churn.sh short      a little of each
#   churn.sh PHASE...   some phases, by default as long does (see: churn.sh phases)
#   churn.sh table      the figures of what ran last
# Results lie under .nexus/churn. A phase that failed fails the whole, after the others ran.
#   CHURN_TIMES=told: times beyond their bounds fail nothing (make test: others use the machine);
#     losses, doubles, broken laws and everything that never happens do
#   CHURN_FAULTS, CHURN_SAMPLES, CHURN_ROUNDS, CHURN_OUTAGE_SECONDS, CHURN_SEED
#   NEXUS_ETCD_BIN_DIR: another etcd than the installed one (scripts/get-etcd35.sh)
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

PHASE_SECONDS_MAX=${CHURN_PHASE_SECONDS_MAX:-900} # of any phase: it hangs then
export CHURN_RESULTS=${CHURN_RESULTS:-$STATE_DIR/churn}
for name in $(compgen -e ETCD_ || true); do unset "$name"; done
unset NEXUS_ROOT

build() {
    cargo build --release --workspace --bins
    # As `cargo test` builds it; the programs stay those that ship.
    harness=$(cargo test --workspace --test churn --no-run --message-format=json |
        jq -r 'select(.executable != null and .target.name == "churn") | .executable')
    [[ -x $harness ]] || die "churn: no harness was built"
    local role
    for role in "${ROLES[@]}"; do
        if grep -q NEXUS_CRASH "$(binary "$role")"; then die "churn: $(binary "$role") has crash points: it is not what ships"; fi
    done
    export NEXUS_BIN_DIR=$BIN_DIR
}

# own_network: what gives a command a network namespace of its own, where that is possible.
own_network() {
    if have unshare && have ip && have nsenter && unshare --net true 2>/dev/null; then
        echo "unshare --net env CHURN_NETNS=1"
    fi
}

# phase NAME: whether it passed.
phase() {
    local before=()
    if [[ $1 == partition ]]; then read -ra before <<<"$(own_network)"; fi
    say "churn: $1"
    timeout --kill-after=10 "$PHASE_SECONDS_MAX" "${before[@]}" "$harness" "$1"
}

scale_of() {
    case $1 in
        short)
            export CHURN_FAULTS=${CHURN_FAULTS:-300} CHURN_SAMPLES=${CHURN_SAMPLES:-2000000}
            export CHURN_ROUNDS=${CHURN_ROUNDS:-2} CHURN_OUTAGE_SECONDS=${CHURN_OUTAGE_SECONDS:-10}
            ;;
        *)
            export CHURN_FAULTS=${CHURN_FAULTS:-10000} CHURN_SAMPLES=${CHURN_SAMPLES:-100000000}
            export CHURN_ROUNDS=${CHURN_ROUNDS:-20} CHURN_OUTAGE_SECONDS=${CHURN_OUTAGE_SECONDS:-60}
            ;;
    esac
}

need jq
asked=${1:-long}
build
case $asked in
    phases | table) exec "$harness" "$asked" ;;
    long | short)
        scale_of "$asked"
        mapfile -t phases < <("$harness" phases)
        rm -f "$CHURN_RESULTS"/*.json
        ;;
    *)
        scale_of long
        phases=("$@")
        ;;
esac
failed=()
for name in "${phases[@]}"; do
    if ! phase "$name"; then failed+=("$name"); fi
done
say "churn: $(getconf _NPROCESSORS_ONLN) cores, $(uname -sr), $(date -u +%F)"
"$harness" table || true
if ((${#failed[@]} > 0)); then die "churn: failed: ${failed[*]}"; fi
say "churn: passed"
