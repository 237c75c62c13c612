#!/usr/bin/env bash
# Checks what is linked into Nexus against .deny.toml.
#   deny.sh        bans, licences and sources: all that needs no network
#   deny.sh all    advisories, too: fetches their database
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# Pinned: a newer one may read its configuration in another way.
VERSION=0.20.2

case ${1:-} in
    "") checks=(bans licenses sources) ;;
    all) checks=(advisories bans licenses sources) ;;
    *) die "usage: deny.sh [all]" ;;
esac
need cargo
if [[ $(cargo deny --version 2>/dev/null) != "cargo-deny $VERSION" ]]; then
    say "deny: building cargo-deny $VERSION (minutes, once)"
    cargo install cargo-deny --locked --version "$VERSION"
fi
cargo deny --locked --config .deny.toml check "${checks[@]}"
