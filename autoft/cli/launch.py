"""`autoft launch` and `autoft demo`."""

import argparse
import contextlib
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from autoft.cli.runtime import StopSignal, cache_dir, home_dir, ray_address, resumable, storage_url
from autoft.config import StudyConfig, load_config
from autoft.errors import ClusterError, ConfigError, StudyNotFound


def demo(args: argparse.Namespace) -> int:
    """Write the built-in study and launch it."""
    from autoft.demo import write_demo

    args.study = write_demo(home_dir() / "demo")
    return launch(args)


def launch(args: argparse.Namespace) -> int:
    """Run a study, or go on with one."""
    config = load_config(args.study, args.set)
    if getattr(args, "detach", False):
        from autoft.cli.jobs import detach

        return detach(config, args)
    stop = StopSignal()
    with resumable(stop):
        return _launch(config, args, stop)


def _launch(config: StudyConfig, args: argparse.Namespace, stop: StopSignal) -> int:
    """Check everything, the quick checks first, and only then make the study and its run folder."""
    from autoft.cli.progress import is_live, make_view
    from autoft.cli.publish import Publisher
    from autoft.cli.recording import Recorder, open_artifacts
    from autoft.fingerprint import check_fingerprint
    from autoft.ledger import count_finished
    from autoft.pipeline import STATE_ATTRIBUTE, is_complete, prepare, run_pipeline
    from autoft.report.table import format_table, selection_line
    from autoft.workspace import configure_torch
    from storage import open_study, storage_errors

    run_dir = Path(args.runs) / config.study
    stop.announces = args.json or not is_live()
    check_flags(args)
    if getattr(args, "final_sharded", False):
        check_sharded(config)
    store = open_artifacts(args)
    with make_view(config, args.json, stop) as view, contextlib.ExitStack() as stack:
        configure_torch(len(os.sched_getaffinity(0)))
        url = storage_url()
        view({"event": "preparing", "study": config.study, "storage": url.safe})
        known = is_known(url, config.study)  # an unreachable database is reported before images are decoded
        inputs = prepare(config, cache_dir(), view.decoding, view.comparing)
        record = Recorder(url, inputs, run_dir, store, view, kind="launch", method="autoft", seed=config.search.seed)
        handle = stack.enter_context(open_study(url, config.study, directions=[config.direction] * len(config.search.objectives), create=False)) if known else None
        if handle is not None and is_complete(inputs, handle.study, run_dir):
            handle.study.set_user_attr(STATE_ATTRIBUTE, "complete")  # which an outage may have kept from being noted
            view({"event": "already_complete", "study": config.study})
            summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
        else:
            if handle is not None:
                check_fingerprint(handle.study, inputs.sections)
                view({"event": "resuming", "study": config.study, "finished": count_finished(handle.study), "best": _best(handle.study)})
            warm_start = _earlier_studies(url, inputs.config)
            make_executor = connect_workers(config, args, stop, stack, view)
            if handle is None:
                handle = stack.enter_context(open_study(url, config.study, directions=[config.direction] * len(config.search.objectives), create=True))
            stop.lifeline = handle.lifeline
            published = Publisher(view, handle.study, config, handle.lifeline, inputs.data.classes.names, run_dir)
            with stop.deferred(), storage_errors(url), record.running(), published.until_the_end():
                summary = run_pipeline(inputs, handle.study, make_executor, run_dir, published, stop, warm_start, handle.lifeline)
        record.complete(summary)
        view({"event": "done", "study": config.study, "report": str(run_dir / "report.html"), "summary": str(run_dir / "summary.json")})
    if not args.json:
        print(format_table(summary))
        chosen = selection_line(summary)
        if chosen is not None:
            print(f"\n{chosen}")
        print(f"\nReport: {run_dir / 'report.html'}   Checkpoints: {run_dir / 'checkpoints'}")
    return record.exit_code


def check_flags(args: argparse.Namespace) -> None:
    """What can be said about the flags without a study, a database or a cluster."""
    import torch

    from autoft.models.load import resolve_device

    if args.executor == "in-process":
        if args.workers not in (None, 1):
            raise ClusterError(f"--executor in-process runs one trial at a time; --workers {args.workers} needs --executor ray")
        if args.gpus_per_worker is not None:
            raise ClusterError("--executor in-process has no workers to share GPUs; --gpus-per-worker needs --executor ray")
        if getattr(args, "final_workers", None) not in (None, 1):
            raise ClusterError(f"--executor in-process has one process; --final-workers {args.final_workers} needs --executor ray")
        if getattr(args, "final_sharded", False):
            raise ClusterError("--executor in-process has one process; --final-sharded needs --executor ray, and --final-workers of at least 2")
        resolve_device(args.device)
    elif getattr(args, "final_sharded", False) and args.final_workers == 1:
        raise ClusterError("--final-workers 1 has nobody to share weights with; --final-sharded needs --final-workers of at least 2")
    elif ray_address() is None:
        from workers.cluster import require_gpu

        require_gpu(torch.cuda.device_count(), args.gpus_per_worker, args.device, "this machine")
    folder = next(parent for parent in (args.runs, *args.runs.absolute().parents) if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"--runs {args.runs}: {folder} is not a folder that can be written")


def check_sharded(config: StudyConfig) -> None:
    """Raise ConfigError if the study may come to a full fine-tune that sharded weights do not allow, as far as its file tells."""
    from autoft.methods import Setting, method_hyperparameters
    from autoft.shardable import check_shardable, check_study_shardable

    check_study_shardable(config)
    setting = Setting(config.search_space, entries=1, seed=config.search.seed)
    for field, names in (("search.enqueue", config.search.enqueue), ("evaluate.baselines", config.evaluate.baselines)):
        for name in names:
            check_shardable(method_hyperparameters(name, setting), f"{field} = {name}: ")


def is_known(url: Any, study: str) -> bool:
    """Whether the database has a study of that name. Raises StorageError if it cannot be reached."""
    from storage import load_study_readonly

    try:
        load_study_readonly(url, study)
    except StudyNotFound:
        return False
    return True


def _best(study: Any) -> float | None:
    trials = study.best_trials if len(study.directions) > 1 else study.get_trials(deepcopy=False)
    scores = [trial.values[0] for trial in trials if trial.state.name == "COMPLETE" and trial.values]
    if not scores:
        return None
    return float(max(scores) if study.directions[0].name == "MAXIMIZE" else min(scores))


def _earlier_studies(url: Any, config: StudyConfig) -> dict[str, Any]:
    """The best configurations of `search.warm_start_from`, by name. Raises StudyNotFound, ConfigError."""
    from autoft.config import SearchSpaceConfig
    from autoft.enqueue import best_of_study
    from autoft.pipeline import CONFIG_ATTRIBUTE
    from storage import load_study_readonly

    found: dict[str, Any] = {}
    for name in config.search.warm_start_from:
        study = load_study_readonly(url, name)
        if CONFIG_ATTRIBUTE not in study.user_attrs:
            raise StudyNotFound(f"search.warm_start_from: study {name!r} was not made by this program")
        theirs = SearchSpaceConfig.model_validate(study.user_attrs[CONFIG_ATTRIBUTE]["search_space"])
        found |= best_of_study(name, study, theirs, config)
    return found


def connect_workers(
    config: StudyConfig, args: argparse.Namespace, stop: StopSignal, stack: contextlib.ExitStack, view: Callable[[dict[str, Any]], None]
) -> Callable[[], Any]:
    """Check that there can be workers, connecting to the cluster for it; returns what makes the executor."""
    together = None if args.trials_per_worker == "auto" else args.trials_per_worker
    if args.executor == "in-process":
        from autoft.executor import InProcessExecutor
        from autoft.models.load import resolve_device

        threads = args.threads_per_worker or len(os.sched_getaffinity(0))
        view({"event": "workers", "count": 1, "device": resolve_device(args.device).type, "threads": threads})
        return lambda: InProcessExecutor(
            config, device=args.device, threads=threads, cache_dir=cache_dir(), should_stop=stop.stops_trials, stages_stop=stop.stops_stages,
            trial_timeout_seconds=args.trial_timeout, trials_together=together, observe=view,
        )

    from workers.capacity import cluster_nodes, plan_on_nodes
    from workers.cluster import cluster
    from workers.distributed import plan_final
    from workers.ray_executor import RayExecutor, elastic_count

    address = ray_address()
    view({"event": "connecting", "address": address})
    stack.enter_context(contextlib.redirect_stdout(io.StringIO()))  # Ray prints its own account of a lost worker there
    with stop.taken_back():
        stack.enter_context(cluster(address))
    spec = plan_on_nodes(cluster_nodes(), args.workers, args.gpus_per_worker, args.threads_per_worker, args.device)
    final = None
    if hasattr(args, "final_workers"):
        final = plan_final(
            cluster_nodes(), args.final_workers, args.gpus_per_worker, args.threads_per_worker, args.device, args.final_sharded
        )
    if final is not None and args.final_sharded and config.final.batch_size < final.count:
        raise ConfigError(
            f"final.batch_size = {config.final.batch_size} is less than the {final.count} final workers, each of which needs an example with "
            "--final-sharded; take fewer --final-workers or a larger final.batch_size"
        )
    view({"event": "workers", "count": spec.count, "device": spec.device, "threads": spec.cpus})
    grow = elastic_count(spec) if args.workers is None else None
    return lambda: RayExecutor(
        config, spec, cache_dir(), stop.stops_stages, grow=grow, trial_timeout_seconds=args.trial_timeout, observe=view, final=final,
        trials_together=together, final_sharded=final is not None and args.final_sharded,
    )
