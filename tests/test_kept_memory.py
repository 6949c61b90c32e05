"""The memory that a step frees stays with the process: counted in page faults, which other work on the machine does not change."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from autoft.memory import keep_freed_memory
from autoft.workspace import configure_torch
from benches.page_faults import steps
from tests.runs import one_thread

glibc_only = pytest.mark.skipif("glibc" not in sys.version and not Path("/lib64/ld-linux-x86-64.so.2").exists(), reason="needs glibc")


def measured(case: str, *flags: str) -> dict[str, Any]:
    """Figures a step, from a process of its own."""
    command = [sys.executable, "-m", "benches.page_faults", "--case", case, "--steps", "4", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=Path(__file__).parents[1], check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@glibc_only
def test_a_step_takes_no_new_memory_from_the_system() -> None:
    """Tens of thousands of pages a step where nothing is kept."""
    with one_thread():
        assert steps(4, keep=True, batch=16)["page_faults"] < 4_000


@glibc_only
@pytest.mark.slow
def test_without_it_every_step_does() -> None:
    """But for an increase now and then of what the process has: here 1 % of the faults, over few steps."""
    returned = measured("main")["page_faults"]
    assert returned > 10_000 and measured("main", "--keep")["page_faults"] < 0.05 * returned


@glibc_only
@pytest.mark.slow
def test_nor_does_one_in_a_ray_actor() -> None:
    returned = measured("ray")["page_faults"]
    assert returned > 10_000 and measured("ray", "--keep")["page_faults"] < 0.05 * returned


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    keep_freed_memory.cache_clear()
    assert keep_freed_memory() is False
    with one_thread():
        configure_torch(1)
    keep_freed_memory.cache_clear()
