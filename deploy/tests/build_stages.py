"""Runs the Dockerfile's build without a container engine (make docker-stages ROLE=collector).

Every stage that builds gets a clean directory for /src and one for /out, mounted over a mount
namespace of its own, and its RUN, COPY and ARG lines in their order; what `.dockerignore` keeps
out is not there. The final stage's program is then started in a root that holds nothing but its
shared libraries, as the image has no shell either. Not checked: the base images themselves.

Needs Linux, root (or a user namespace that may mount), the packages' names of Debian, and Rust.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent.parent
ROLES = ("streamer", "collector", "gateway")
MOUNTED = ("src", "out")


def instructions(text):
    """(word, rest) of every instruction; lines that end in a backslash go on."""
    kept = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in re.sub(r"\\\n\s*", "", "\n".join(kept)).splitlines():
        if line.strip():
            word, _, rest = line.partition(" ")
            yield word, rest.strip()


def stages(text):
    """(name, base, instructions) of every stage, and the arguments before the first."""
    found, first = [], {}
    for word, rest in instructions(text):
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            found.append((name, base, []))
        elif not found:
            key, _, value = rest.partition("=")
            first[key] = value
        else:
            found[-1][2].append((word, rest))
    return found, first


def context_paths():
    """What the build context holds: .dockerignore refuses all but what it names."""
    lines = (REPO / ".dockerignore").read_text().split()
    assert lines[0] == "*", "the first line of .dockerignore refuses everything"
    return [line.removeprefix("!") for line in lines[1:] if line.startswith("!")]


class Stage:
    """A stage's directories, and the variables that it declared."""

    def __init__(self, root, given, tools):
        # What a stage installs with cargo belongs to it, not to this machine.
        self.root, self.given, self.env = root, given, {"CARGO_INSTALL_ROOT": str(tools)}
        self.path = f"{tools}/bin:{os.environ['PATH']}"
        for name in MOUNTED:
            (root / name).mkdir(parents=True, exist_ok=True)

    def take(self, earlier):
        """Begins where another stage ended."""
        for name in MOUNTED:
            shutil.copytree(earlier.root / name, self.root / name, symlinks=True, dirs_exist_ok=True)

    def arg(self, rest):
        name, _, otherwise = rest.partition("=")
        self.env[name] = self.given.get(name, shlex.split(otherwise)[0] if otherwise else "")

    def copy(self, rest, stages_by_name):
        origin = None
        if rest.startswith("--from="):
            option, rest = rest.split(" ", 1)
            origin = stages_by_name[option.removeprefix("--from=")]
        *sources, target = shlex.split(rest)
        target = self.root / (target.lstrip("/") if target.startswith("/") else f"src/{target}")
        for source in sources:
            if origin:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(origin.root / source.lstrip("/"), target)
                continue
            assert source == ".", f"COPY {source}: only the whole context is copied here"
            listed = subprocess.run(
                ["git", "-C", REPO, "archive", "HEAD", *context_paths()], check=True, capture_output=True
            )
            subprocess.run(["tar", "-x", "-C", target], input=listed.stdout, check=True)

    def run(self, command):
        mounts = " && ".join(f"mount --bind {self.root}/{name} /{name}" for name in MOUNTED)
        script = f"{mounts} && cd /src && exec bash -eo pipefail -c {shlex.quote(command)}"
        # A layer's builder has none of what the machine's user has set.
        keep = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME") or k.startswith(("CARGO_", "RUSTUP_"))}
        keep.pop("CARGO_TARGET_DIR", None)
        print(f"  RUN {command[:110]}", flush=True)
        subprocess.run(["unshare", "--mount", "bash", "-ec", script], check=True, env=keep | self.env | {"PATH": self.path})


def start_without_a_shell(program, root, commit):
    """Runs the program where nothing is but itself and its libraries; it tells its commit."""
    linked = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    for library in re.findall(r"(/\S+) \(0x", linked):
        target = root / library.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(library, target)
    shutil.copy2(program, root / "nexus")
    for arguments, code in ((["--version"], 0), (["run", "--help"], 0), (["healthcheck"], 1)):
        ended = subprocess.run(
            [shutil.which("chroot"), "--userspec=65532:65532", root, "/nexus", *arguments],
            capture_output=True, text=True, env={},
        )
        print(f"  /nexus {' '.join(arguments)}: {ended.returncode}: {(ended.stdout or ended.stderr).splitlines()[0]}")
        assert ended.returncode == code, ended.stderr
        assert arguments != ["--version"] or commit in ended.stdout, f"{commit} is not in {ended.stdout}"


def build(role, work):
    """Every stage of one role's image."""
    found, _ = stages((REPO / "deploy/docker/Dockerfile").read_text())
    commit = subprocess.run(["git", "-C", REPO, "rev-parse", "--short", "HEAD"], check=True, capture_output=True, text=True)
    given = {"ROLE": role, "COMMIT": commit.stdout.strip()}
    done = {}
    for number, (name, base, lines) in enumerate(found):
        print(f"{role}: stage {name or 'image'} from {base}", flush=True)
        stage = Stage(work / role / str(number), given, work / "tools")
        if base in done:
            stage.take(done[base])
        for word, rest in lines:
            if word == "ARG":
                stage.arg(rest)
            elif word == "COPY":
                stage.copy(rest, done)
            elif word == "RUN":
                stage.run(rest)
            elif word not in ("SHELL", "WORKDIR", "LABEL", "USER", "ENTRYPOINT", "CMD", "HEALTHCHECK"):
                raise SystemExit(f"{word}: this script does not know it")
        done[name] = stage
    program = done[""].root / "nexus"
    print(f"  {program.stat().st_size / 2**20:.1f} MiB", flush=True)
    start_without_a_shell(program, work / role / "root", given["COMMIT"])


def main():
    role, work = sys.argv[1], Path(sys.argv[2])
    if role not in ROLES:
        raise SystemExit(f"{role}: must be one of {', '.join(ROLES)}")
    for name in MOUNTED:
        Path("/", name).mkdir(exist_ok=True)
    build(role, work)


if __name__ == "__main__":
    main()
