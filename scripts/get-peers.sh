#!/usr/bin/env bash
# Fetches what is measured beside Nexus and what sends to it, into a folder of its own:
# VictoriaMetrics with vmagent (a package of Debian 13), InfluxDB (of Debian 12), Prometheus and wrk.
# Uses the Debian mirror that this machine's apt is set to, with lists of its own; the system's
# sources and packages stay as they are.
#   scripts/get-peers.sh [DEST]     DEST/bin gets them; default .nexus/peers
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

need apt-get dpkg-deb
DEST=${1:-$STATE_DIR/peers}
mkdir -p "$DEST"
DEST=$(cd "$DEST" && pwd)
# wrk is put there last.
if [[ -x $DEST/bin/vmagent && -x $DEST/bin/prometheus && -x $DEST/bin/wrk ]]; then exit 0; fi

# mirror: the first address of Debian itself (not of its security archive) among apt's sources.
mirror() {
    cat /etc/apt/sources.list /etc/apt/sources.list.d/*.sources /etc/apt/sources.list.d/*.list 2>/dev/null |
        grep -v '^ *#' | grep -oE '(https?|file|mirror\+file):/[^ ]*/debian/?( |$)' | head -n 1 | tr -d ' ' || true
}
URI=$(mirror)
[[ -n $URI ]] || die "get-peers: apt's sources name no mirror of Debian"
# Prometheus and wrk run on the libraries that are here; VictoriaMetrics brings its own.
OWN=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
SUITES="bookworm trixie"
if [[ " $SUITES " != *" $OWN "* ]]; then SUITES+=" $OWN"; fi
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
apt-get "${OPTIONS[@]}" update || die "get-peers: $URI does not answer"
(cd "$APT" && apt-get "${OPTIONS[@]}" download victoria-metrics/trixie influxdb/bookworm "prometheus/$OWN" "wrk/$OWN" "libluajit-5.1-2/$OWN") ||
    die "get-peers: cannot download from $URI"
for package in "$APT"/*.deb; do dpkg-deb -x "$package" "$DEST/root"; done
for program in victoria-metrics vmagent influxd prometheus; do cp "$DEST/root/usr/bin/$program" "$DEST/bin/"; done
# wrk finds its library beside it.
libraries=$(dirname "$(find "$DEST/root/usr/lib" -name 'libluajit-5.1.so.2' | head -n 1)")
cat >"$DEST/bin/wrk" <<WRK
#!/bin/sh
LD_LIBRARY_PATH=$libraries exec $DEST/root/usr/bin/wrk "\$@"
WRK
chmod +x "$DEST/bin/wrk"
rm -rf "$APT"
say "victoria-metrics, vmagent, influxd, prometheus and wrk are in $DEST/bin"
