"""compose.yaml, Prometheus' and Grafana's files, without an engine: what refers to something
finds it. Run by scripts/test-deploy.sh."""

import json
import re
import unittest
from pathlib import Path

import yaml

DOCKER = Path(__file__).resolve().parent.parent / "docker"
REPO = DOCKER.parent.parent
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]


class Compose(unittest.TestCase):
    def test_every_service_says_whether_it_is_healthy(self):
        for name, service in SERVICES.items():
            # Ours have it in their image.
            ours = service["image"].startswith("nexus-")
            self.assertTrue(ours or "healthcheck" in service, name)

    def test_what_is_waited_for_exists(self):
        for name, service in SERVICES.items():
            for other in service.get("depends_on", {}):
                self.assertIn(other, SERVICES, name)

    def test_roles_can_be_scaled(self):
        for role in ("streamer", "collector", "gateway"):
            self.assertNotIn("container_name", SERVICES[role])
            self.assertEqual(SERVICES[role]["deploy"]["replicas"], 2)
            self.assertEqual(SERVICES[role]["build"]["args"]["ROLE"], role)
        for port in SERVICES["gateway"]["ports"]:
            self.assertRegex(port, r"^127\.0\.0\.1:\d+-\d+:8080$")

    def test_variables_are_those_that_the_programs_read(self):
        known = set()
        for crate in ("common", "streamer", "collector", "gateway"):
            for file in (REPO / crate / "src").rglob("*.rs"):
                known |= set(re.findall(r'env = "([A-Z_]+)"', file.read_text()))
        for role in ("streamer", "collector", "gateway"):
            self.assertLessEqual(set(SERVICES[role]["environment"]), known)

    def test_files_that_are_mounted_exist(self):
        volumes = set(COMPOSE["volumes"])
        for name, service in SERVICES.items():
            for volume in service.get("volumes", []):
                source = volume.split(":")[0]
                if source.startswith("."):
                    self.assertTrue((DOCKER / source).exists(), f"{name}: {source}")
                else:
                    self.assertIn(source, volumes, name)

    def test_members_of_etcd_know_each_other(self):
        members = {name for name in SERVICES if name.startswith("etcd-")}
        for name in members:
            cluster = next(c for c in SERVICES[name]["command"] if c.startswith("--initial-cluster="))
            named = {m.split("=")[0] for m in cluster.split("=", 1)[1].split(",")}
            self.assertEqual(named, members)
            self.assertEqual(SERVICES[name]["environment"]["ETCD_NAME"], name)
        endpoints = SERVICES["gateway"]["environment"]["ETCD_ENDPOINTS"]
        self.assertEqual(endpoints.count(":2379"), len(members))

    def test_prometheus_scrapes_services_that_exist(self):
        config = yaml.safe_load((DOCKER / "prometheus.yml").read_text())
        for job in config["scrape_configs"]:
            for found in job.get("dns_sd_configs", []):
                for service in found["names"]:
                    self.assertIn(service, SERVICES)
            for group in job.get("static_configs", []):
                for target in group["targets"]:
                    self.assertIn(target.split(":")[0], SERVICES)

    def test_grafana_is_given_what_its_dashboards_ask_for(self):
        source = yaml.safe_load((DOCKER / "grafana" / "datasources.yaml").read_text())
        self.assertEqual(source["datasources"][0]["type"], "prometheus")
        for file in (REPO / "deploy/helm/telemetry-pipeline/dashboards").glob("*.json"):
            for panel in json.loads(file.read_text())["panels"]:
                self.assertEqual(panel["datasource"], {"type": "prometheus", "uid": "${datasource}"})


if __name__ == "__main__":
    unittest.main()
