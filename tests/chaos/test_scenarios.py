"""Small versions of some scenarios, each as a person runs it: a process of its own, which kills whatever it started.

`make chaos` runs them all, and in full; the others (a second storm, cut networks, every kill point, leaks) take too long for every change.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIMIT_SECONDS = 600


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["crowd", "storm", "full_disk"])
def test_small(scenario: str, tmp_path: Path) -> None:
    if scenario == "full_disk" and os.geteuid() != 0:
        pytest.skip("needs root, to mount a small file system")
    out = tmp_path / "records.json"
    command = [sys.executable, "-m", "tests.chaos", "--scenario", scenario, "--small", "--out", str(out)]
    run = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT_SECONDS)
    (record,) = json.loads(out.read_text())["records"]
    failed = [check for check in record["checks"] if not check["passed"]]
    assert run.returncode == 0 and not failed, f"{json.dumps(failed, indent=1)}\n{run.stderr[-5000:]}"
