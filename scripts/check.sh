#!/usr/bin/env bash
# Checks the scripts themselves: shellcheck where it is installed, their syntax everywhere.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

files=(.ci/run scripts/*.sh)
for file in "${files[@]}"; do
    bash -n "$file"
    [[ -x $file ]] || die "$file is not executable"
done
for file in scripts/*.awk; do
    awk -f "$file" </dev/null >/dev/null || die "$file does not parse"
done
if have shellcheck; then
    # SC2317: functions handed to wait_until or to trap look unreachable to it.
    shellcheck --external-sources --source-path=scripts --exclude=SC2317 "${files[@]}"
    say "scripts: ${#files[@]} pass shellcheck"
else
    say "scripts: ${#files[@]} parse (no shellcheck here: syntax only)"
fi
