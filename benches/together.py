"""Several trials as one program against as many one after the other: `make bench-together`, or `python -m benches.together`.

For the built-in demo's tiny ViT and for the PACS study's MobileNetV2 CLIP, with 2, 4 and 8 trials of the study's own batch and search space:

    together_MODEL_K         seconds of a step of K trials as one program, over K steps of single trials: median over rounds; below 1 is faster
    together_memory_MODEL_K  peak memory likewise, over that of a single trial; on a CPU that of the whole process, libraries and data included
    chosen                   what `autoft.pace.measure`, which decides for a study, says in the same process

Both sides take turns in one run, through the loops that trials use, from the batch to the optimizer's step; each starts its fine-tunes once and is
advanced some steps a round. Scoring, which is the same for both, is left out. Seconds of processor time
are kept beside those on the clock, which other work on the machine disturbs more. Memory is measured in a process for each.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from autoft.threads import wait_briefly

wait_briefly(os.environ)  # as the service does; read when torch is imported

import torch

from autoft.config import load_config
from autoft.demo import write_demo
from autoft.finetune import Recipe, finetune
from autoft.memory import PeakMemory
from autoft.pace import measure as measured_rule
from autoft.pace import typical
from autoft.pipeline import package_versions
from autoft.together import wait
from autoft.trial import trial_splits
from autoft.vectorized import Stack
from autoft.workspace import Workspace, configure_torch
from benches.figures import CORES, HERE, hardware, spread, write

MODELS = ("demo", "pacs")
COUNTS = (2, 4, 8)
WARM_UP = 2  # steps that do not count


def main() -> None:
    """Measure, print a table, and write the record."""
    args = _arguments()
    torch.set_num_interop_threads(1)
    configure_torch(args.threads)
    if args.memory_of is not None:
        model, count = args.memory_of.split(",")
        print(peak_bytes(workspace_of(model, args, Path(os.environ["AUTOFT_BENCH_CACHE"])), int(count)))
        return
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="autoft-bench-") as cache:
        for model in args.models:
            if model == "pacs" and not args.study.is_file():
                print(f"pacs skipped: there is no study file at {args.study}; give one with --study")
                continue
            figures[model] = measure(model, args, Path(cache))
    print(table(figures))
    if not args.dry_run:
        _write(args, figures)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, default=HERE.parents[1] / "shared" / "examples" / "pacs.yaml", help="of the model pacs")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--counts", nargs="+", type=int, default=COUNTS, help="trials at once (default: 2 4 8)")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=3, help="steps of each side in a round (default: 3)")
    parser.add_argument("--threads", type=int, default=CORES)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dry-run", action="store_true", help="2 rounds of 1 step of 2 trials, no memory; write nothing")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.dry_run:
        args.rounds, args.steps, args.counts = 2, 1, [2]
    return args


def workspace_of(model: str, args: argparse.Namespace, cache: Path) -> Workspace:
    """The study's workspace, with what its trials need."""
    study = write_demo(cache / "demo") if model == "demo" else args.study
    return Workspace.load(config := load_config(study), args.device, cache / "images", trial_splits(config))


def measure(model: str, args: argparse.Namespace, cache: Path) -> dict[str, Any]:
    """A model's figures, by how many trials there were."""
    alone, together = workspace_of(model, args, cache), workspace_of(model, args, cache)
    counts = {str(count): compare(alone, together, count, args.rounds, args.steps) for count in args.counts}
    pace = measured_rule(together, typical(together.config.search_space))
    del alone, together
    if not args.dry_run:
        single = _memory_of(model, 1, args, cache)
        for count, figure in counts.items():
            peak = _memory_of(model, int(count), args, cache)
            figure |= {"peak_bytes": peak, "memory": peak / single if peak and single else None}
    return {"trials": counts, "chosen": pace.trials, "rule": str(pace)}


def compare(alone: Workspace, together: Workspace, count: int, rounds: int, steps: int) -> dict[str, Any]:
    """Seconds of `count` trials' steps on both sides, which take turns and the first turn in turn."""
    sides = {"alone": one_by_one(alone, WARM_UP + rounds * steps, count), "together": as_one(together, WARM_UP + rounds * steps, count)}
    for side in sides.values():
        for _ in range(WARM_UP):
            next(side)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in sorted(sides, reverse=bool(number % 2)):
            started, started_cpu = time.perf_counter(), time.process_time()
            for _ in range(steps):
                next(sides[name])
            seconds[name].append((time.perf_counter() - started) / steps)
            cpu_seconds[name].append((time.process_time() - started_cpu) / steps)
    ratios = [one / other for one, other in zip(seconds["together"], seconds["alone"], strict=True)]
    return {
        "ratio": statistics.median(seconds["together"]) / statistics.median(seconds["alone"]),
        "ratio_cpu": statistics.median(cpu_seconds["together"]) / statistics.median(cpu_seconds["alone"]),
        "paired_ratio": spread(ratios),
        "together_seconds": spread(seconds["together"]),
        "alone_seconds": spread(seconds["alone"]),
    }


def one_by_one(workspace: Workspace, steps: int, count: int) -> Iterator[None]:
    """`count` steps of one trial at a time: the same work for as many, without keeping as many models."""
    (recipe,) = recipes(workspace, steps * count, 1)
    taken = finetune(workspace, recipe)
    for _ in range(steps):
        for _ in range(count):
            next(taken)
        wait(workspace)
        yield


def as_one(workspace: Workspace, steps: int, count: int) -> Iterator[None]:
    """A step of `count` trials."""
    stack = Stack(workspace, recipes(workspace, steps, count))
    for _ in range(steps):
        stack.step()
        wait(workspace)
        yield


def recipes(workspace: Workspace, steps: int, count: int) -> list[Recipe]:
    """Fine-tunes as the search would ask for, with seeds of their own."""
    hp, trial = typical(workspace.config.search_space), workspace.config.trial
    batch = min(trial.batch_size, len(workspace.train))
    return [Recipe(hyperparameters=replace(hp, seed=seed), steps=steps, batch_size=batch, clip_grad_norm=trial.clip_grad_norm) for seed in range(count)]


def peak_bytes(workspace: Workspace, count: int) -> int | None:
    """Of some steps after the first ones, with all that is held meanwhile."""
    run: Callable[[Workspace, int, int], Iterator[None]] = as_one if count > 1 else one_by_one
    steps = run(workspace, 2 * WARM_UP, count)
    for _ in range(WARM_UP):
        next(steps)
    peak = PeakMemory(workspace.device)
    for _ in range(WARM_UP):
        next(steps)
    return peak.bytes()


def _memory_of(model: str, count: int, args: argparse.Namespace, cache: Path) -> int | None:
    command = [sys.executable, "-m", "benches.together", "--memory-of", f"{model},{count}", "--study", str(args.study)]
    command += ["--threads", str(args.threads), "--device", args.device]
    env = {**os.environ, "AUTOFT_BENCH_CACHE": str(cache)}
    done = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, cwd=HERE.parent, text=True)
    said = done.stdout.split()[-1]
    return None if said == "None" else int(said)


def table(figures: dict[str, Any]) -> str:
    """The figures as a Markdown table."""
    lines = ["| model | trials | as one / one by one | [quartiles] | processor time | ms a trial's step, as one | one by one | memory | chosen |", "|---|---|---|---|---|---|---|---|---|"]
    for model, found in figures.items():
        for count, figure in found["trials"].items():
            paired, memory = figure["paired_ratio"], figure.get("memory")
            ms = [f"{1000 * figure[side]['median'] / int(count):.1f}" for side in ("together_seconds", "alone_seconds")]
            cells = [model, count, f"{figure['ratio']:.3f}", f"[{paired['quartile_low']:.3f}, {paired['quartile_high']:.3f}]", f"{figure['ratio_cpu']:.3f}", *ms]
            lines.append(f"| {' | '.join([*cells, f'{memory:.2f}' if memory else '-', str(found['chosen'])])} |")
    return "\n".join(lines)


def _write(args: argparse.Namespace, figures: dict[str, Any]) -> None:
    """A dated record, and the ratios by name in latest.json."""
    record = {
        "date": time.strftime("%Y-%m-%d"),
        "hardware": hardware(args.device),
        "versions": package_versions(),
        "setting": {"rounds": args.rounds, "steps_per_round": args.steps, "threads": args.threads, "device": args.device},
        "figures": figures,
    }
    named: dict[str, float] = {}
    for model, found in figures.items():
        for count, figure in found["trials"].items():
            named[f"together_{model}_{count}"] = figure["ratio"]
            if figure.get("memory"):
                named[f"together_memory_{model}_{count}"] = figure["memory"]
    write(record, f"together-{args.device.partition(':')[0]}", named)


if __name__ == "__main__":
    main()
