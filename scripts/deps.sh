#!/usr/bin/env bash
# Installs what building and testing Nexus need besides Rust. Asks nothing.
#   deps.sh          installs what is missing (apt-get; with sudo when not root)
#   deps.sh check    installs nothing; fails and says what to install
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# Debian's protobuf-compiler comes without the well-known types; libprotobuf-dev has them.
protoc_has_types() {
    local dir ok=0
    have protoc || return 1
    dir=$(mktemp -d)
    printf 'syntax = "proto3";\nimport "google/protobuf/timestamp.proto";\n' >"$dir/probe.proto"
    # The import is unused, which protoc only remarks on.
    protoc --proto_path="$dir" --descriptor_set_out=/dev/null "$dir/probe.proto" >/dev/null 2>&1 || ok=1
    rm -rf "$dir"
    return "$ok"
}

# Debian packages that are missing, a line each.
missing_packages() {
    have cc || printf 'gcc\nlibc6-dev\n'
    have make || echo make
    have protoc || echo protobuf-compiler
    protoc_has_types || echo libprotobuf-dev
    have etcd || echo etcd-server
    have etcdctl || echo etcd-client
    have curl || echo curl
    have jq || echo jq
}

# apt ARGUMENTS...: apt-get that never asks and waits for another one's lock.
apt() {
    local run=(env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=120)
    if ((EUID != 0)); then
        have sudo || die "not root and no sudo: as root, run: apt-get install $(missing_packages | xargs)"
        # Without a terminal sudo could only wait for a password that never comes.
        if [[ -t 0 ]]; then run=(sudo "${run[@]}"); else run=(sudo -n "${run[@]}"); fi
    fi
    "${run[@]}" "$@" </dev/null
}

name_what_to_install() {
    warn "missing: $(missing_packages | xargs)"
    warn "These are Debian's names. Elsewhere install:"
    warn "  1. protoc (protobuf compiler)"
    warn "  2. its well-known types (google/protobuf/*.proto)"
    warn "  3. etcd, 3.4 or newer"
    warn "  4. etcdctl of the same version"
    warn "and, where they are missing, a C compiler, make, curl and jq."
}

# It only reads scripts; without it 'make test' checks their syntax alone.
install_shellcheck() {
    if have shellcheck; then return; fi
    say "deps: installing shellcheck (optional)"
    apt install -y --no-install-recommends shellcheck >/dev/null 2>&1 ||
        warn "deps: no shellcheck; scripts get a syntax check only"
}

# What expositions are compared with; without it that test says that it compared nothing.
install_reference() {
    local python
    for python in /usr/bin/python3 python3; do
        if "$python" -c 'import prometheus_client' 2>/dev/null; then return; fi
    done
    say "deps: installing python3-prometheus-client (for tests)"
    apt install -y --no-install-recommends python3-prometheus-client >/dev/null 2>&1 ||
        warn "deps: no python3-prometheus-client; make test needs it"
}

rust_components() {
    have cargo || die "cargo is missing: install Rust from https://rustup.rs"
    if cargo fmt --version >/dev/null 2>&1 && cargo clippy --version >/dev/null 2>&1; then return; fi
    have rustup || die "cargo fmt or cargo clippy is missing: install rustfmt and clippy"
    if [[ $mode == check ]]; then die "missing: run: rustup component add rustfmt clippy"; fi
    say "deps: rustup component add rustfmt clippy"
    rustup component add rustfmt clippy
}

mode=${1:-install}
[[ $mode == install || $mode == check ]] || die "usage: deps.sh [check]"

rust_components
packages=()
while read -r package; do packages+=("$package"); done < <(missing_packages)
if ((${#packages[@]} > 0)); then
    if [[ $mode == check ]] || ! have apt-get; then
        name_what_to_install
        exit 1
    fi
    say "deps: apt-get install ${packages[*]}"
    say "deps: (Debian may start a system etcd on port 2379; Nexus never uses or stops that one)"
    # Lists that cannot be renewed may still do.
    apt update || warn "deps: apt-get update failed; trying with the lists at hand"
    apt install -y --no-install-recommends "${packages[@]}"
    hash -r
    if [[ -n $(missing_packages) ]]; then
        name_what_to_install
        exit 1
    fi
fi
if [[ $mode == install ]] && have apt-get; then
    install_shellcheck
    install_reference
fi
say "deps: $(protoc --version), $(etcd --version | sed -n 's/^etcd Version: /etcd /p'), $(jq --version), curl: all there"
