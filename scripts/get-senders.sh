#!/usr/bin/env bash
# Fetches senders of remote write into a folder of its own: Prometheus (the package of the Debian
# that this machine's apt is set to) and vmagent (in VictoriaMetrics' package of Debian 13). The system's sources and packages
# stay as they are.
#   scripts/get-senders.sh [DEST]     DEST/bin gets prometheus and vmagent; default .nexus/senders
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

need apt-get dpkg-deb
DEST=${1:-$STATE_DIR/senders}
mkdir -p "$DEST"
DEST=$(cd "$DEST" && pwd)
if [[ -x $DEST/bin/prometheus && -x $DEST/bin/vmagent ]]; then exit 0; fi

# mirror: the first address of Debian itself (not of its security archive) among apt's sources.
mirror() {
    cat /etc/apt/sources.list /etc/apt/sources.list.d/*.sources /etc/apt/sources.list.d/*.list 2>/dev/null |
        grep -v '^ *#' | grep -oE '(https?|file|mirror\+file):/[^ ]*/debian/?( |$)' | head -n 1 | tr -d ' ' || true
}
URI=$(mirror)
[[ -n $URI ]] || die "get-senders: apt's sources name no mirror of Debian"
OWN=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
SUITES=trixie
if [[ $OWN != trixie ]]; then SUITES+=" $OWN"; fi
APT=$DEST/apt
mkdir -p "$APT/lists/partial" "$APT/archives/partial" "$APT/sources" "$DEST/bin"
cat >"$APT/sources/debian.sources" <<SOURCES
Types: deb
URIs: $URI
Suites: $SUITES
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
SOURCES
OPTIONS=(-qq -o Dir::Etc::sourcelist=/dev/null -o "Dir::Etc::sourceparts=$APT/sources"
    -o "Dir::State::lists=$APT/lists" -o "Dir::Cache=$APT" -o "Dir::Cache::archives=$APT/archives"
    -o APT::Sandbox::User=root)
apt-get "${OPTIONS[@]}" update || die "get-senders: $URI does not answer"
(cd "$APT" && apt-get "${OPTIONS[@]}" download "prometheus/$OWN" victoria-metrics/trixie) ||
    die "get-senders: cannot download from $URI"
for package in "$APT"/*.deb; do dpkg-deb -x "$package" "$DEST/root"; done
cp "$DEST/root/usr/bin/prometheus" "$DEST/root/usr/bin/vmagent" "$DEST/bin/"
rm -rf "$APT"
say "prometheus and vmagent are in $DEST/bin"
