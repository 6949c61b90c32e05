"""`python -m tests.chaos`: run scenarios, print what happens on stderr, write the records to a file and their figures to the page."""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import signal
import sys
import traceback
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Any

from tests.chaos import page
from tests.chaos.diary import Diary
from tests.chaos.processes import nothing_left
from tests.chaos.scenarios import OUT, SCENARIOS


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is asked for; 0 if every check passed."""
    args = _parser().parse_args(argv)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    records = _kept(args)
    for seed in args.seed:
        for name in args.scenario:
            record = run_scenario(name, seed, trials=args.trials, workers=args.workers, small=args.small, full=args.full)
            records = [old for old in records if (old["scenario"], old["seed"]) != (name, seed)] + [record]
            args.out.write_text(document(records))
            if args.out == OUT:
                page.main()
    failed = [f"{record['scenario']} (seed {record['seed']})" for record in records if not record["passed"]]
    print(f"{len(records)} scenarios, {len(failed)} failed{': ' if failed else ''}{', '.join(failed)}", file=sys.stderr)
    return bool(failed)


def run_scenario(name: str, seed: int, **options: Any) -> dict[str, Any]:
    """One scenario's record. What it raises is a failed check; what it started is gone when this returns."""
    diary = Diary(name, seed, hidden={platform.node(): "HOST"})
    module, function = SCENARIOS[name]
    with nothing_left():
        try:
            getattr(importlib.import_module(f"tests.chaos.{module}"), function)(diary, **options)
        except Exception:
            diary.check("the scenario ran to its end", False, traceback.format_exc()[-3000:])
    return diary.record()


def document(records: list[dict[str, Any]]) -> str:
    """The results file: machine, versions, and a record of every scenario, one line for each thing that was done."""
    import psutil

    machine = {"cpus": psutil.cpu_count(), "memory_gib": round(psutil.virtual_memory().total / 2**30), "system": f"{platform.system()} {platform.release()}"}
    versions = {"python": platform.python_version(), **{name: metadata.version(name) for name in ("autoft", "ray", "optuna", "torch", "sqlalchemy")}}
    order = list(SCENARIOS)
    records = sorted(records, key=lambda record: (order.index(record["scenario"]), record["seed"]))
    return compact({"machine": machine, "versions": versions, "records": records}) + "\n"


def compact(value: Any, indent: int = 0) -> str:
    """JSON with one line a short value, so that a reader and a diff see what happened."""
    flat = json.dumps(value)
    if len(flat) + indent <= 200 or not value or not isinstance(value, dict | list):
        return flat
    space = " " * (indent + 1)
    if isinstance(value, dict):
        parts = [f"{space}{json.dumps(name)}: {compact(part, indent + 1)}" for name, part in value.items()]
        return "{\n" + ",\n".join(parts) + "\n" + " " * indent + "}"
    return "[\n" + ",\n".join(space + compact(part, indent + 1) for part in value) + "\n" + " " * indent + "]"


def _kept(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Records of an earlier run that go on beside the new ones."""
    if not args.keep or not args.out.is_file():
        return []
    records: list[dict[str, Any]] = json.loads(args.out.read_text())["records"]
    return records


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=_seeds, default=[0], metavar="N|A-B", help="which seeds (default: 0)")
    parser.add_argument("--trials", type=int, default=100, help="of the storm (default: 100)")
    parser.add_argument("--workers", type=int, default=3, help="of the storm (default: 3)")
    parser.add_argument("--scenario", type=_names, default=list(SCENARIOS), metavar="A,B", help=f"which (default: all): {', '.join(SCENARIOS)}")
    parser.add_argument("--small", action="store_true", help="one of each disturbance, a few points: what the test suite runs")
    parser.add_argument("--full", action="store_true", help="the storm with TPE and Hyperband as long as the other one")
    parser.add_argument("--keep", action="store_true", help="keep the records of other scenarios and seeds that --out holds")
    parser.add_argument("--out", type=Path, default=OUT, help="where the records go (default: tests/chaos/latest.json)")
    return parser


def _seeds(text: str) -> list[int]:
    first, dash, last = text.partition("-")
    return list(range(int(first), int(last) + 1)) if dash else [int(first)]


def _names(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in SCENARIOS]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; valid are {', '.join(SCENARIOS)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
