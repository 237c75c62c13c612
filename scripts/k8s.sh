#!/usr/bin/env bash
# Nexus on Kubernetes, by its chart.
#   k8s.sh deploy          install, or bring what is installed to the numbers asked for
#   k8s.sh status|logs|undeploy|port-forward
#   k8s.sh kind            a kind cluster of its own with freshly built images, then deploy
# NAMESPACE (telemetry-system), RELEASE (telemetry-pipeline), VALUES (values-nexus.yaml of the
# chart, or a path), HELM_ARGS: further arguments of helm upgrade.
# STREAMER_INSTANCES, COLLECTOR_INSTANCES, API_GW_INSTANCES: replicas. DOCKER_REGISTRY, TAG: images.
# CSV_FILE: a small file (at most 1 MiB) to stream, put into a ConfigMap.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

NAMESPACE=${NAMESPACE:-telemetry-system}
RELEASE=${RELEASE:-telemetry-pipeline}
CHART=deploy/helm/telemetry-pipeline
HELM=${HELM:-helm}
KUBECTL=${KUBECTL:-kubectl}
KIND_CLUSTER=${KIND_CLUSTER:-nexus}
# ConfigMaps hold no more.
CSV_BYTES_MAX=1000000

need_tool() {
    have "$1" || die "$1 is missing: install it from $2"
}
need_helm() { need_tool "$HELM" "https://helm.sh/docs/intro/install/"; }
need_kubectl() { need_tool "$KUBECTL" "https://kubernetes.io/docs/tasks/tools/"; }
need_cluster() {
    need_kubectl
    "$KUBECTL" version --request-timeout=10s >/dev/null 2>&1 ||
        die "no Kubernetes answers: see '$KUBECTL config get-contexts', or try 'make kind-deploy'"
}

values_file() {
    local values=${VALUES:-values-nexus.yaml}
    if [[ -f $CHART/$values ]]; then echo "$CHART/$values"; else echo "$values"; fi
}

# helm_values: the knobs as arguments of helm, a line each.
helm_values() {
    printf '%s\n' \
        --set "nexusStreamer.replicaCount=${STREAMER_INSTANCES:-2}" \
        --set "nexusCollector.replicaCount=${COLLECTOR_INSTANCES:-2}" \
        --set "nexusGateway.replicaCount=${API_GW_INSTANCES:-2}" \
        --set-string "image.registry=${DOCKER_REGISTRY:-}"
    if [[ -n ${TAG:-} ]]; then printf '%s\n' --set-string "image.tag=$TAG"; fi
    if [[ -n ${CSV_FILE:-} ]]; then
        printf '%s\n' --set-string "nexusStreamer.csv.configMap=$RELEASE-csv" --set-string "nexusStreamer.csv.file=telemetry.csv"
    fi
}

deploy() {
    need_helm
    need_cluster
    local arguments=() file
    mapfile -t arguments < <(helm_values)
    if ! "$KUBECTL" get namespace "$NAMESPACE" >/dev/null 2>&1; then
        "$KUBECTL" create namespace "$NAMESPACE"
        "$KUBECTL" label namespace "$NAMESPACE" pod-security.kubernetes.io/enforce=restricted
    fi
    if [[ -n ${CSV_FILE:-} ]]; then
        file=$(csv_file)
        [[ -r $file ]] || die "CSV_FILE $file cannot be read"
        (($(wc -c <"$file") <= CSV_BYTES_MAX)) ||
            die "CSV_FILE $file is too large for a ConfigMap ($CSV_BYTES_MAX bytes): use nexusStreamer.csv.existingClaim or .url"
        "$KUBECTL" -n "$NAMESPACE" create configmap "$RELEASE-csv" --from-file="telemetry.csv=$file" \
            --dry-run=client -o yaml | "$KUBECTL" apply -f -
    fi
    # shellcheck disable=SC2086  # HELM_ARGS are several words
    "$HELM" upgrade --install "$RELEASE" "$CHART" --namespace "$NAMESPACE" --values "$(values_file)" \
        "${arguments[@]}" --wait --timeout "${TIMEOUT:-10m}" ${HELM_ARGS:-}
    say "k8s: 'make k8s-status-nexus' shows it, 'make k8s-port-forward' brings the API to 127.0.0.1:8080"
}

kind_deploy() {
    need_tool kind "https://kind.sigs.k8s.io/"
    need_helm
    need_kubectl
    scripts/docker.sh build
    kind get clusters 2>/dev/null | grep -qx "$KIND_CLUSTER" || kind create cluster --name "$KIND_CLUSTER" --wait 2m
    local role tag
    tag=${TAG:-$(sed -n 's/^appVersion: "\(.*\)"/\1/p' "$CHART/Chart.yaml")}
    for role in "${ROLES[@]}"; do
        kind load docker-image --name "$KIND_CLUSTER" "${DOCKER_REGISTRY:+${DOCKER_REGISTRY%/}/}nexus-$role:$tag"
    done
    KUBECONFIG=$(mktemp) && export KUBECONFIG
    kind get kubeconfig --name "$KIND_CLUSTER" >"$KUBECONFIG"
    deploy
}

selector="app.kubernetes.io/instance=$RELEASE"
case ${1:-} in
deploy) deploy ;;
kind) kind_deploy ;;
values) helm_values ;;
status)
    need_cluster
    "$KUBECTL" -n "$NAMESPACE" get pods,services,hpa,pvc -l "$selector" -o wide
    ;;
logs)
    need_cluster
    "$KUBECTL" -n "$NAMESPACE" logs -l "$selector${NAME:+,app.kubernetes.io/component=nexus-$NAME}" \
        --all-containers --prefix --follow --max-log-requests 50 --tail "${LINES_BEFORE:-20}"
    ;;
port-forward)
    need_cluster
    "$KUBECTL" -n "$NAMESPACE" port-forward "service/$RELEASE-nexus-gateway" "${PORT:-8080}:8080"
    ;;
undeploy)
    need_helm
    need_cluster
    "$HELM" uninstall "$RELEASE" --namespace "$NAMESPACE" --wait
    say "k8s: volumes are kept, and what etcd holds with them; to delete them:"
    say "  $KUBECTL -n $NAMESPACE delete pvc -l $selector"
    ;;
*) die "usage: k8s.sh deploy|status|logs|undeploy|port-forward|kind|values" ;;
esac
