#!/usr/bin/env bash
# Fetches etcd 3.5 beside the one that is installed, and prints where it is: a folder with etcd
# and etcdctl, for NEXUS_ETCD_BIN_DIR. From Debian 13's packages, with package lists of its own:
# neither the system's lists nor what is installed changes. Nothing is fetched twice.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

SUITE=trixie # Debian 13: etcd 3.5.16; its binaries run on Debian 12, too
DIR=$STATE_DIR/etcd35
KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg

# mirror: the Debian mirror that this machine uses already.
mirror() {
    local files=(/etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources)
    { cat "${files[@]}" 2>/dev/null || true; } | sed 's/#.*//' |
        grep -oE 'https?://[^ ]+/debian/?( |$)' | head -n 1 | tr -d ' '
}

version_of() { "$1/etcd" --version 2>/dev/null | sed -n 's/^etcd Version: //p'; }

if [[ $(version_of "$DIR/bin") == 3.5.* ]]; then
    echo "$DIR/bin"
    exit
fi
for tool in apt-get dpkg-deb; do
    have "$tool" || die "etcd35: $tool is missing: only on Debian and its kin; elsewhere set NEXUS_ETCD_BIN_DIR to a folder with etcd and etcdctl 3.5"
done
[[ -r $KEYRING ]] || die "etcd35: $KEYRING is missing: apt-get install debian-archive-keyring"
uri=$(mirror)
[[ -n $uri ]] || die "etcd35: no Debian mirror among this machine's apt sources"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{sources,lists/partial,cache/archives/partial,root}
cat >"$work/sources/$SUITE.sources" <<END
Types: deb
URIs: $uri
Suites: $SUITE
Components: main
Signed-By: $KEYRING
END
options=(-qq -o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts="$work/sources"
    -o Dir::State::lists="$work/lists" -o Dir::Cache="$work/cache")
if ((EUID == 0)); then options+=(-o APT::Sandbox::User=root); fi
apt-get "${options[@]}" update >&2 || die "etcd35: the package lists of $SUITE cannot be had from $uri"
(cd "$work" && apt-get "${options[@]}" download etcd-server etcd-client >&2) ||
    die "etcd35: etcd-server and etcd-client of $SUITE cannot be had from $uri"
for package in "$work"/*.deb; do dpkg-deb -x "$package" "$work/root"; done
rm -rf "$DIR"
mkdir -p "$DIR/bin"
cp "$work"/root/usr/bin/{etcd,etcdctl} "$DIR/bin/"
[[ $(version_of "$DIR/bin") == 3.5.* ]] || die "etcd35: what was fetched is no etcd 3.5 that runs here"
echo "$DIR/bin"
