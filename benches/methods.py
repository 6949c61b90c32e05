"""What a training step of each robust fine-tuning method costs over one of plain fine-tuning: `make bench-methods`, or `python -m benches.methods`.

Of each method, on the PACS study with batches of 64, plain AdamW being the method `finetune`:

    step_METHOD     seconds a whole step (batch, forward, backward, optimizer): median, over plain's median
    memory_METHOD   peak memory of later steps, over plain's; on a CPU that of the whole process, libraries and data included
    state_METHOD    bytes of optimizer state, over plain's

Every method goes through the real loop, `autoft.finetune.finetune`, with a model of its own. All take turns in one run: a round is some steps of
each, in an order drawn for the round, and a method's ratio is also told round by round, which shows how far to trust it. `finetune` is among
the methods measured, against another copy of itself: whatever differs from 1 there is noise. Seconds of processor time are kept beside those on
the clock, which other work on the machine disturbs more. Memory is measured in a process for each method.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

from autoft.threads import wait_briefly

wait_briefly(os.environ)  # as the service does; read when torch is imported

import torch

from autoft.config import MethodName, StudyConfig, load_config
from autoft.errors import AutoFTError
from autoft.finetune import Recipe, Step, finetune
from autoft.memory import PeakMemory
from autoft.methods import Setting, method_hyperparameters
from autoft.pipeline import package_versions
from autoft.trial import trial_splits
from autoft.workspace import Workspace, configure_torch
from benches.figures import CORES, HERE, hardware, spread, write

PLAIN: MethodName = "finetune"
MEASURED: tuple[MethodName, ...] = (
    "finetune", "l2sp", "flyp", "ftp", "tpgm", "spd", "saft", "core_tuning", "ldifs", "car_ft", "lipsum_ft", "clipood", "drm",
)  # fmt: skip
GOALS = {"step_ftp": 1.15, "step_saft": 1.0, "state_saft": 0.01}  # at most
BATCH = 64
WARM_UP = 3  # steps that do not count: first allocations, and what a method does only once


def main() -> None:
    """Measure, print a table, and write the record."""
    args = _arguments()
    if not args.study.is_file():
        print(f"skipped: there is no study file at {args.study}; give one with --study")
        return
    torch.set_num_interop_threads(1)
    configure_torch(args.threads)
    if args.memory_of is not None:
        print(json.dumps(peak_memory(args.memory_of, args, Path(os.environ["AUTOFT_BENCH_CACHE"]))))
        return
    with tempfile.TemporaryDirectory(prefix="autoft-bench-") as cache:
        figures = measure(args, Path(cache))
    print(table(figures))
    record = {
        "date": time.strftime("%Y-%m-%d"),
        "hardware": hardware(args.device),
        "versions": package_versions(),
        "study": args.study.name,
        "setting": {"batch": BATCH, "rounds": args.rounds, "steps_per_round": args.steps, "threads": args.threads, "device": args.device},
        "figures": figures,
    }
    if not args.dry_run:
        device = record["setting"]["device"].partition(":")[0]
        named = {f"{kind}_{name}": figure[kind] for name, figure in record["figures"].items() for kind in ("step", "memory", "state") if kind in figure}
        write(record, f"methods-{device}", named)
    if any("error" in figure for figure in figures.values()):
        raise SystemExit("some methods could not be measured; see above")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, default=HERE.parents[1] / "shared" / "examples" / "pacs.yaml")
    parser.add_argument(
        "--descriptions", type=Path, default=HERE.parent / "docs" / "results" / "descriptions" / "pacs.json", help="for drm"
    )
    parser.add_argument("--methods", nargs="+", choices=get_args(MethodName), default=MEASURED, metavar="METHOD")
    parser.add_argument("--rounds", type=int, default=20, help="rounds through all methods (default: 20)")
    parser.add_argument("--steps", type=int, default=3, help="steps of each method in a round (default: 3)")
    parser.add_argument("--threads", type=int, default=CORES)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dry-run", action="store_true", help="2 rounds of 1 step, memory of two methods only; write nothing")
    parser.add_argument("--memory-of", choices=get_args(MethodName), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.dry_run:
        args.rounds, args.steps = 2, 1
    return args


def measure(args: argparse.Namespace, cache: Path) -> dict[str, dict[str, Any]]:
    """Each method's figures by its name; `error` instead of figures for one that could not be measured."""
    plain = Loop(PLAIN, args, cache)
    loops: dict[str, Loop] = {}
    figures: dict[str, dict[str, Any]] = {}
    for name in args.methods:
        try:
            loops[name] = Loop(name, args, cache)
        except (AutoFTError, NotImplementedError) as error:
            figures[name] = {"error": f"{type(error).__name__}: {error}"}
    rng = random.Random(0)
    for _ in range(args.rounds):
        for loop in rng.sample([plain, *loops.values()], len(loops) + 1):
            loop.run(args.steps)
    for name, loop in loops.items():
        figures[name] = {
            **_step_figures(loop, plain),
            "state_bytes": loop.state_bytes,
            "state": loop.state_bytes / max(1, plain.state_bytes),
        }
    measured = list(loops)[:2] if args.dry_run else list(loops)
    plain.close()
    for loop in loops.values():
        loop.close()
    _add_memory(figures, measured, args, cache)
    return {name: figures[name] for name in args.methods}


class Loop:
    """A fine-tune by one method that is advanced some steps at a time, on a workspace of its own."""

    def __init__(self, name: MethodName, args: argparse.Namespace, cache: Path) -> None:
        """Load the workspace and go through the steps that do not count."""
        self.workspace = Workspace.load(config := study(name, args), args.device, cache, splits=trial_splits(config))
        model = self.workspace.model
        entries = sum(p.numel() for key, p in model.named_parameters() if key.startswith(("clip.visual.", "head.")))
        hyperparameters = method_hyperparameters(name, Setting(config.search_space, entries, config.search.seed))
        steps = WARM_UP + max(1, args.rounds * args.steps)
        self._steps = finetune(self.workspace, Recipe(hyperparameters=hyperparameters, steps=steps, batch_size=BATCH))
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []
        self.state_bytes = state_bytes(self._advance(WARM_UP).optimizer.state_dict())

    def run(self, steps: int) -> None:
        """Go on, and note the seconds a step on the clock and of processor time."""
        started, started_cpu = time.perf_counter(), time.process_time()
        self._advance(steps)
        self.seconds.append((time.perf_counter() - started) / steps)
        self.cpu_seconds.append((time.process_time() - started_cpu) / steps)

    def close(self) -> None:
        """Give the model's memory back."""
        del self.workspace, self._steps

    def _advance(self, steps: int) -> Step:
        for _ in range(steps):
            step = next(self._steps)
        if self.workspace.device.type == "cuda":
            torch.cuda.synchronize(self.workspace.device)
        return step


def study(name: MethodName, args: argparse.Namespace) -> StudyConfig:
    """The study, with descriptions of the classes where the method looks at them and there are some."""
    described = name == "drm" and args.descriptions.is_file()
    return load_config(args.study, [f"data.descriptions={args.descriptions.resolve()}"] if described else [])


def state_bytes(state: Any) -> int:
    """Bytes of all tensors in an optimizer's state dict, however deep."""
    if isinstance(state, torch.Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, Mapping):
        return sum(map(state_bytes, state.values()))
    return sum(map(state_bytes, state)) if isinstance(state, list | tuple) else 0


def peak_memory(name: MethodName, args: argparse.Namespace, cache: Path) -> dict[str, int | None]:
    """Peak bytes of a fine-tune's first steps, with what it does only once, and of the steps after; None where there is no figure."""
    whole = PeakMemory(torch.device(args.device))
    loop = Loop(name, args, cache)
    first = whole.bytes()
    later = PeakMemory(loop.workspace.device)
    loop.run(WARM_UP)
    return {"peak_bytes": later.bytes(), "peak_bytes_at_start": first}


def _add_memory(figures: dict[str, dict[str, Any]], names: Iterable[str], args: argparse.Namespace, cache: Path) -> None:
    """Each method's peak memory, measured in a process of its own, and its ratio to plain's."""
    plain = _memory_of(PLAIN, args, cache)
    for name in names:
        found = plain if name == PLAIN else _memory_of(name, args, cache)
        figures[name] |= found
        if found["peak_bytes"] and plain["peak_bytes"]:
            figures[name]["memory"] = found["peak_bytes"] / plain["peak_bytes"]


def _memory_of(name: str, args: argparse.Namespace, cache: Path) -> dict[str, int | None]:
    command = [
        sys.executable,
        "-m",
        "benches.methods",
        "--memory-of",
        name,
        "--study",
        str(args.study),
        "--rounds",
        "1",
        "--steps",
        str(WARM_UP),
    ]
    command += ["--descriptions", str(args.descriptions), "--threads", str(args.threads), "--device", args.device]
    env = {**os.environ, "AUTOFT_BENCH_CACHE": str(cache)}
    found: dict[str, int | None] = json.loads(subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, cwd=HERE.parent).stdout)
    return found


def _step_figures(loop: Loop, plain: Loop) -> dict[str, Any]:
    return {
        "step": statistics.median(loop.seconds) / statistics.median(plain.seconds),
        "step_cpu": statistics.median(loop.cpu_seconds) / statistics.median(plain.cpu_seconds),
        "paired_ratio": spread([a / b for a, b in zip(loop.seconds, plain.seconds, strict=True)]),
        "paired_ratio_cpu": spread([a / b for a, b in zip(loop.cpu_seconds, plain.cpu_seconds, strict=True)]),
        "seconds": spread(loop.seconds),
        "plain_seconds": spread(plain.seconds),
    }


def table(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """The figures as a Markdown table, goals beside those that have one."""
    lines = ["| method | step | [quartiles] | step, processor time | memory | optimizer state |", "|---|---|---|---|---|---|"]
    for name, figure in figures.items():
        if "error" in figure:
            lines.append(f"| {name} | {figure['error']} | | | | |")
            continue
        paired = figure["paired_ratio"]
        memory = f"{figure['memory']:.3f}" if "memory" in figure else "-"
        cells = [f"{figure['step']:.3f}{_goal('step', name)}", f"[{paired['quartile_low']:.3f}, {paired['quartile_high']:.3f}]"]
        cells += [f"{figure['step_cpu']:.3f}", memory, f"{figure['state']:.4f}{_goal('state', name)}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _goal(kind: str, name: str) -> str:
    goal = GOALS.get(f"{kind}_{name}")
    return "" if goal is None else f" (goal: at most {goal:g})"


if __name__ == "__main__":
    main()
