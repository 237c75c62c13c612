#!/usr/bin/env bash
# All tests (make test): those of the crates, the scripts, the first minutes of a user, the
# deployment without a cluster, and a little of every fault.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

MEMORY_MIB=4096 # what a dozen etcds need, each of which sets 128 MiB aside for its log

# in_memory: a folder there, if there is one with room.
in_memory() {
    local free
    free=$(df --block-size=M --output=avail /dev/shm 2>/dev/null | tail -n 1 | tr -dc '0-9')
    [[ -w /dev/shm ]] && ((${free:-0} >= MEMORY_MIB)) && echo /dev/shm
}

scripts/deps.sh
# The disk may be a part of somebody else's: an etcd that waits seconds for it elects and elects,
# which is not what the tests ask about. What is measured (make churn, make bench) is measured on it.
if [[ -z ${NEXUS_TEST_ETCD_DATA:-} ]] && NEXUS_TEST_ETCD_DATA=$(in_memory); then export NEXUS_TEST_ETCD_DATA; fi
# What deps.sh can install must be there: nobody shall believe a comparison that was not made.
if have apt-get; then export NEXUS_TEST_REFERENCE=required; fi
cargo test --workspace
scripts/check.sh
scripts/smoke.sh
scripts/test-deploy.sh
CHURN_TIMES=told scripts/churn.sh short
