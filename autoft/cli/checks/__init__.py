"""The checks of `autoft doctor`: independent functions in one list, so that none that fails hides another.

    finding.py   what a check says, and the time limit it runs under
    machine.py   Python, packages, memory, disks, limits, threads, clock
    compute.py   GPUs; the foundation model's weights
    services.py  the database and the Ray cluster
"""

from collections.abc import Callable, Iterable

from autoft.cli.checks import compute, machine, services
from autoft.cli.checks.finding import Asked, Finding, run_check

Check = Callable[[Asked], Iterable[Finding]]

# Name, function, seconds it may take.
CHECKS: tuple[tuple[str, Check, float], ...] = (
    ("python", machine.python, 5),
    ("packages", machine.packages, 10),
    ("study", compute.study, 60),
    ("gpu", compute.gpu, 60),
    ("model", compute.model, 60),
    ("memory", machine.memory, 5),
    ("disk", machine.disks, 20),
    ("files", machine.open_files, 5),
    ("threads", machine.threads, 5),
    ("time", machine.timezone, 5),
    ("database", services.database, 90),
    ("ray", services.ray, 75),
)

__all__ = ["CHECKS", "Asked", "Check", "Finding", "run_check"]
