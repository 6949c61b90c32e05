"""Showing a study in optuna-dashboard while it runs: its note and figures, kept up to date by its owner."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna

from autoft.config import StudyConfig
from autoft.errors import AutoFTError, Interrupted, StorageError, StudyLocked
from autoft.files import read_json
from autoft.lifeline import Lifeline
from autoft.report.dashboard import dashboard_figures, dashboard_note
from storage.notes import update_dashboard

logger = logging.getLogger(__name__)

PUBLISH_SECONDS = 15.0  # at most so often while trials end; every reader of the dashboard fetches the note again
_STATES = {"paused": "paused", "resumed": "running", "stage_started": "running", "outage_ended": "running"}


def publish(study: optuna.Study, config: StudyConfig, summary: Mapping[str, Any] | None, state: str, classes: Sequence[str] = ()) -> bool:
    """Bring a study's note and figures in optuna-dashboard up to date; returns whether anything had to be written.

    Cheap and idempotent: to be called by the study's owner, in the thread that writes to the study, after every few trials and after every
    stage. A database that is away is not waited for, and nothing wrong with the note ends a run: the next call makes up for it.

    Args:
        summary: summary.json, or as much of it as there is (`evaluations`, `wise_ft`, `cost`); None: none yet.
        state: of the study: running, paused, stopping, complete, failed.
        classes: names of the classes, to be listed in the note.

    Raises:
        StudyConflict: the study has another owner by now.
    """
    try:
        trials = study.get_trials(deepcopy=False)
        note = dashboard_note(config, summary, trials, state, classes)
        return update_dashboard(study, note, dashboard_figures(config, summary, trials))
    except StorageError as error:
        logger.debug("the study's note is not up to date: %s", error)
    except AutoFTError:
        raise
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        logger.warning("the study's note in optuna-dashboard could not be made: %s: %s", type(error).__name__, error)
    return False


class Publisher:
    """Takes the events of a run, shows them, and keeps the study's note and figures up to date on the way."""

    def __init__(
        self, view: Callable[[dict[str, Any]], None], study: optuna.Study, config: StudyConfig, lifeline: Lifeline, classes: Sequence[str], run_dir: Path
    ) -> None:
        self._view, self._study, self._config, self._lifeline = view, study, config, lifeline
        self._classes, self._run_dir = classes, run_dir
        self._state, self._published = "running", 0.0

    def __call__(self, event: dict[str, Any]) -> None:
        """Show an event; publish if it changes the state, or if trials have ended for a while."""
        self._view(event)
        state = _STATES.get(event["event"])
        if state is not None:
            self._state = state
        due = time.monotonic() - self._published > PUBLISH_SECONDS
        if (state is not None or (due and event["event"] in ("trial_ended", "stage_ended"))) and self._lifeline.reachable():
            self._published = time.monotonic()
            publish(self._study, self._config, None, self._state, self._classes)

    @contextlib.contextmanager
    def until_the_end(self) -> Iterator[None]:
        """Publish how the run ends within the block, with what it scored if it is complete."""
        try:
            yield
        except BaseException as error:
            self._end("paused" if isinstance(error, Interrupted | KeyboardInterrupt) else "failed", None)
            raise
        self._end("complete", read_json(self._run_dir / "summary.json"))

    def _end(self, state: str, summary: Mapping[str, Any] | None) -> None:
        if self._lifeline.reachable():
            with contextlib.suppress(StudyLocked):
                publish(self._study, self._config, summary, state, self._classes)
