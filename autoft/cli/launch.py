"""`autoft launch` and `autoft demo`."""

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from autoft.cli.runtime import StopSignal, cache_dir, ray_address, storage_url
from autoft.config import StudyConfig, load_config
from autoft.errors import ClusterError, Interrupted


def demo(args: argparse.Namespace) -> int:
    """Write the built-in study and launch it."""
    import platformdirs

    from autoft.demo import write_demo

    args.study = write_demo(platformdirs.user_data_path("autoft") / "demo")
    return launch(args)


def launch(args: argparse.Namespace) -> int:
    """Run a study, or go on with one."""
    config = load_config(args.study, args.set)
    stop = StopSignal()
    try:
        with stop.installed():
            return _launch(config, args, stop)
    except Interrupted as error:
        again = " ".join(["autoft", *sys.argv[1:]])
        raise Interrupted(f"{error}\nNothing is lost. Go on with: {again}", stop.number or 2) from None


def _launch(config: StudyConfig, args: argparse.Namespace, stop: StopSignal) -> int:
    from autoft.cli.progress import make_view
    from autoft.pipeline import is_complete, prepare, run_pipeline
    from autoft.report.table import format_table
    from autoft.workspace import configure_torch
    from storage import open_study

    run_dir = Path(args.runs) / config.study
    with make_view(config, as_json=args.json) as view, contextlib.ExitStack() as stack:
        configure_torch(len(os.sched_getaffinity(0)))
        url = storage_url()
        view({"event": "preparing", "study": config.study, "storage": url.safe})
        inputs = prepare(config, cache_dir(), view.decoding)
        handle = stack.enter_context(open_study(url, config.study, directions=[config.direction], create=True))
        if is_complete(inputs, handle.study, run_dir):
            view({"event": "already_complete", "study": config.study})
            summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
        else:
            make_executor = _executor_factory(config, args, stop, stack, view)
            summary = run_pipeline(inputs, handle.study, make_executor, run_dir, view, stop)
        view({"event": "done", "study": config.study, "report": str(run_dir / "report.html"), "summary": str(run_dir / "summary.json")})
    if not args.json:
        print(format_table(summary))
        print(f"\nReport: {run_dir / 'report.html'}   Checkpoints: {run_dir / 'checkpoints'}")
    return 0


def _executor_factory(
    config: StudyConfig, args: argparse.Namespace, stop: StopSignal, stack: contextlib.ExitStack, view: Callable[[dict[str, Any]], None]
) -> Callable[[], Any]:
    """How the run gets its workers. The checks that need the cluster are made when the factory is called."""

    def in_process() -> Any:
        from autoft.executor import InProcessExecutor

        if args.workers not in (None, 1):
            raise ClusterError(f"--executor in-process runs one trial at a time; --workers {args.workers} needs --executor ray")
        threads = args.threads_per_worker or len(os.sched_getaffinity(0))
        view({"event": "workers", "count": 1, "device": args.device, "threads": threads})
        return InProcessExecutor(config, device=args.device, threads=threads, cache_dir=cache_dir(), should_stop=stop)

    def on_ray() -> Any:
        from workers.cluster import cluster, plan_workers
        from workers.ray_executor import RayExecutor, elastic_count

        stack.enter_context(cluster(ray_address()))
        stop.reinstall()
        spec = plan_workers(args.workers, args.gpus_per_worker, args.threads_per_worker, args.device)
        view({"event": "workers", "count": spec.count, "device": spec.device, "threads": spec.cpus})
        return RayExecutor(config, spec, cache_dir(), stop, grow=elastic_count(spec) if args.workers is None else None)

    return in_process if args.executor == "in-process" else on_ray
