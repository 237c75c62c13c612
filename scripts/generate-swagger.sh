#!/usr/bin/env bash
# Writes what the gateway says of its APIs: docs/openapi.json, docs/openapi.yaml, docs/schema.graphql.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$here/scripts/lib.sh"

need_binary gateway
# write FILE ARGUMENT...: what the gateway prints, all of it or nothing.
write() {
    local file=docs/$1
    shift
    if "$(binary gateway)" "$@" >"$file.new"; then
        mv "$file.new" "$file"
    else
        rm -f "$file.new"
        die "generate-swagger: cannot write $file"
    fi
}
write openapi.json openapi
write openapi.yaml openapi --yaml
write schema.graphql schema
