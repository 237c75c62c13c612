#!/usr/bin/env bash
# Images of the three programs.
#   docker.sh build      nexus-ROLE:TAG, from deploy/docker/Dockerfile
#   docker.sh push       to DOCKER_REGISTRY
#   docker.sh stages     what build runs, of ROLE (collector), without an engine, as root
# DOCKER_REGISTRY: where they go, with a path if there is one (default: none, local images).
# TAG: default the version in Cargo.toml. DOCKER: the command, docker or podman.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

DOCKER=${DOCKER:-docker}
VERSION=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
TAG=${TAG:-$VERSION}

image() { echo "${DOCKER_REGISTRY:+${DOCKER_REGISTRY%/}/}nexus-$1:$TAG"; }

case ${1:-} in
build | push) ;;
stages)
    [[ $EUID == 0 ]] || die "docker: stages mounts directories of its own: run it as root"
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    need python3 git unshare
    python3 deploy/tests/build_stages.py "${ROLE:-collector}" "$work"
    exit
    ;;
*) die "usage: docker.sh build|push|stages" ;;
esac
have "$DOCKER" || die "$DOCKER is missing: install Docker Engine (or set DOCKER=podman); no image was touched"
if [[ $1 == push && -z ${DOCKER_REGISTRY:-} ]]; then
    die "DOCKER_REGISTRY is needed to push: e.g. make docker-push-nexus DOCKER_REGISTRY=registry.example.com/nexus"
fi
for role in "${ROLES[@]}"; do
    if [[ $1 == push ]]; then
        say "docker: push $(image "$role")"
        "$DOCKER" push "$(image "$role")"
    else
        say "docker: build $(image "$role")"
        "$DOCKER" build --file deploy/docker/Dockerfile --build-arg "ROLE=$role" --build-arg "VERSION=$VERSION" \
            --build-arg "COMMIT=$(git rev-parse --short HEAD 2>/dev/null || true)" --tag "$(image "$role")" .
    fi
done
