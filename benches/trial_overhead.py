"""What a trial costs through the service over its steps in a bare hot loop: `make bench`, or `python -m benches.trial_overhead`.

Four figures, each a ratio of things measured in turns within one run on the PACS study (16 steps, batch 64, the paper's whole search
space, Postgres):

    overhead_in_process   seconds a trial, in-process executor / seconds a bare trial, same process, ratio of medians over blocks
    overhead_ray          the same through Ray with one worker
    scaling_2_workers     trials per second of two one-thread Ray workers / of two one-thread bare loops side by side
    naive_over_bare       seconds of a trial as people write it (../shared/peers/trial.py: model and images loaded in each) / of a bare trial

Service trials run in blocks of five, each a search from its first question to its last word to the database, so that asking, telling, journal
and database count. After each block the same hyperparameters run in the bare loop, while the workers idle.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from autoft.threads import wait_briefly

wait_briefly(os.environ)  # as the service does; read when torch is imported

import optuna
import torch

from autoft.config import StudyConfig, load_config
from autoft.config.vocabulary import fill
from autoft.data import load_study_data
from autoft.executor import Executor, InProcessExecutor
from autoft.journal import Journal
from autoft.ledger import study_id
from autoft.models import load_model
from autoft.pipeline import package_versions
from autoft.search import Coordinator
from benches.bare_loop import Hot, bare_trial, load_hot
from benches.figures import CORES, HERE, hardware, spread, write
from benches.peers import TERMS
from storage import embedded_url, open_study

BLOCK = 5  # trials
FIGURES = ["overhead_in_process", "scaling_2_workers", "overhead_ray", "naive_over_bare"]
SHARED = HERE.parents[1] / "shared"


def main() -> None:
    """Run all three measurements and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, default=SHARED / "examples" / "pacs.yaml")
    parser.add_argument("--trials", type=int, default=50, help="timed trials of each measurement (default: 50)")
    parser.add_argument("--threads", type=int, default=CORES, help="threads of the one-worker measurements")
    parser.add_argument("--only", nargs="+", choices=FIGURES, default=FIGURES, help="measure these figures; the record keeps the others")
    parser.add_argument("--dry-run", action="store_true", help="print the figures and write nothing")
    parser.add_argument("--bare-worker", type=int, metavar="N", help=argparse.SUPPRESS)
    args = parser.parse_args()
    config = load_config(args.study, ["search.sampler=random", "search.pruner=none", "search.seed=0"])
    torch.set_flush_denormal(True)  # as the service does
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if args.bare_worker is not None:
        return _bare_worker(config, args.bare_worker)
    cache = Path(tempfile.mkdtemp(prefix="autoft-bench-"))
    os.environ["AUTOFT_HOME"] = str(cache / "home")
    record: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "hardware": hardware(), "versions": package_versions(), "figures": {}}
    measurements: dict[str, Callable[[], dict[str, Any]]] = {
        "overhead_in_process": lambda: measure_pairs(config, args, cache, _in_process),
        "scaling_2_workers": lambda: measure_scaling(config, args, cache),
        "overhead_ray": lambda: measure_pairs(config, args, cache, _on_ray(1, args.threads)),
        "naive_over_bare": lambda: measure_naive(config, args, cache),
    }
    for name in args.only:
        record["figures"][name] = {"trials": args.trials, **measurements[name]()}
        print(name, json.dumps(record["figures"][name], indent=1), flush=True)
        if not args.dry_run:
            write(record, "trial-overhead", {known: figure["value"] for known, figure in record["figures"].items()})


def hot_inputs(config: StudyConfig, cache: Path) -> Hot:
    """The study's inputs for the bare loop."""
    pixels = load_model(config.model).preprocess
    data = load_study_data(config.data, pixels.size, pixels.interpolation, pixels.resize_mode, cache, splits=["train", "val_ood"])
    texts = [[fill(template, name) for template in config.data.templates] for name in data.classes.names]
    assert data.val_ood is not None
    arrays = (data.train.images, data.train.labels, data.val_ood.images, data.val_ood.labels)
    return load_hot(config.model.name, *(torch.tensor(array) for array in arrays), texts)


def measure_pairs(config: StudyConfig, args: argparse.Namespace, cache: Path, make: Callable[..., Executor]) -> dict[str, Any]:
    """Blocks of service trials and of bare ones in turns, the same hyperparameters in both; nothing else runs meanwhile."""
    torch.set_num_threads(args.threads)
    hot = hot_inputs(config, cache)
    blocks, size = max(1, args.trials // BLOCK), min(BLOCK, args.trials)
    executor = make(config, args, cache)
    service, bare = list[float](), list[float]()
    with _study(config, cache) as (study, journal):
        for block in range(blocks + 1):  # the first block warms up and is dropped
            part = config.model_copy(update={"search": config.search.model_copy(update={"n_trials": (block + 1) * size})})
            coordinator = _Watched(part, study, executor, journal, lambda event: None, lambda: False)
            started = time.perf_counter()
            coordinator.run()
            service.append((time.perf_counter() - started) / size)
            torch.set_num_threads(args.threads)
            started = time.perf_counter()
            for hyperparameters in coordinator.ran:
                _bare(hot, config, hyperparameters)
            bare.append((time.perf_counter() - started) / size)
    _close(executor)
    ratios = [a / b for a, b in zip(service[1:], bare[1:], strict=True)]
    return {
        "value": statistics.median(service[1:]) / statistics.median(bare[1:]),
        "trials_per_block": size,
        "paired_ratio": spread(ratios),
        "service_seconds": spread(service[1:]),
        "bare_seconds": spread(bare[1:]),
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def measure_scaling(config: StudyConfig, args: argparse.Namespace, cache: Path) -> dict[str, Any]:
    """Blocks of trials on two one-thread workers, and blocks on two bare one-thread processes side by side, in turns."""
    blocks, size = max(1, args.trials // 10), min(10, args.trials)
    command = [sys.executable, "-m", "benches.trial_overhead", "--study", str(args.study), "--bare-worker", str(size // 2)]
    loops = [_start_bare(command, cache) for _ in range(2)]
    executor = _on_ray(2, 1)(config, args, cache)
    service, bare = [], []
    with _study(config, cache) as (study, journal):
        for block in range(blocks + 1):  # the first block warms up and is dropped
            part = config.model_copy(update={"search": config.search.model_copy(update={"n_trials": (block + 1) * size})})
            started = time.perf_counter()
            Coordinator(part, study, executor, journal, lambda event: None, lambda: False).run()
            service.append(time.perf_counter() - started)
            bare.append(_run_block(loops))
    _close(executor)
    for loop in loops:
        loop.stdin.close()  # type: ignore[union-attr]
        loop.wait()
    return {
        "value": statistics.median(bare[1:]) / statistics.median(service[1:]),
        "trials_per_block": size,
        "service_block_seconds": spread(service[1:]),
        "bare_block_seconds": spread(bare[1:]),
    }


def measure_naive(config: StudyConfig, args: argparse.Namespace, cache: Path) -> dict[str, Any]:
    """Trials as a competent user writes them around open_clip, and bare ones, in turns, the same hyperparameters in both."""
    from autoft.search_space import sample_hyperparameters

    sys.path.insert(0, str(SHARED / "peers"))
    from trial import run  # type: ignore[import-not-found]

    torch.set_num_threads(args.threads)
    hot = hot_inputs(config, cache)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    names = {ours: theirs for theirs, ours in TERMS.items()}
    folders = [str(SHARED / path) for path in ("checkpoints/mnv2-clip-64", "data/pacs/photo/train", "data/pacs/art_painting/val")]
    naive, bare = list[float](), list[float]()
    for _ in range(max(2, args.trials // BLOCK)):
        hp = sample_hyperparameters(study.ask(), config.search_space)
        theirs = {"lr": hp.lr, "wd": hp.weight_decay, "seed": hp.seed} | {names[term]: weight for term, weight in hp.loss_weights.items() if term in names}
        started = time.perf_counter()
        run(theirs, *folders, config.trial.steps, config.trial.batch_size, args.threads)
        naive.append(time.perf_counter() - started)
        started = time.perf_counter()
        _bare(hot, config, hp)
        bare.append(time.perf_counter() - started)
    return {"value": statistics.median(naive[1:]) / statistics.median(bare[1:]), "naive_seconds": spread(naive[1:]), "bare_seconds": spread(bare[1:])}


class _Watched(Coordinator):
    """Remembers the hyperparameters of the trials that ended."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ran: list[Any] = []

    def _end(self, running: Any, *args: Any, **kwargs: Any) -> None:
        self.ran.append(running.job.hyperparameters)
        super()._end(running, *args, **kwargs)


def _bare(hot: Hot, config: StudyConfig, hp: Any) -> float:
    return bare_trial(hot, hp.lr, hp.weight_decay, dict(hp.loss_weights), hp.seed, config.trial.steps, config.trial.batch_size)


def _bare_worker(config: StudyConfig, trials: int) -> None:
    """One bare one-thread loop in a process of its own: a line on stdin runs a block."""
    from autoft.search_space import sample_hyperparameters

    torch.set_num_threads(1)
    hot = hot_inputs(config, Path(os.environ["AUTOFT_BENCH_CACHE"]))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    print("ready", flush=True)
    for _ in sys.stdin:
        for _ in range(trials):
            _bare(hot, config, sample_hyperparameters(study.ask(), config.search_space))
        print("done", flush=True)


def _start_bare(command: list[str], cache: Path) -> "subprocess.Popen[str]":
    env = {**os.environ, "OMP_NUM_THREADS": "1", "AUTOFT_BENCH_CACHE": str(cache)}
    loop = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert loop.stdout is not None and loop.stdout.readline() == "ready\n"
    return loop


def _run_block(loops: list["subprocess.Popen[str]"]) -> float:
    started = time.perf_counter()
    for loop in loops:
        loop.stdin.write("go\n")  # type: ignore[union-attr]
        loop.stdin.flush()  # type: ignore[union-attr]
    for loop in loops:
        assert loop.stdout is not None and loop.stdout.readline() == "done\n"
    return time.perf_counter() - started


def _in_process(config: StudyConfig, args: argparse.Namespace, cache: Path) -> Executor:
    return InProcessExecutor(config, device="cpu", threads=args.threads, cache_dir=cache, should_stop=lambda: False)


def _on_ray(workers: int, threads: int) -> Callable[..., Executor]:
    def make(config: StudyConfig, args: argparse.Namespace, cache: Path) -> Executor:
        from workers.cluster import cluster, plan_workers
        from workers.ray_executor import RayExecutor

        connection = cluster(None)
        spec = plan_workers(connection.__enter__(), workers, None, threads, "cpu")
        executor = RayExecutor(config, spec, cache, lambda: False)
        executor.connection = connection  # type: ignore[attr-defined]
        while executor.slots < workers:
            executor.poll(0.2)
        return executor

    return make


def _close(executor: Executor) -> None:
    executor.close()
    if hasattr(executor, "connection"):
        executor.connection.__exit__(None, None, None)


class _study:
    """A fresh study on the embedded Postgres, with a journal."""

    number = 0

    def __init__(self, config: StudyConfig, cache: Path) -> None:
        _study.number += 1
        self._folder = cache / f"run{_study.number}"
        self._handle = open_study(embedded_url(), f"bench-{os.getpid()}-{_study.number}", directions=[config.direction], create=True)

    def __enter__(self) -> tuple[Any, Journal]:
        study = self._handle.study
        return study, Journal(self._folder / "journal.jsonl", study_id(study))

    def __exit__(self, *error: object) -> None:
        self._handle.close()


if __name__ == "__main__":
    main()
