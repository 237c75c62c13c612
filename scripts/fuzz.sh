#!/usr/bin/env bash
# Fuzzes each target for a while, guided by coverage. Inputs that reach something new are kept
# in .nexus/fuzz and are where the next run goes on.
#   FUZZ_SECONDS=60 FUZZ_TARGETS="csv block samples key" fuzz.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

SECONDS_EACH=${FUZZ_SECONDS:-60}
[[ $SECONDS_EACH =~ ^[1-9][0-9]{0,5}$ ]] || die "FUZZ_SECONDS is '$SECONDS_EACH': give a number from 1 to 999999"
read -r -a targets <<<"${FUZZ_TARGETS:-csv block samples key}"
for target in "${targets[@]}"; do
    [[ -f common/fuzz/targets/$target.rs ]] || die "FUZZ_TARGETS: no target '$target': there are csv, block, samples and key"
done

# The engine is C++.
if ! have c++; then
    have apt-get || die "a C++ compiler is missing: install g++"
    as_root=()
    if ((EUID != 0)); then as_root=(sudo -n); fi
    say "fuzz: apt-get install g++"
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=120 \
        install -y --no-install-recommends g++ </dev/null
fi
need cargo c++

# What the engine watches: edges taken (counters and where they are) and operands compared.
# A stable compiler does; what is left out is the address sanitizer, and no code here is unsafe.
coverage=(
    -Cpasses=sancov-module
    -Cllvm-args=-sanitizer-coverage-level=4
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
    -Cllvm-args=-sanitizer-coverage-pc-table
    -Cllvm-args=-sanitizer-coverage-trace-compares
    "--cfg fuzzing" # what dependencies go by
)
# The same versions that Nexus is built with.
cp Cargo.lock common/fuzz/Cargo.lock
host=$(rustc -vV | sed -n 's/^host: //p')
build_dir=${CARGO_TARGET_DIR:-$ROOT/target}/fuzz
# Named, so that build scripts and macros, which run on their own, are not watched.
RUSTFLAGS="${coverage[*]}" cargo build --release --bins --target "$host" \
    --target-dir "$build_dir" --manifest-path common/fuzz/Cargo.toml

# The CSV target writes a file each time: in memory, where that can be had.
if [[ -d /dev/shm && -w /dev/shm ]]; then export TMPDIR=/dev/shm; fi
failed=()
for target in "${targets[@]}"; do
    kept=$STATE_DIR/fuzz/$target
    found=$STATE_DIR/fuzz/found-$target
    mkdir -p "$kept" "$found"
    log=$STATE_DIR/fuzz/$target.log
    words=()
    if [[ -f common/fuzz/dictionaries/$target.dict ]]; then words=("-dict=common/fuzz/dictionaries/$target.dict"); fi
    say "fuzz: $target for $SECONDS_EACH s"
    # An input is a finding if it takes 10 s, 1 GiB in all or 256 MiB at once: a block of
    # half a megabyte unfolds to 16 MiB a section. 4 KiB reach every branch and stay quick.
    if "$build_dir/$host/release/$target" "$kept" "common/fuzz/corpus/$target" "${words[@]}" \
        -artifact_prefix="$found/" -max_total_time="$SECONDS_EACH" -print_final_stats=1 \
        -max_len=4096 -timeout=10 -rss_limit_mb=1024 -malloc_limit_mb=256 >"$log" 2>&1; then
        sed -n 's/^#\([0-9]*\)\tDONE *cov: \([0-9]*\).*/fuzz:   \1 runs, \2 edges/p' "$log"
    else
        grep -a -A 3 -e 'panicked at' -e '^==.*ERROR' "$log" | head -n 20 || true
        failed+=("$target")
    fi
done
if ((${#failed[@]} > 0)); then
    for target in "${failed[@]}"; do
        warn "fuzz: $target failed: $STATE_DIR/fuzz/$target.log; the input is in $STATE_DIR/fuzz/found-$target"
        warn "fuzz: copy it to common/fuzz/corpus/$target, under a name that says what it was; tests replay it from there"
    done
    exit 1
fi
