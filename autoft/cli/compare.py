"""`autoft compare`."""

import argparse
import contextlib
import json
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from autoft.cli.launch import check_flags, connect_workers, is_known
from autoft.cli.progress import LINE_SECONDS, decoding_line
from autoft.cli.runtime import StopSignal, cache_dir, resumable, storage_url
from autoft.config import StudyConfig, load_config
from autoft.errors import StudyLocked
from autoft.pacing import paced


def compare(args: argparse.Namespace) -> int:
    """Compare methods, or go on with a comparison."""
    from autoft.compare import Plan, check_methods, comparison_config, default_methods

    config = comparison_config(load_config(args.study, args.set), args.evaluations)
    names = None if args.methods is None else [name.strip() for name in args.methods.split(",")]
    methods = default_methods(config) if names is None else check_methods(names, config)
    plan = Plan(methods=methods, seeds=args.seeds, evaluations=args.evaluations, keep=args.keep_checkpoints)
    stop = StopSignal()
    with resumable(stop):
        return _compare(config, plan, args, stop)


def _compare(config: StudyConfig, plan: Any, args: argparse.Namespace, stop: StopSignal) -> int:
    from autoft.cli.recording import Recorder, open_artifacts
    from autoft.compare import Comparer
    from autoft.comparison import write_comparison
    from autoft.comparison.markdown import markdown
    from autoft.comparison.records import json_rows, save_comparison
    from autoft.comparison.table import format_comparison
    from autoft.data.leakage import describe_leakage
    from autoft.files import write_text
    from autoft.pipeline import prepare
    from autoft.workspace import configure_torch
    from storage import open_study, storage_errors

    run_dir = Path(args.runs) / f"{config.study}-compare"
    view = View(config)
    check_flags(args)
    store = open_artifacts(args)
    with contextlib.ExitStack() as stack:
        configure_torch(len(os.sched_getaffinity(0)))
        url = storage_url()
        view({"event": "preparing", "study": config.study, "storage": url.safe})
        is_known(url, config.study)  # an unreachable database is reported before images are decoded
        inputs = prepare(config, cache_dir(), view.decoding, view.comparing)
        view({"event": "leakage", "warnings": describe_leakage(inputs.leakage)})
        stack.enter_context(_alone(run_dir))
        record = Recorder(url, inputs, run_dir, store, view, kind="compare", method="all", seed=config.search.seed)
        executor = connect_workers(inputs.config, args, stop, stack, view)()
        stack.callback(executor.close)

        @contextlib.contextmanager
        def open_tuning(name: str) -> Iterator[Any]:
            with storage_errors(url), open_study(url, name, directions=[config.direction], create=True) as handle:
                stop.lifeline = handle.lifeline
                yield handle

        with stop.deferred(), record.running():
            comparison = Comparer(inputs, plan, executor, run_dir, open_tuning, view, stop).run(_hardware(args.device))
        save_comparison(comparison, run_dir / "comparison.json")
        write_text(run_dir / "comparison.md", markdown(comparison))
        page = write_comparison(comparison, run_dir / "comparison.html")
        record.complete_comparison(comparison)
    if args.json:
        print(json.dumps(json_rows(comparison), indent=1))
    else:
        print(format_comparison(comparison, _width()))
        print(f"\nPage: {page}   Records: {run_dir / 'comparison.json'}")
    return record.exit_code


class View:
    """Lines on stderr, one for each thing that is done."""

    def __init__(self, config: StudyConfig) -> None:
        self._as_percent = config.metric != "cross_entropy"
        self._method, self._trials, self._trials_done = "", 0, 0
        self._done, self._of = 0, 0
        self.decoding = paced(self._decoding, LINE_SECONDS)  # images of a set are being decoded into the cache

    def __call__(self, event: dict[str, Any]) -> None:
        """Show one event."""
        line = self._line(event)
        if line:
            print(line, file=sys.stderr, flush=True)

    def _decoding(self, field: str, done: int, of: int) -> None:
        print(decoding_line(field, done, of), file=sys.stderr, flush=True)

    def comparing(self, field: str, done: int, of: int) -> None:
        """Images of a set are being hashed, to be compared with other sets."""

    def _line(self, event: dict[str, Any]) -> str | None:
        match event["event"]:
            case "preparing":
                return f"comparison on study {event['study']}: checking data and model; studies are kept in {event['storage']}"
            case "leakage":
                return "\n".join(f"WARNING: {line}" for line in event["warnings"]) or None
            case "workers":
                return f"{event['count']} worker{'s' if event['count'] != 1 else ''} on {event['device']}"
            case "tuning":
                self._method, self._trials = event["method"], event["trials"]
            case "tuned":
                return f"tuned {event['method']} ({self._trials} evaluation{'s' if self._trials != 1 else ''}): best {self._text(event['best'])} on VAL_OOD"
            case "trial_retried":
                return f"{self._method}: trial {event['trial']} was lost ({event['message']}) and runs again"
            case "method_failed":
                return f"{event['method']} FAILED: {event['error']}"
            case "cells":
                self._done, self._of = event["done"], event["of"]
                return f"{self._done} of {self._of} trainings are done"
            case "copied":
                return f"copied {event['sent']} file{'s' if event['sent'] != 1 else ''} to {event['url']}"
            case "cell_ended":
                self._done += 1
                return f"[{self._done}/{self._of}] {event['cell']}" + (f" FAILED: {event['error']}" if event["error"] else "")
        return None

    def _text(self, score: float) -> str:
        return f"{100 * score:.1f} %" if self._as_percent else f"{score:.4f}"


@contextlib.contextmanager
def _alone(run_dir: Path) -> Iterator[None]:
    """Hold the comparison's folder. Raises StudyLocked if another process does."""
    run_dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run_dir / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise StudyLocked(f"another process compares in {run_dir}; wait for it, or choose another folder with --runs") from None
    try:
        yield
    finally:
        lock.release()


def _hardware(device: str) -> str:
    """What the coordinator's machine is, in one line."""
    import torch

    if device != "cpu" and torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"{platform.machine()} CPU, {len(os.sched_getaffinity(0))} cores"


def _width() -> int:
    return os.get_terminal_size().columns if sys.stdout.isatty() else 200
