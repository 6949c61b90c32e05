"""What a trial costs on a GPU over the bare training step, and a small study on one: `python -m benches.gpu`.

Needs torch, open_clip and autoft's core; no Ray, no database. Weights are random, images synthetic, shapes the true ones: ViT-B/16 and ViT-L/14
at 224 pixels, once with cross-entropy alone (image tower) and once with all nine terms (text tower too, and the weight norms).

    gpu_MODEL_TERMS_images_per_second   training images of a whole trial over its seconds, restoring and scoring included
    gpu_MODEL_TERMS_of_pure             that over the same of the pure step: model, batch, compiler, bf16 and fused AdamW the same, nothing else
    gpu_MODEL_TERMS_mfu                 model FLOPs utilisation: operations of the forward passes times three, counted analytically, over the
                                        time of a trial's steps and over what large bf16 matrix products reach on this device in this run
    gpu_MODEL_TERMS_pure_mfu            the same of the pure step

Trials and pure steps take turns; figures are medians. Phases are timed by events in another trial. `--study` runs a small study instead, in
which a batch does not fit; it fails if something does not hold. Writes a record under benches/records/ and the figures of a GPU into
benches/latest.json. Without a GPU it ends with code 77, the usual one for what was skipped; `--device cpu --size tiny` runs anywhere.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from autoft.threads import wait_briefly

wait_briefly(os.environ)  # as the service does; read when torch is imported

import torch

from autoft.compiled import CompiledTowers
from autoft.search_space import Hyperparameters
from autoft.workspace import Workspace, configure_torch
from benches.gpu.flops import MATRIX_SIDES, REPEATS, matrix_rate, settle, training_flops
from benches.gpu.phases import Phases
from benches.gpu.pure import PureStep
from benches.gpu.small_study import small_study, whole_trial
from benches.gpu.synthetic import MODELS, TERMS, Sizes, hyperparameters, model_config, workspace

HERE = Path(__file__).parents[1]
SKIPPED = 77
BATCHES = {"vit_b_16": 256, "vit_l_14": 128, "tiny": 8}  # fit a GPU of 80 GB; smaller ones need --batch
GOALS = {"of_pure": 0.9, "mfu": 0.45}  # at least; the second of ViT-L/14


def main() -> None:
    """Measure, print, write the record."""
    args = _arguments()
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        print(f"skipped: no CUDA device that PyTorch {torch.__version__} can use; `--device cpu --size tiny` runs the same program small")
        sys.exit(SKIPPED)
    device = torch.device(args.device)
    if device.type == "cuda":
        device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
        torch.cuda.set_device(device)
    configure_torch(args.threads)
    figures, details = study_figures(args, device) if args.study else trial_figures(args, device)
    record = {"date": time.strftime("%Y-%m-%d"), "hardware": hardware(device), "versions": versions(), "setting": _setting(args)}
    record |= {"figures": figures, "details": details}
    print(json.dumps(record, indent=1))
    if not args.dry_run:
        write(record, args.out, "study" if args.study else "trial", device.type)
    broken = [check for check, holds in details.get("checks", {}).items() if not holds]
    if broken:
        sys.exit(f"does not hold: {'; '.join(broken)}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", action="store_true", help="run a small study instead of measuring trials")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", choices=["true", "tiny"], default="true", help="tiny: a model of a few thousand weights")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), help="of the true ones (default: both; with --study the first)")
    parser.add_argument("--terms", nargs="+", choices=list(TERMS), default=list(TERMS))
    parser.add_argument("--batch", type=int, help="images a step (default: 256 for ViT-B/16, 128 for ViT-L/14)")
    parser.add_argument("--steps", type=int, help="of a trial (default: 100; with --study 8)")
    parser.add_argument("--runs", type=int, default=5, help="trials and measurements of the pure step (default: 5)")
    parser.add_argument("--trials", type=int, default=50, help="of the study (default: 50)")
    parser.add_argument("--backend", help="of torch.compile, or none (default: inductor on a GPU, none on a CPU)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    parser.add_argument("--out", type=Path, default=HERE, help="folder of records/ and latest.json (default: benches/)")
    parser.add_argument("--dry-run", action="store_true", help="one run, ten steps, three trials; write nothing")
    args = parser.parse_args()
    if args.size == "tiny":
        args.models = ["tiny"]
    args.models = args.models or (list(MODELS)[:1] if args.study else list(MODELS))
    args.steps = args.steps or (8 if args.study else 100)
    if args.dry_run:
        args.runs, args.steps, args.trials = 1, min(args.steps, 10), min(args.trials, 3)
    return args


def _setting(args: argparse.Namespace) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items() if name not in ("dry_run", "out")}


def make_workspace(name: str, args: argparse.Namespace, device: torch.device) -> Workspace:
    """A workspace of random weights, compiled as the service would or as was asked for."""
    batch = args.batch or BATCHES[name]
    train = max(batch, 64 if name == "tiny" else 1024)
    sizes = Sizes(batch=batch, steps=args.steps, train=train, val=20 if name == "tiny" else 512, classes=3 if name == "tiny" else 100)
    found = workspace(name, sizes, device, "auto")
    if args.backend is not None:
        found.towers = CompiledTowers(found.model, None if args.backend == "none" else args.backend)
    return found


def trial_figures(args: argparse.Namespace, device: torch.device) -> tuple[dict[str, float], dict[str, Any]]:
    """Figures by name, and everything they were made of."""
    tiny = args.size == "tiny"
    rate = matrix_rate(device, (256,) if tiny else MATRIX_SIDES, 2 if tiny else REPEATS)
    figures = {"gpu_matrix_teraflops": rate / 1e12}
    details: dict[str, Any] = {}
    for name in args.models:
        for terms in args.terms:
            torch.compiler.reset()
            case = f"gpu_{name}_{terms}"
            found = one_case(name, terms, args, device, rate)
            details[case] = found
            figures |= {f"{case}_{figure}": found[figure] for figure in ("images_per_second", "of_pure", "mfu", "pure_mfu")}
    return figures, details


def one_case(name: str, terms: str, args: argparse.Namespace, device: torch.device, rate: float) -> dict[str, Any]:
    """Trials and pure steps of one model with one set of terms."""
    space = make_workspace(name, args, device)
    backend = args.backend or ("inductor" if device.type == "cuda" else "none")
    batch, values = space.config.trial.batch_size, hyperparameters(terms)
    started = time.perf_counter()
    whole_trial(space, values)  # compiles
    first = time.perf_counter() - started
    phases = Phases(device)
    with phases.measured():
        whole_trial(space, values)
    texts = round(statistics.fmean(phases.texts)) if phases.texts else 0
    pure_loop = PureStep(space, terms, texts, None if backend == "none" else backend)
    trials, steps, pure = [], [], []
    for _ in range(args.runs):
        pure.append(pure_loop.seconds(args.steps))
        settle(device)
        seconds, of_steps = timed_trial(space, values)
        trials.append(seconds)
        steps.append(of_steps / args.steps)
    pure_step, trial, step = statistics.median(pure), statistics.median(trials), statistics.median(steps)
    flops = training_flops(model_config(name), batch, texts)
    pure_rate = batch / pure_step
    return {
        "batch": batch,
        "texts": texts,
        "training_flops_a_step": flops,
        "images_per_second": batch * args.steps / trial,
        "pure_images_per_second": pure_rate,
        "of_pure": batch * args.steps / trial / pure_rate,
        "steps_of_pure": pure_step / step,
        "mfu": flops / step / rate,
        "pure_mfu": flops / pure_step / rate,
        "first_trial_seconds": first,
        "trial_seconds": trials,
        "step_seconds": steps,
        "pure_step_seconds": pure,
        "phase_seconds": phases.seconds(),
        "compiled": space.towers.active,
        "batch_split": space.batch_split,
        "peak_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
    }


def timed_trial(space: Workspace, values: Hyperparameters) -> tuple[float, float]:
    """Seconds of a whole trial, and of its steps alone."""
    phases = Phases(space.device)
    with phases.measured():
        started = time.perf_counter()
        whole_trial(space, values)  # ends with a score, so with the device
        seconds = time.perf_counter() - started
    return seconds, phases.seconds_of_steps()


def study_figures(args: argparse.Namespace, device: torch.device) -> tuple[dict[str, float], dict[str, Any]]:
    """Figures and checks of a small study with the first of the models."""
    found = small_study(make_workspace(args.models[0], args, device), args.trials)
    holds = sum(found["checks"].values()) / len(found["checks"])
    growth = {} if found["growth_bytes"] is None else {"gpu_study_growth_bytes": float(found["growth_bytes"])}
    return {"gpu_study_checks_held": holds, "gpu_study_trials": float(args.trials), **growth}, found


def hardware(device: torch.device) -> dict[str, Any]:
    """What it ran on."""
    found: dict[str, Any] = {"machine": platform.machine(), "cores": os.cpu_count(), "device": str(device)}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {"gpu": properties.name, "gpu_bytes": properties.total_memory, "capability": list(torch.cuda.get_device_capability(device))}
    return found


def versions() -> dict[str, str | None]:
    """Of what decides the figures."""
    names = ("torch", "open_clip_torch", "timm", "triton", "numpy")
    installed = {item.metadata["Name"]: item.version for item in metadata.distributions() if item.metadata["Name"] in names}
    return {"python": platform.python_version(), "cuda": torch.version.cuda, **installed}


def write(record: dict[str, Any], out: Path, what: str, kind: str) -> None:
    """A dated record; a GPU's figures into latest.json."""
    path = out / "records" / f"{record['date']}-gpu-{what}-{kind}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
    if kind == "cuda":
        latest = out / "latest.json"
        known = json.loads(latest.read_text()) if latest.is_file() else {}
        latest.write_text(json.dumps(known | {name: round(value, 4) for name, value in record["figures"].items()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
