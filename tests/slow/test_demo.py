"""`autoft demo` as a newcomer runs it, and from the built wheel outside the clone."""

import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.slow.conftest import Home

pytestmark = pytest.mark.slow
CLONE = Path(__file__).parents[2]


def test_the_demo_ends_with_a_table_of_four_methods(home: Home, check_run: Callable[[str, int], dict[str, Any]]) -> None:
    done = home.autoft("demo", "--runs", home.runs)
    summary = check_run("demo", 24)
    assert {row["model"] for row in summary["evaluations"]} == {"zero_shot", "finetune", "final", "wise_ft"}
    for words in ("Zero-shot", "Plain fine-tuning", "AutoFT + WiSE-FT", "report.html"):
        assert words in done.stdout


def test_the_wheel_alone_runs_the_demo(home: Home, tmp_path: Path) -> None:
    """A fresh environment that sees the installed dependencies, and autoft from the wheel only."""
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path, CLONE], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("autoft-*.whl")
    environment = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    python = environment / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", wheel], check=True)
    packages = Path(subprocess.run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, text=True, check=True).stdout.strip())
    # A path in a .pth file is searched, but .pth files inside it are not read: the editable install stays out of sight.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    where = subprocess.run([python, "-c", "import autoft, workers, storage; print(autoft.__file__)"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert Path(where.stdout.strip()).is_relative_to(packages)
    command = [environment / "bin" / "autoft", "demo", "--runs", "wheel-runs", "--set", "study=wheel", "--set", "search.n_trials=3"]
    done = subprocess.run(command, cwd=tmp_path, env=home.environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "wheel-runs" / "wheel" / "report.html").is_file()
