"""What a person sees while a study runs: a live view in a terminal, lines elsewhere, JSON for machines."""

import json
import sys
import time
from typing import Any, Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from autoft.config import StudyConfig


class View(Protocol):
    """Takes the events of a run."""

    def __call__(self, event: dict[str, Any]) -> None:
        """Show one event."""
        ...

    def decoding(self, field: str, done: int, of: int) -> None:
        """Images of a set are being decoded into the cache."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...


def make_view(config: StudyConfig, as_json: bool) -> View:
    """The view that fits the output."""
    if as_json:
        return JsonView()
    return LiveView(config) if sys.stderr.isatty() else PlainView(config)


class JsonView:
    """One JSON object per event on stdout."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def __call__(self, event: dict[str, Any]) -> None:
        print(json.dumps({"time": round(time.time(), 3), **event}), flush=True)

    def decoding(self, field: str, done: int, of: int) -> None:
        if done == of:
            self({"event": "decoded", "field": field, "images": of})


class _Score:
    """Follows the best score of a study."""

    def __init__(self, config: StudyConfig) -> None:
        self.config = config
        self.best: float | None = None

    def take(self, event: dict[str, Any]) -> None:
        """Note a finished trial's score."""
        if event["event"] == "trial_ended" and event["state"] == "complete":
            better = max if self.config.direction == "maximize" else min
            self.best = event["score"] if self.best is None else better(self.best, event["score"])

    def text(self, score: float | None) -> str:
        """A score as people read it."""
        if score is None:
            return "-"
        return f"{score:.4f}" if self.config.metric == "cross_entropy" else f"{100 * score:.1f} %"


def describe(event: dict[str, Any], score: _Score) -> str | None:
    """An event as one line, or None if it is not worth one."""
    match event["event"]:
        case "preparing":
            return f"study {event['study']}: checking data and model; studies are kept in {event['storage']}"
        case "already_complete":
            return f"study {event['study']} is complete already; nothing to do"
        case "workers":
            return f"{event['count']} worker(s) on {event['device']}, {event['threads']} thread(s) each"
        case "trial_ended":
            return _trial_line(event, score)
        case "trial_retried":
            return f"trial {event['trial']} was lost ({event['message']}) and runs again"
        case "stage_started":
            return f"{_STAGES.get(event['stage'], event['stage'])} ..."
        case "epoch_ended":
            return f"  {event['stage']} epoch {event['epoch']}: val_id {score.text(event['val_id'])}, train loss {event['train_loss']:.4f}"
        case "evaluated":
            return None
        case "done":
            return f"study {event['study']} is complete"
    return None


def _trial_line(event: dict[str, Any], score: _Score) -> str:
    result = score.text(event["score"]) if event["state"] == "complete" else event.get("failure_kind") or event["state"]
    best = score.text(score.best)
    seconds = f", {event['seconds']:.1f} s" if "seconds" in event else ""
    return f"trial {event['trial']}: {result} ({event['finished']} of {score.config.search.n_trials} done, best {best}{seconds})"


_STAGES = {
    "final": "final fine-tune with the best trial's hyperparameters",
    "finetune": "baseline: plain fine-tuning",
    "wise_ft": "WiSE-FT: choosing alpha on validation data",
    "evaluate-zero_shot": "scoring test sets: zero_shot",
    "evaluate-final": "scoring test sets: final",
    "evaluate-finetune": "scoring test sets: finetune",
    "evaluate-wise_ft": "scoring test sets: wise_ft",
    "report": "writing the report",
}


class PlainView:
    """Lines on stderr."""

    def __init__(self, config: StudyConfig) -> None:
        self._score = _Score(config)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def __call__(self, event: dict[str, Any]) -> None:
        self._score.take(event)
        line = describe(event, self._score)
        if line is not None:
            print(line, file=sys.stderr, flush=True)

    def decoding(self, field: str, done: int, of: int) -> None:
        if done == of:
            print(f"decoded {of} images of {field}", file=sys.stderr, flush=True)


class LiveView:
    """Bars in a terminal: trials with best score, workers and time left; then the steps of each stage."""

    def __init__(self, config: StudyConfig) -> None:
        self._score = _Score(config)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
        )
        self._tasks: dict[str, TaskID] = {}
        self._running: set[int] = set()
        self._workers = 0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def decoding(self, field: str, done: int, of: int) -> None:
        self._update(f"decode {field}", done, of)

    def __call__(self, event: dict[str, Any]) -> None:
        self._score.take(event)
        match event["event"]:
            case "workers":
                self._workers = event["count"]
                self._say(event)
            case "trial_started":
                self._running.add(event["trial"])
                self._trials()
            case "trial_ended":
                self._running.discard(event["trial"])
                self._trials(event["finished"])
            case "stage_progress":
                self._update(event["stage"], event["done"], event["of"])
            case _:
                self._say(event)

    def _say(self, event: dict[str, Any]) -> None:
        line = describe(event, self._score)
        if line is not None:
            self._progress.console.print(line, markup=False, highlight=False)

    def _trials(self, finished: int | None = None) -> None:
        note = f"best {self._score.text(self._score.best)}, {len(self._running)} running on {self._workers} worker(s)"
        self._update("trials", finished, self._score.config.search.n_trials, note)

    def _update(self, name: str, done: int | None, of: int, note: str = "") -> None:
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=of, note=note)
        self._progress.update(self._tasks[name], completed=done, total=of, note=note)
