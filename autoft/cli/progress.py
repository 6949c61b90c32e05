"""What a person sees while a study runs: a live view in a terminal, lines elsewhere, JSON for machines."""

import datetime
import json
import math
import os
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from autoft.config import StudyConfig
from autoft.pacing import paced

_EVENT_SECONDS = 1.0  # between two events of a set that is being decoded
LINE_SECONDS = 10.0  # between two lines where there is no terminal


class View(Protocol):
    """Takes the events of a run."""

    def __call__(self, event: dict[str, Any]) -> None:
        """Show one event."""
        ...

    def decoding(self, field: str, done: int, of: int) -> None:
        """Images of a set are being decoded into the cache."""
        ...

    def comparing(self, field: str, done: int, of: int) -> None:
        """Images of a set are being hashed, to be compared with other sets."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...


def make_view(config: StudyConfig, as_json: bool, is_stopping: Callable[[], bool] = lambda: False) -> View:
    """The view that fits the output; `is_stopping` is asked by the live one."""
    if as_json:
        return JsonView()
    return LiveView(config, is_stopping) if is_live() else PlainView(config)


def is_live() -> bool:
    """Whether stderr is a terminal that can move its cursor."""
    return sys.stderr.isatty() and os.environ.get("TERM", "") not in ("", "dumb")


def stdout_console() -> Console:
    """For tables on stdout; in a file or a pipe no cell is cut to the width of a terminal that is not there."""
    return Console(width=None if sys.stdout.isatty() else 200)


class JsonView:
    """One JSON object per event on stdout."""

    def __init__(self) -> None:
        self._out = sys.stdout  # as it is now: libraries that print are kept out of it later
        self._paced = paced(self._decoding, _EVENT_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def __call__(self, event: dict[str, Any]) -> None:
        print(json.dumps({"time": round(time.time(), 3), **event}), file=self._out, flush=True)

    def decoding(self, field: str, done: int, of: int) -> None:
        self._paced(field, done, of)

    def _decoding(self, field: str, done: int, of: int) -> None:
        self({"event": "decoded", "field": field, "images": of} if done == of else {"event": "decoding", "field": field, "done": done, "of": of})

    def comparing(self, field: str, done: int, of: int) -> None:
        return None


class _Score:
    """Follows the best score of a study."""

    def __init__(self, config: StudyConfig) -> None:
        self.config = config
        self.best: float | None = None

    def take(self, event: dict[str, Any]) -> None:
        """Note a finished trial's score, or the best one of an earlier run."""
        score = event.get("best") if event["event"] == "resuming" else event.get("score")
        if score is not None and event["event"] in ("resuming", "trial_ended"):
            better = max if self.config.direction == "maximize" else min
            self.best = score if self.best is None else better(self.best, score)

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
        case "resuming":
            return f"going on with {event['finished']} of {score.config.search.n_trials} trials done, best {score.text(score.best)}"
        case "connecting":
            return f"connecting to Ray at {event['address']} ..." if event["address"] else "starting Ray on this machine ..."
        case "workers":
            return f"{plural(event['count'], 'worker')} on {event['device']}, {plural(event['threads'], 'thread')} each"
        case "trials_together":
            return "trials run one by one: no program of several is faster here" if event["count"] == 1 else f"{event['count']} trials run as one program"
        case "final_workers" if event["count"] > 1:
            return f"{event['count']} workers share the final fine-tune" + (" and its weights" if event.get("sharded") else "")
        case "leakage":
            return "\n".join(f"WARNING: {line}" for line in event["warnings"]) or None
        case "trial_ended":
            return _trial_line(event, score)
        case "trial_retried":
            return f"trial {event['trial']} was lost ({event['message']}) and runs again"
        case "paused":
            return f"paused: nothing new is started until `autoft resume {event['study']}`"
        case "resumed":
            return "resumed"
        case "copied":
            return f"copied {plural(event['sent'], 'file')} to {event['url']}; {event['kept']} were there already"
        case "stage_started":
            return f"{_STAGES.get(event['stage'], event['stage'])} ..."
        case "decoding":
            return decoding_line(f"{event['field']} on {event['node']}", event["done"], event["of"])
        case "epoch_ended":
            return f"  {event['stage']} epoch {event['epoch']}: val_id {score.text(event['val_id'])}, train loss {event['train_loss']:.4f}"
    return None


def plural(count: int, noun: str) -> str:
    """`1 worker`, `2 workers`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _trial_line(event: dict[str, Any], score: _Score) -> str:
    result = score.text(event["score"]) if event["state"] == "complete" else event.get("failure_kind") or event["state"]
    best = score.text(score.best)
    seconds = f", {event['seconds']:.1f} s" if "seconds" in event else ""
    return f"trial {event['trial']}: {result} ({event['finished']} of {score.config.search.n_trials} done, best {best}{seconds})"


_STAGES = {
    "confirm": "the best configurations again, with fresh seeds",
    "final": "final fine-tune",
    "finetune": "baseline: plain fine-tuning",
    "flyp": "baseline: FLYP",
    "l2sp": "baseline: L2-SP",
    "wise_ft": "WiSE-FT: choosing alpha on validation data",
    "evaluate-zero_shot": "scoring test sets: zero_shot",
    "evaluate-final": "scoring test sets: final",
    "evaluate-finetune": "scoring test sets: finetune",
    "evaluate-wise_ft": "scoring test sets: wise_ft",
    "report": "writing the report",
}


def decoding_line(field: str, done: int, of: int) -> str:
    """Where the decoding of a set stands."""
    return f"decoded {of} images of {field}" if done == of else f"decoding {field}: {done} of {of} images"


class PlainView:
    """Lines on stderr."""

    def __init__(self, config: StudyConfig) -> None:
        self._score = _Score(config)
        self._paced = paced(self._decoding, LINE_SECONDS)

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
        self._paced(field, done, of)

    def _decoding(self, field: str, done: int, of: int) -> None:
        print(decoding_line(field, done, of), file=sys.stderr, flush=True)

    def comparing(self, field: str, done: int, of: int) -> None:
        return None


class LiveView:
    """In a terminal: one bar for what is going on, above it a line for what is done."""

    def __init__(self, config: StudyConfig, is_stopping: Callable[[], bool]) -> None:
        self._score = _Score(config)
        columns = (TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), TimeElapsedColumn(), _Note(is_stopping))
        self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
        self._bar: TaskID | None = None
        self._name = ""
        self._began = (0, 0.0)  # where the bar stood when it was first shown, and when that was
        self._running: set[int] = set()
        self._finished = 0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def decoding(self, field: str, done: int, of: int) -> None:
        self._show(f"decoding {field}", done, of)
        if done == of:
            self._clear()
            self._print(f"decoded {of} images of {field}")

    def comparing(self, field: str, done: int, of: int) -> None:
        self._show(f"comparing {field}", done, of)
        if done == of:
            self._clear()

    def __call__(self, event: dict[str, Any]) -> None:
        self._score.take(event)
        self._finished = event.get("finished", self._finished)
        match event["event"]:
            case "trial_started":
                self._running.add(event["trial"])
                if self._began[0] == self._finished:  # until a trial has ended, time spent on loading is left out
                    self._began = (self._finished, time.monotonic())
                self._trials()
            case "trial_ended":
                self._running.discard(event["trial"])
                self._trials()
            case "stage_progress":
                self._show(event["stage"], event["done"], event["of"])
            case "decoding":
                self._show(f"decoding {event['field']} on {event['node']}", event["done"], event["of"])
            case _:
                self._milestone(event)

    def _milestone(self, event: dict[str, Any]) -> None:
        if event["event"] == "stage_started" and self._name == "trials":
            self._print(f"search: {self._finished} trials, best {self._score.text(self._score.best)}")
        if event["event"] in ("stage_started", "stage_ended"):
            self._clear()
        line = describe(event, self._score)
        if line is not None:
            self._print(line)
        if event["event"] == "workers":
            self._show("trials", self._finished, self._score.config.search.n_trials, "workers are loading model and data")

    def _trials(self) -> None:
        note = f"best {self._score.text(self._score.best)}, {len(self._running)} running"
        self._show("trials", self._finished, self._score.config.search.n_trials, note)

    def _show(self, name: str, done: int, of: int, note: str = "") -> None:
        if self._bar is None or name != self._name:
            self._clear()
            self._name, self._began = name, (done, time.monotonic())
            self._bar = self._progress.add_task(name, total=of, completed=done, note=note)
        before, since = self._began
        if before < done < of:
            seconds = (time.monotonic() - since) / (done - before) * (of - done)
            note = ", ".join(filter(None, (note, f"about {datetime.timedelta(seconds=math.ceil(seconds))} left")))
        self._progress.update(self._bar, completed=done, note=note)

    def _clear(self) -> None:
        if self._bar is not None:
            self._progress.remove_task(self._bar)
        self._bar, self._name = None, ""

    def _print(self, line: str) -> None:
        self._progress.console.print(line, markup=False, highlight=False)


class _Note(ProgressColumn):
    """What the view says beside the bar, or that the run is stopping: a signal handler cannot print into a live view."""

    def __init__(self, is_stopping: Callable[[], bool]) -> None:
        super().__init__()
        self._is_stopping = is_stopping

    def render(self, task: Task) -> Text:
        """Called for every refresh."""
        return Text("stopping; Ctrl-C again to stop at once" if self._is_stopping() else str(task.fields["note"]))
