"""Dockerfile and .dockerignore: linted, and what is copied is there and gets through."""

import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

from autoft import __version__
from tests.deploy.compose import DEPLOY, ROOT, load_compose

TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")
STAGES = re.split(r"^FROM ", TEXT, flags=re.MULTILINE)[1:]


def tool(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], cwd=ROOT, capture_output=True, text=True)


def binary(name: str) -> Path:
    return Path(sys.executable).parent / name


def test_hadolint_finds_nothing() -> None:
    done = tool(binary("hadolint"), "Dockerfile")
    assert done.returncode == 0, done.stdout


def test_shellcheck_finds_nothing() -> None:
    done = tool(binary("shellcheck"), *sorted(DEPLOY.rglob("*.sh")))
    assert done.returncode == 0, done.stdout


def copied() -> list[str]:
    found = [part for line in re.findall(r"^COPY (?!--from)(.*)$", TEXT, flags=re.MULTILINE) for part in line.split()[:-1]]
    return [part for part in found if not part.startswith("--")]


def test_what_is_copied_is_there_and_not_ignored() -> None:
    kept = [line[1:].rstrip("/") for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line.startswith("!")]
    assert copied()
    for source in copied():
        assert (ROOT / source).exists(), source
        assert source.rstrip("/") in kept, f"{source} does not get to the builder"


def test_nothing_else_gets_to_the_builder() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    for secret in ("secrets", ".env", "runs", ".git", "shared"):
        assert not any(fnmatch(secret, line[1:].rstrip("/")) for line in lines if line.startswith("!")), secret


def test_the_last_stage_has_no_compiler_and_no_rights() -> None:
    last = STAGES[-1]
    assert not re.search(r"apt-get|gcc|build-essential|pip install", last)
    users = re.findall(r"^USER (.*)$", last, flags=re.MULTILINE)
    assert users[-1] == load_compose()["services"]["head"]["user"]
    assert re.findall(r"^ENTRYPOINT", last, flags=re.MULTILINE)


def test_nothing_secret_or_local_is_baked_in() -> None:
    assert not re.search(r"index-url|trusted-host|https?://|ARG .*(TOKEN|PASSWORD)|ENV .*(TOKEN|PASSWORD)=", TEXT)


def test_labels_and_versions() -> None:
    assert f"ARG VERSION={__version__}" in TEXT
    for label in ("title", "description", "licenses", "version"):
        assert f"org.opencontainers.image.{label}=" in TEXT
    assert re.search(r"^ARG PYTHON_IMAGE=python:3\.\d+\.\d+-slim-\w+$", TEXT, flags=re.MULTILINE)
    assert all(stage.startswith("${PYTHON_IMAGE} ") for stage in STAGES)
