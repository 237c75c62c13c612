"""The chart without a cluster: rendered by helm 3 and 4, checked against Kubernetes' schemas and
against what is promised of it. Run by scripts/test-deploy.sh, which sets NEXUS_HELM."""

import json
import os
import re
import subprocess
import unittest
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import kubernetes_validate
import yaml

CHART = Path(__file__).resolve().parent.parent / "helm" / "telemetry-pipeline"
HELMS = os.environ["NEXUS_HELM"].split()
KUBERNETES = "1.34"
ROLES = ["nexus-streamer", "nexus-collector", "nexus-gateway"]
# Kinds that an operator brings; Kubernetes has no schema of them.
OTHERS = {"ServiceMonitor", "PrometheusRule", "Certificate"}
POD_KINDS = {"Deployment", "DaemonSet", "StatefulSet", "CronJob", "Pod"}

# Every toggle at least once, alone or with what it needs.
MATRIX = {
    "defaults": [],
    "one member, nothing kept": ["etcd.replicaCount=1", "etcd.persistence.enabled=false", "etcd.snapshot.enabled=false"],
    "five members": ["etcd.replicaCount=5"],
    "another etcd": ["etcd.enabled=false", "etcd.external.endpoints={https://a:2379,https://b:2379}", "etcd.external.tlsSecret=etcd-tls", "etcd.external.authSecret=etcd-auth"],
    "another etcd, its authority alone": ["etcd.enabled=false", "etcd.external.endpoints={https://a:2379}", "etcd.external.tlsSecret=etcd-ca", "etcd.external.caOnly=true"],
    "given certificates": ["etcd.tls.enabled=true", "etcd.tls.serverSecret=s", "etcd.tls.clientSecret=c"],
    "issued certificates": ["etcd.tls.enabled=true", "etcd.tls.certManager.enabled=true", "etcd.tls.certManager.issuerRef.name=ca"],
    "a file in a claim": ["nexusStreamer.csv.existingClaim=csv", "nexusStreamer.csv.file=a/b.csv"],
    "a file in a map": ["nexusStreamer.csv.configMap=csv"],
    "a file from a URL": ["nexusStreamer.csv.url=https://example.com/x.csv", "networkPolicy.extraEgress[0].ports[0].port=443"],
    "exporters that Kubernetes names": ["nexusStreamer.scrape.discoverNamespaces={gpu-operator,monitoring}"],
    "exporters with secrets": ["nexusStreamer.scrape.existingSecret=exporters", "networkPolicy.extraEgress[0].ports[0].port=9400"],
    "replay": ["nexusStreamer.replaySpeed=10", "nexusStreamer.loop=true"],
    "no streamers": ["nexusStreamer.enabled=false"],
    "GPUs of the nodes": ["nexusStreamer.nvml.enabled=true", "metrics.serviceMonitor.enabled=true"],
    "GPUs alone, another runtime": ["nexusStreamer.enabled=false", "nexusStreamer.nvml.enabled=true", "nexusStreamer.nvml.runtimeClassName=", "nexusStreamer.nvml.library=/usr/lib/libnvidia-ml.so.1", "nexusStreamer.nvml.maxUnavailable=1", "metrics.serviceMonitor.enabled=true"],
    "ingress": ["nexusGateway.ingress.enabled=true", "nexusGateway.ingress.className=nginx", "nexusGateway.ingress.tls[0].secretName=t"],
    "files that are sent": ["nexusGateway.uploads.existingClaim=uploads"],
    "tokens and TLS": ["nexusGateway.auth.existingSecret=tokens", "nexusGateway.tls.existingSecret=tls"],
    "REST alone": ["nexusGateway.graphql.enabled=false", "nexusGateway.websocket.enabled=false"],
    "origins": ["nexusGateway.cors.enabled=true", "nexusGateway.cors.allowedOrigins={https://a.example}"],
    "autoscaling": [f"{role}.autoscaling.enabled=true" for role in ("nexusStreamer", "nexusCollector", "nexusGateway")],
    "autoscaling by the queue": ["nexusCollector.autoscaling.enabled=true", "nexusCollector.autoscaling.targetCPUUtilizationPercentage=0", "nexusCollector.autoscaling.queuedMessagesPerReplica=100"],
    "no budgets": [f"{role}.podDisruptionBudget.enabled=false" for role in ("nexusStreamer", "nexusCollector", "nexusGateway", "etcd")],
    "no policies": ["networkPolicy.enabled=false"],
    "monitored": ["metrics.serviceMonitor.enabled=true", "metrics.prometheusRule.enabled=true", "metrics.dashboards.enabled=true", "metrics.serviceMonitor.gatewayToken.existingSecret=t"],
    "no account of its own": ["serviceAccount.create=false"],
    "no tests": ["tests.enabled=false"],
    "placed": ["nexusGateway.nodeSelector.disk=ssd", "etcd.tolerations[0].key=etcd", "etcd.tolerations[0].operator=Exists", "nexusCollector.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchExpressions[0].key=gpu", "nexusCollector.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchExpressions[0].operator=DoesNotExist"],
    "other names": ["fullnameOverride=gpu", "image.registry=registry.example.com/nexus", "image.tag=9.9.9", "image.pullSecrets={pull}"],
    "pinned": ["nexusGateway.image.digest=sha256:" + "a" * 64, "etcd.image.digest=sha256:" + "b" * 64],
}
FILES = ["values-nexus.yaml", "values-production.yaml"]

REFUSED = {
    "nexusStreamer.replicaCount=two": "replicaCount",
    "nexusCollector.replicas=3": "replicas",
    "etcd.replicaCount=2": "etcd/replicaCount",
    "logFormat=xml": "logFormat",
    "leaseTtlSeconds=1": "leaseTtlSeconds",
    "partitions=5000": "partitions",
    "nexusGateway.service.type=Magic": "service/type",
    "nexusGateway.image.digest=latest": "digest",
    "etcd.external.endpoints={etcd:2379}": "endpoints",
    "nexusStreamer.csv.url=ftp://x": "csv/url",
    "nexusStreamer.scrape.discoverNamespaces={Gpu}": "scrape/discoverNamespaces",
    "nexusStreamer.scrape.existingSecret=A_B": "scrape/existingSecret",
    "nexusStreamer.nvml.interval=fast": "nvml/interval",
    "nexusStreamer.nvml.library=libnvidia-ml.so.1": "nvml/library",
    "nexusStreamer.nvml.gpus=8": "gpus",
    "etcd.persistence.size=plenty": "size",
    "etcd.enabled=false": "etcd.external.endpoints is needed",
    "etcd.tls.enabled=true": "Secret is needed",
    "nexusStreamer.csv.url=http://x/y,nexusStreamer.csv.configMap=z": "at most one of",
}


def run(helm, *args):
    return subprocess.run([helm, *args], capture_output=True, text=True, timeout=60)


def template(helm=HELMS[0], values=(), sets=(), release="nexus", namespace="telemetry-system"):
    args = ["template", release, str(CHART), "--namespace", namespace, "--kube-version", KUBERNETES]
    for value in values:
        args += ["-f", str(CHART / value)]
    for one in sets:
        args += ["--set", one]
    done = run(helm, *args)
    if done.returncode != 0:
        raise AssertionError(f"helm {' '.join(args)}\n{done.stderr}")
    return [doc for doc in yaml.safe_load_all(done.stdout) if doc]


def rendered_by(helm):
    """Everything in MATRIX and FILES, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        one = {name: pool.submit(template, helm, sets=sets) for name, sets in MATRIX.items()}
        one |= {name: pool.submit(template, helm, values=[name]) for name in FILES}
        return {name: future.result() for name, future in one.items()}


def pod_of(doc):
    spec = doc["spec"]
    if doc["kind"] == "CronJob":
        spec = spec["jobTemplate"]["spec"]
    if doc["kind"] != "Pod":
        return spec["template"]["metadata"], spec["template"]["spec"]
    return doc["metadata"], spec


def pods(docs):
    for doc in docs:
        if doc["kind"] in POD_KINDS:
            yield (doc, *pod_of(doc))


def containers(spec):
    return spec.get("initContainers", []) + spec["containers"]


def find(docs, kind, suffix):
    found = [d for d in docs if d["kind"] == kind and d["metadata"]["name"].endswith(suffix)]
    assert len(found) == 1, f"{kind} *{suffix}: {len(found)}"
    return found[0]


def has(labels, wanted):
    return all(labels.get(key) == value for key, value in wanted.items())


def every_rendering(check):
    """A test of one rendering becomes a test of all."""

    def test(self):
        for name, docs in self.rendered.items():
            with self.subTest(name):
                check(self, docs)

    test.__name__ = check.__name__
    return test


class EveryRendering(unittest.TestCase):
    """What holds whatever is switched on."""

    @classmethod
    def setUpClass(cls):
        cls.rendered = rendered_by(HELMS[0])

    @every_rendering
    def test_kubernetes_takes_every_object(self, docs):
        for doc in docs:
            if doc["kind"] not in OTHERS:
                kubernetes_validate.validate(doc, KUBERNETES, strict=True)

    def test_helm_3_renders_the_same(self):
        for helm in HELMS[1:]:
            for name, docs in rendered_by(helm).items():
                with self.subTest(name, helm=helm):
                    self.assertEqual(docs, self.rendered[name])

    @every_rendering
    def test_no_two_objects_have_one_name(self, docs):
        names = [(d["kind"], d["metadata"].get("namespace"), d["metadata"]["name"]) for d in docs]
        self.assertEqual(len(names), len(set(names)), names)

    @every_rendering
    def test_pods_are_restricted(self, docs):
        for doc, _, spec in pods(docs):
            where = doc["metadata"]["name"]
            self.assertIs(spec["automountServiceAccountToken"], False, where)
            security = spec["securityContext"]
            self.assertIs(security["runAsNonRoot"], True, where)
            self.assertGreater(security["runAsUser"], 0, where)
            self.assertEqual(security["seccompProfile"], {"type": "RuntimeDefault"}, where)
            for flag in ("hostNetwork", "hostPID", "hostIPC"):
                self.assertNotIn(flag, spec, where)
            for container in containers(spec):
                where = f"{doc['metadata']['name']}/{container['name']}"
                security = container["securityContext"]
                self.assertIs(security["allowPrivilegeEscalation"], False, where)
                self.assertIs(security["readOnlyRootFilesystem"], True, where)
                self.assertEqual(security["capabilities"], {"drop": ["ALL"]}, where)
                self.assertIn("memory", container["resources"]["limits"], where)
                self.assertIn("cpu", container["resources"]["requests"], where)
                self.assertRegex(container["image"], r"(:[^:/]+|@sha256:[0-9a-f]{64})$", where)
            for volume in spec.get("volumes", []):
                self.assertNotIn("hostPath", volume, where)

    @every_rendering
    def test_selectors_find_what_they_are_for(self, docs):
        labels = [meta["labels"] for doc, meta, _ in pods(docs)]
        for doc in docs:
            kind, spec = doc["kind"], doc.get("spec", {})
            wanted = None
            if kind in ("Deployment", "DaemonSet", "StatefulSet", "PodDisruptionBudget"):
                wanted = spec["selector"]["matchLabels"]
            elif kind == "Service":
                wanted = spec["selector"]
            elif kind == "NetworkPolicy":
                wanted = spec["podSelector"]["matchLabels"]
            if wanted is not None:
                where = f"{kind} {doc['metadata']['name']}"
                self.assertTrue(any(has(one, wanted) for one in labels), where)
            if kind in ("Deployment", "DaemonSet", "StatefulSet"):
                self.assertTrue(has(pod_of(doc)[0]["labels"], wanted))
            if kind == "HorizontalPodAutoscaler":
                target = find(docs, "Deployment", spec["scaleTargetRef"]["name"])
                self.assertNotIn("replicas", target["spec"], "the autoscaler decides")
            if kind == "ServiceMonitor":
                services = [d for d in docs if d["kind"] == "Service" and has(d["metadata"]["labels"], spec["selector"]["matchLabels"])]
                self.assertEqual(len(services), 1, doc["metadata"]["name"])
                ports = {port["name"] for port in services[0]["spec"]["ports"]}
                self.assertIn(spec["endpoints"][0]["port"], ports)

    @every_rendering
    def test_ports_and_mounts_lead_somewhere(self, docs):
        for doc, _, spec in pods(docs):
            volumes = {v["name"] for v in spec.get("volumes", [])}
            volumes |= {c["metadata"]["name"] for c in doc["spec"].get("volumeClaimTemplates", [])}
            for container in containers(spec):
                mounts = {m["name"] for m in container.get("volumeMounts", [])}
                self.assertLessEqual(mounts, volumes, container["name"])
                ports = {port["name"] for port in container.get("ports", [])}
                for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                    if probe in container:
                        self.assertIn(container[probe]["httpGet"]["port"], ports)
        maps = {d["metadata"]["name"] for d in docs if d["kind"] == "ConfigMap"}
        for doc, _, spec in pods(docs):
            for container in containers(spec):
                for source in container.get("envFrom", []):
                    self.assertIn(source["configMapRef"]["name"], maps)

    @every_rendering
    def test_probes_ask_what_they_should(self, docs):
        for role in ROLES:
            for doc in docs:
                if doc["kind"] in ("Deployment", "DaemonSet") and doc["metadata"]["name"].endswith((role, f"{role}-nvml")):
                    container = pod_of(doc)[1]["containers"][0]
                    # An etcd that is away must not restart the fleet.
                    self.assertEqual(container["livenessProbe"]["httpGet"]["path"], "/livez")
                    self.assertEqual(container["startupProbe"]["httpGet"]["path"], "/livez")
                    self.assertEqual(container["readinessProbe"]["httpGet"]["path"], "/readyz")
                    self.assertGreaterEqual(pod_of(doc)[1]["terminationGracePeriodSeconds"], 30)

    @every_rendering
    def test_no_secret_is_in_a_config_map_or_in_the_environment(self, docs):
        for doc in docs:
            self.assertNotEqual(doc["kind"], "Secret", "secrets are made by others")
            if doc["kind"] == "ConfigMap":
                for key in doc["data"]:
                    self.assertNotRegex(key, r"PASSWORD|SECRET|TOKEN$")
        for doc, _, spec in pods(docs):
            for container in containers(spec):
                for one in container.get("env", []):
                    if "secretKeyRef" in one.get("valueFrom", {}):
                        self.assertEqual(one["name"], "ETCD_USERNAME")


class Knobs(unittest.TestCase):
    """What is turned arrives."""

    def test_replicas(self):
        docs = template(sets=["nexusStreamer.replicaCount=5", "nexusCollector.replicaCount=3", "nexusGateway.replicaCount=7"])
        for role, expected in zip(ROLES, (5, 3, 7)):
            self.assertEqual(find(docs, "Deployment", role)["spec"]["replicas"], expected)

    def test_the_gateway_has_the_name_that_users_know(self):
        docs = template(release="nexus")
        find(docs, "Service", "telemetry-pipeline-nexus-gateway")
        docs = template(release="telemetry-pipeline")
        self.assertEqual(find(docs, "Service", "nexus-gateway")["metadata"]["name"], "telemetry-pipeline-nexus-gateway")

    def test_every_variable_is_one_that_the_programs_read(self):
        source = Path(__file__).resolve().parents[2]
        known = set()
        for crate in ("common", "streamer", "collector", "gateway"):
            for file in (source / crate / "src").rglob("*.rs"):
                known |= set(re.findall(r'env = "([A-Z_]+)"', file.read_text()))
        sets = [one for sets in MATRIX.values() for one in sets if one.startswith(("nexusGateway.", "nexusStreamer.replay", "nexusStreamer.csv.configMap"))]
        sets = [one for one in sets if "autoscaling" not in one and "digest" not in one]
        used = set()
        for docs in (template(sets=sets), template(sets=MATRIX["another etcd"]), template(sets=MATRIX["GPUs alone, another runtime"])):
            for doc in docs:
                if doc["kind"] == "ConfigMap" and not doc["metadata"]["name"].endswith("dashboards"):
                    used |= set(doc["data"])
                if doc["kind"] in ("Deployment", "DaemonSet"):
                    used |= {one["name"] for one in pod_of(doc)[1]["containers"][0].get("env", [])}
        # For NVIDIA's container runtime, which reads them before the program is there.
        used -= {"NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES"}
        self.assertIn("NVML_LIBRARY", used)
        self.assertIn("ETCD_CERT_FILE", used)
        self.assertIn("AUTH_TOKENS_FILE", used)
        self.assertLessEqual(used, known)

    def test_gpus_are_measured_where_they_are(self):
        docs = template(sets=["nexusStreamer.nvml.enabled=true", "nexusStreamer.nvml.interval=500ms", "nexusStreamer.csv.configMap=csv"])
        spec = pod_of(find(docs, "DaemonSet", "nexus-streamer-nvml"))[1]
        container = spec["containers"][0]
        env = {one["name"]: one for one in container["env"]}
        self.assertEqual(container["args"], ["nvml"])
        self.assertEqual(env["HOST_NAME"]["valueFrom"]["fieldRef"]["fieldPath"], "spec.nodeName")
        self.assertEqual(env["NVML_INTERVAL"]["value"], "500ms")
        self.assertEqual(env["NVML_WAIT"]["value"], "true")
        self.assertEqual(env["NVIDIA_VISIBLE_DEVICES"]["value"], "all")
        self.assertEqual(spec["runtimeClassName"], "nvidia")
        self.assertEqual(spec["nodeSelector"], {"nvidia.com/gpu.present": "true"})
        self.assertEqual(spec["tolerations"][0]["key"], "nvidia.com/gpu")
        # It has no file, so it must not be told of one.
        maps = {source["configMapRef"]["name"] for source in container["envFrom"]}
        told = [d["data"] for d in docs if d["kind"] == "ConfigMap" and d["metadata"]["name"] in maps]
        self.assertTrue(told and not any("CSV_FILE" in data for data in told))
        self.assertNotIn("runtimeClassName", pod_of(find(template(sets=MATRIX["GPUs alone, another runtime"]), "DaemonSet", "nvml"))[1])
        seen = pod_of(find(template(sets=["nexusStreamer.nvml.enabled=true", "nexusStreamer.nvml.hostPID=true"]), "DaemonSet", "nvml"))[1]
        self.assertIs(seen["hostPID"], True)
        self.assertFalse([d for d in template() if d["kind"] == "DaemonSet"], "nobody asked for it")

    def test_only_streamers_get_a_token_and_may_only_list_endpoints(self):
        docs = template(sets=["nexusStreamer.scrape.discoverNamespaces={gpu-operator}"])
        tokens = [doc["metadata"]["name"] for doc, _, spec in pods(docs)
                  if any("projected" in volume for volume in spec.get("volumes", []))]
        self.assertEqual(tokens, ["nexus-telemetry-pipeline-nexus-streamer"])
        roles = [doc for doc in docs if doc["kind"] == "Role"]
        self.assertEqual([role["metadata"]["namespace"] for role in roles], ["gpu-operator"])
        rule = {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list"]}
        self.assertEqual(roles[0]["rules"], [rule])

    def test_members_of_etcd_know_each_other_and_are_known(self):
        docs = template(sets=["etcd.tls.enabled=true", "etcd.tls.serverSecret=s", "etcd.tls.clientSecret=c"])
        args = pod_of(find(docs, "StatefulSet", "etcd"))[1]["containers"][0]["args"]
        cluster = next(a for a in args if a.startswith("--initial-cluster=")).split("=", 1)[1].split(",")
        endpoints = next(d["data"]["ETCD_ENDPOINTS"] for d in docs if d["kind"] == "ConfigMap" and "ETCD_ENDPOINTS" in d["data"]).split(",")
        self.assertEqual([m.split("=", 1)[1].replace(":2380", ":2379") for m in cluster], endpoints)
        self.assertEqual(len(endpoints), 3)
        self.assertTrue(all(e.startswith("https://") for e in endpoints))
        self.assertIn("--client-cert-auth=true", args)

    def test_nonsense_is_refused_by_name(self):
        for sets, named in REFUSED.items():
            for helm in HELMS:
                with self.subTest(sets, helm=helm):
                    done = run(helm, "template", "t", str(CHART), "--set", sets)
                    self.assertNotEqual(done.returncode, 0)
                    said = done.stderr.replace(".", "/") if "/" in named else done.stderr
                    self.assertIn(named, said)

    def test_every_value_is_in_the_schema_and_explained(self):
        schema = json.loads((CHART / "values.schema.json").read_text())
        values = yaml.safe_load((CHART / "values.yaml").read_text())

        def walk(value, rule, path):
            if isinstance(value, dict) and "properties" in rule:
                self.assertLessEqual(set(value), set(rule["properties"]), path)
                missing = set(rule["properties"]) - set(value) - {"global", "ephemeral-storage"}
                if not path.endswith(("requests", "limits")):
                    self.assertEqual(missing, set(), f"{path} is not in values.yaml")
                for key, inner in value.items():
                    walk(inner, rule["properties"][key], f"{path}.{key}")

        walk(values, schema, "values")


class Monitoring(unittest.TestCase):
    """Alerts and dashboards ask for metrics that exist."""

    def test_metrics_exist(self):
        source = Path(__file__).resolve().parents[2]
        registered = set()
        for crate in ("common", "collector", "gateway", "streamer"):
            for file in (source / crate / "src").rglob("*.rs"):
                text = file.read_text()
                for part in text.split("register(")[1:]:
                    first = part.strip().split('"')
                    if len(first) > 1 and first[0].strip() == "":
                        registered.add(first[1])
        text = (CHART / "rules.yaml").read_text() + (CHART / "dashboards" / "nexus-pipeline.json").read_text()
        for name in sorted(set(re.findall(r"\bnexus_[a-z_]+", text))):
            base = re.sub(r"^nexus_(view_)?|(_total|_bucket)$", "", name)
            self.assertIn(base, registered, name)


if __name__ == "__main__":
    unittest.main()
