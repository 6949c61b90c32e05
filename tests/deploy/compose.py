"""docker-compose.yml as Python values, and its services' commands as plain processes: there is no Docker where the tests run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
OURS = ("head", "gpu-worker", "cpu-worker", "coordinator", "prepare", "dashboard")  # services of the image the Dockerfile builds
ENTRYPOINT = DEPLOY / "entrypoint.sh"


def load_compose() -> dict[str, Any]:
    """The file with its anchors resolved."""
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    return loaded


def service(name: str) -> dict[str, Any]:
    found: dict[str, Any] = load_compose()["services"][name]
    return found


def fill(text: str, values: Mapping[str, str]) -> str:
    """Put values where a variable of compose stands: ${NAME}, ${NAME:?message}, ${NAME:-default}."""
    return re.sub(r"\$\{(\w+)(?::([-?])([^}]*))?\}", lambda found: values.get(found[1], found[3] if found[2] == "-" else ""), text)


def as_process(name: str, replaced: Mapping[str, str], secrets: Path, **more: str) -> tuple[list[str], dict[str, str]]:
    """A service's command and environment, as the container has them but for `replaced` parts and the folder of secrets."""
    described = service(name)

    def here(text: str) -> str:
        text = fill(str(text), more).replace("/run/secrets", str(secrets))
        for there, ours in replaced.items():
            text = text.replace(there, ours)
        return text

    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AUTOFT_", "RAY_", "PG", "HF_"))}
    own = {key: here(value) for key, value in described["environment"].items()}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**kept, **own, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", **more}
    return ["sh", str(ENTRYPOINT), *map(here, described["command"])], environment


def make_secrets(folder: Path) -> Path:
    """What a person makes once, by the same script."""
    subprocess.run(["sh", str(DEPLOY / "make-secrets.sh"), str(folder)], check=True, capture_output=True)
    return folder
