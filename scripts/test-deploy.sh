#!/usr/bin/env bash
# Checks deploy/ without a cluster or a container engine: the chart, the images' recipe, the
# units of systemd, the make targets. Fetches what it needs first (deploy-tools.sh).
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

scripts/deploy-tools.sh
TOOLS=$STATE_DIR/deploy-tools
CHART=deploy/helm/telemetry-pipeline

say "deploy: chart"
for helm in helm helm3; do
    "$TOOLS/bin/$helm" lint --strict --quiet "$CHART" >/dev/null
    for values in nexus production; do
        "$TOOLS/bin/$helm" lint --strict --quiet -f "$CHART/values-$values.yaml" "$CHART" >/dev/null
    done
done
NEXUS_HELM="$TOOLS/bin/helm $TOOLS/bin/helm3" "$TOOLS/venv/bin/python" deploy/tests/test_chart.py -q

say "deploy: images"
"$TOOLS/bin/hadolint" deploy/docker/Dockerfile
"$TOOLS/venv/bin/python" deploy/tests/test_compose.py -q

say "deploy: units"
UNITS=$(mktemp -d)
trap 'rm -rf "$UNITS"' EXIT
if have systemd-analyze; then
    for unit in "${ROLES[@]/%/@.service}" streamer-nvml.service; do
        # The programs are not installed here, nor their manual.
        sed -e 's|^ExecStart=/usr/bin/nexus-.*|ExecStart=/bin/true|' -e '/^Documentation=/d' \
            "deploy/systemd/nexus-$unit" >"$UNITS/nexus-$unit"
        systemd-analyze verify "$UNITS/nexus-$unit"
        # 10 is no sandbox at all. What is left above 0 is the network, which they are for.
        systemd-analyze security --offline=true --threshold=15 "$UNITS/nexus-$unit" >/dev/null ||
            die "nexus-$unit is exposed more than 1.5 of 10: systemd-analyze security says to what"
    done
else
    say "deploy: no systemd-analyze here: the units were not checked"
fi

say "deploy: make targets"
for target in docker-build-nexus docker-push-nexus k8s-deploy-nexus k8s-status-nexus k8s-logs-nexus \
    k8s-undeploy-nexus k8s-port-forward kind-deploy; do
    make -n "$target" >/dev/null
    # Whatever is not there, is named; nothing is done halfway.
    if said=$(DOCKER=no-docker HELM=no-helm KUBECTL=no-kubectl make "$target" 2>&1); then
        die "make $target succeeds without any tool"
    fi
    grep -q 'is missing: install' <<<"$said" || die "make $target does not say what is missing: $said"
done
knobs=$(STREAMER_INSTANCES=5 COLLECTOR_INSTANCES=3 API_GW_INSTANCES=4 CSV_FILE=x.csv TAG=9 scripts/k8s.sh values)
mapfile -t arguments <<<"$knobs"
rendered=$("$TOOLS/bin/helm" template telemetry-pipeline "$CHART" -f "$CHART/values-nexus.yaml" "${arguments[@]}" | grep -E '^  replicas:' | sort | tr -d '\n')
[[ $rendered == "  replicas: 1  replicas: 3  replicas: 4  replicas: 5" ]] || die "knobs do not reach the replicas: $rendered"

say "deploy: documented commands"
need_binary gateway
NEXUS_HELM="$TOOLS/bin/helm" "$TOOLS/venv/bin/python" deploy/tests/test_docs.py -q

say "deploy: all checked"
