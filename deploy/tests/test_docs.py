"""Every command in docs/SCALING_AND_KUBERNETES.md, as far as it can be tried without a cluster or
an engine: a new kind of command fails until this file knows how to try it. Run by
scripts/test-deploy.sh, which sets NEXUS_HELM and builds nothing."""

import os
import re
import shlex
import subprocess
import unittest
from pathlib import Path

import yaml

REPO = Path(__file__).resolve().parent.parent.parent
PAGE = REPO / "docs/SCALING_AND_KUBERNETES.md"
COMPOSE = REPO / "deploy/docker/compose.yaml"
HELM = os.environ["NEXUS_HELM"].split()[0]
CHART = "deploy/helm/telemetry-pipeline"
# What a program says is no command.
QUOTED = ("etcd was restored",)


def commands():
    """Words of every indented line, with its leading NAME=VALUE apart."""
    for line in PAGE.read_text().splitlines():
        if not re.match(r"    \S", line) or line.strip().startswith(QUOTED):
            continue
        words = shlex.split(line.split(" > ")[0].strip())
        env = {}
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            name, _, value = words.pop(0).partition("=")
            env[name] = value
        yield words, env


def run(words, env=None):
    return subprocess.run(
        words, cwd=REPO, env=os.environ | (env or {}), capture_output=True, text=True, timeout=60
    )


class Documented(unittest.TestCase):
    def succeeds(self, words, env=None):
        ended = run(words, env)
        self.assertEqual(ended.returncode, 0, f"{words}: {ended.stderr}")
        return ended.stdout

    def test_every_command_can_be_tried(self):
        tried = 0
        for words, env in commands():
            with self.subTest(" ".join(words)):
                attempt = getattr(self, f"try_{words[0].replace('-', '_')}", None)
                self.assertIsNotNone(attempt, f"nothing here knows how to try {words[0]}")
                attempt(words, env)
                tried += 1
        self.assertGreater(tried, 15)

    def try_make(self, words, env):
        """Its recipe, and that each knob is one that a script or recipe reads."""
        recipe = self.succeeds(["make", "-n", *words[1:]], env)
        self.assertTrue(recipe.strip(), words)
        read = (REPO / "Makefile").read_text() + "".join(p.read_text() for p in (REPO / "scripts").glob("*.sh"))
        for knob in [*env, *(w.partition("=")[0] for w in words[1:] if "=" in w)]:
            self.assertRegex(read, rf"\b{knob}\b")

    def try_helm(self, words, _):
        """Rendered instead of installed."""
        self.assertIn(words[1], ("install", "upgrade"))
        flags, position = [], 4
        if words[2] == "...":
            position = 3
        for word in words[position:]:
            if word != "--create-namespace":
                flags.append(word)
        rendered = self.succeeds([HELM, "template", "nexus", CHART, *flags])
        self.assertIn("kind: Deployment", rendered)

    def try_kubectl(self, words, _):
        """No cluster: the file's key is the one that the chart mounts."""
        self.assertEqual(words[3:6], ["create", "secret", "generic"])
        name = words[6]
        rendered = self.succeeds(
            [HELM, "template", "nexus", CHART, "--set", f"nexusGateway.auth.existingSecret={name}"]
        )
        key = words[7].removeprefix("--from-file=").partition("=")[0]
        self.assertRegex(rendered, rf"secretName: \"?{name}")
        self.assertRegex(rendered, rf"auth.*/{key}\b|{key}\b.*auth|AUTH_TOKENS_FILE[^/]*/\S*{key}")

    def try_docker(self, words, _):
        self.assertEqual(words[1:3], ["compose", "-f"])
        self.assertEqual(REPO / words[3], COMPOSE)
        services = yaml.safe_load(COMPOSE.read_text())["services"]
        for flag, value in zip(words, words[1:]):
            if flag == "--scale":
                self.assertIn(value.partition("=")[0], services)

    def try_systemctl(self, words, _):
        for unit in (word for word in words if word.startswith("nexus-")):
            name, instance, _ = unit.partition("@")
            self.assertTrue((REPO / f"deploy/systemd/{name}{instance}.service").is_file(), unit)

    def try_tar(self, words, _):
        """The tarball is where dist.sh leaves it."""
        place, _, name = words[-1].rpartition("/")
        self.assertEqual(place, ".nexus/dist")
        self.assertRegex((REPO / "scripts/dist.sh").read_text(), r"\$STATE_DIR/dist|\.nexus/dist")
        self.assertTrue(name.startswith("nexus-") and name.endswith(".tar.gz"), name)

    def try_nexus_gateway(self, words, _):
        """As it is written: the line for the file holds no token."""
        told = self.succeeds([REPO / "target/release/nexus-gateway", *words[1:]])
        self.assertIn(words[3], told)

    def try_etcdctl(self, words, _):
        self.succeeds(["etcdctl", *(w for w in words[1:-1] if not w.startswith("--")), "--help"], {"ETCDCTL_API": "3"})


if __name__ == "__main__":
    unittest.main()
