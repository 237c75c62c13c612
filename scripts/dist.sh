#!/usr/bin/env bash
# Makes what a release consists of: .nexus/dist/nexus-VERSION-ARCH.tar.gz with the stripped
# programs, man pages, completions, systemd units and the chart; a bill of materials; checksums.
#   dist.sh          DIST_BIN_DIR: take built programs from there instead of building them
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
need jq

VERSION=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
COMMIT=$(git rev-parse --short HEAD 2>/dev/null || true)
# The time of the commit: the same source makes the same archive.
EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
NAME=nexus-$VERSION-$(uname -m)
DIST=$STATE_DIR/dist
TREE=$DIST/$NAME

if [[ -z ${DIST_BIN_DIR:-} ]]; then
    NEXUS_COMMIT=$COMMIT cargo build --release --locked --workspace --bins
    DIST_BIN_DIR=$BIN_DIR
fi
rm -rf "$DIST"
mkdir -p "$TREE"/{bin,man,completions,systemd,helm}
for role in "${ROLES[@]}"; do
    program=nexus-$role
    [[ -x $DIST_BIN_DIR/$program ]] || die "$DIST_BIN_DIR/$program is missing"
    strip -o "$TREE/bin/$program" "$DIST_BIN_DIR/$program"
    "$TREE/bin/$program" man >"$TREE/man/$program.1"
    for shell in bash zsh fish; do
        "$TREE/bin/$program" completions "$shell" >"$TREE/completions/$program.$shell"
    done
done
cp LICENSE README.md CHANGELOG.md "$TREE/"
cp deploy/systemd/* "$TREE/systemd/"
cp -r deploy/helm/telemetry-pipeline "$TREE/helm/"

# What is linked in, as CycloneDX: the packages that cargo resolves for the programs.
cargo metadata --format-version 1 --locked --filter-platform "$(rustc -vV | sed -n 's/^host: //p')" | jq --arg version "$VERSION" '
  .resolve.nodes as $nodes
  | (.workspace_members | map({key: ., value: true}) | from_entries) as $ours
  | def linked($ids): $ids | unique as $now
      | ([$now[] as $id | $nodes[] | select(.id == $id) | .deps[] | select(any(.dep_kinds[]; .kind == null)) | .pkg] + $now | unique) as $more
      | if ($more | length) == ($now | length) then $now else linked($more) end;
  linked($ours | keys) as $linked
  | {bomFormat: "CycloneDX", specVersion: "1.5", version: 1,
     metadata: {component: {type: "application", name: "nexus", version: $version}},
     components: [.packages[] | select(.id as $id | $linked | index($id)) | select($ours[.id] | not)
       | {type: "library", name, version, purl: "pkg:cargo/\(.name)@\(.version)",
          licenses: (if .license then [{expression: (.license | gsub("/"; " OR "))}] else [] end)}]
       | sort_by(.name, .version)}' >"$DIST/$NAME.cdx.json"

tar --sort=name --mtime="@$EPOCH" --owner=0 --group=0 --numeric-owner -C "$DIST" -cf - "$NAME" | gzip -n >"$DIST/$NAME.tar.gz"
rm -rf "$TREE"
(cd "$DIST" && sha256sum -- *.tar.gz *.cdx.json >SHA256SUMS)
say "dist: $(jq '.components | length' "$DIST/$NAME.cdx.json") packages are linked in"
ls -l "$DIST"
