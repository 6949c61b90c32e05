"""How long people wait before anything happens: `python -m benches.startup`.

    import_seconds        `autoft --help`, from the shell's point of view (goal: at most 0.5), beside `python -c pass`, in turns
    first_trial_seconds   from `autoft launch` on a warm image cache, with the embedded database and Ray still to be started, to the first
                          trial's start (goal: at most 15); on the PACS study, the second of two launches
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from autoft.pipeline import package_versions
from benches.figures import HERE, hardware, spread, write

STUDY = HERE.parents[1] / "shared" / "examples" / "pacs.yaml"


def main() -> None:
    """Measure both and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="of each measurement (default: 5)")
    parser.add_argument("--dry-run", action="store_true", help="print the figures and write nothing")
    args = parser.parse_args()
    figures = {"import_seconds": measure_help(4 * args.runs), "first_trial_seconds": measure_first_trial(args.runs)}
    print(json.dumps(figures, indent=1))
    if not args.dry_run:
        record = {"date": time.strftime("%Y-%m-%d"), "hardware": hardware(), "versions": package_versions(), "figures": figures}
        print(write(record, "startup", {name: figure["value"] for name, figure in figures.items()}))


def measure_help(runs: int) -> dict[str, Any]:
    """`autoft --help` and an empty program, in turns; the first of each warms the file system's cache and is dropped."""
    programs = {"help": [sys.executable, "-m", "autoft.cli.main", "--help"], "nothing": [sys.executable, "-c", "pass"]}
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(runs + 1):
        for name, command in programs.items():
            started = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=HERE.parent)
            seconds[name].append(time.perf_counter() - started)
    found = {name: spread(values[1:]) for name, values in seconds.items()}
    return {"value": found["help"]["median"], "help_seconds": found["help"], "empty_program_seconds": found["nothing"]}


def measure_first_trial(runs: int) -> dict[str, Any]:
    """Launches that are stopped when their first trial has started; each with a database of its own, the first one to fill the cache."""
    with tempfile.TemporaryDirectory(prefix="autoft-bench-", dir="/tmp") as folder:
        seconds = [_first_trial(Path(folder), run) for run in range(runs + 1)]
    return {"value": spread(seconds[1:])["median"], "warm_seconds": spread(seconds[1:]), "cold_seconds": seconds[0]}


def _first_trial(folder: Path, run: int) -> float:
    command = [sys.executable, "-m", "autoft.cli.main", "launch", str(STUDY), "--json", "--device", "cpu", "--runs", str(folder / f"runs{run}")]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AUTOFT_", "RAY_"))}
    env = {**kept, "AUTOFT_HOME": str(folder / f"home{run}"), "AUTOFT_CACHE_DIR": str(folder / "cache"), "PYTHONPATH": str(HERE.parent)}
    started, seconds = time.perf_counter(), None
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True, cwd=HERE.parent)
    assert process.stdout is not None
    for line in process.stdout:
        if seconds is None and json.loads(line)["event"] == "trial_started":
            seconds = time.perf_counter() - started
            process.send_signal(signal.SIGINT)
    code = process.wait()
    if seconds is None:
        raise SystemExit(f"autoft launch ended with {code} before its first trial")
    return seconds


if __name__ == "__main__":
    main()
