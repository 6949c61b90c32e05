"""One case: so many workers, trials of so many seconds, so long a history."""

import gc
import math
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy

import autoft.search
from autoft.config import StudyConfig
from autoft.errors import Interrupted
from autoft.executor import Job
from autoft.journal import Journal
from autoft.ledger import study_id
from autoft.search import Coordinator
from autoft.trial import report_steps
from benches.scale.executor import Load, SimulatedExecutor
from benches.scale.history import insert_trials, make_trials, score_of
from storage import StorageURL, open_study
from storage.tables import engine_of

STUDY = "scale"
_TABLES = ("trials", "trial_params", "trial_values", "trial_intermediate_values", "trial_user_attributes", "trial_system_attributes")


@dataclass(frozen=True)
class Case:
    """What is simulated.

    Attributes:
        history: finished trials at the beginning.
        trials: how many are asked for and handed out, all workers being busy at the beginning.
    """

    workers: int
    trial_seconds: float
    history: int
    trials: int

    @property
    def name(self) -> str:
        return f"{self.workers} workers, {self.trial_seconds:g} s, {self.history} finished"


@dataclass
class Meter:
    """Real seconds of each call, while it is on."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {"ask": [], "report": [], "tell": []})
    is_on: bool = False

    @contextmanager
    def installed(self, study: optuna.Study) -> Iterator[None]:
        """Time what the coordinator calls: ask with the suggestions that follow it, a report with the pruner's decision, tell with its attributes."""
        replaced: list[tuple[Any, str, Any]] = []

        def replace(owner: Any, name: str, kind: str, joins: bool = False) -> None:
            original = getattr(owner, name)
            replaced.append((owner, name, original))
            setattr(owner, name, self._timed(original, kind, joins))

        replace(study, "ask", "ask")
        replace(autoft.search, "sample_hyperparameters", "ask", joins=True)
        replace(optuna.trial.Trial, "report", "report")
        replace(optuna.trial.Trial, "should_prune", "report", joins=True)
        replace(autoft.search, "tell", "tell")
        try:
            yield
        finally:
            for owner, name, original in replaced:
                setattr(owner, name, original)

    def _timed(self, call: Callable[..., Any], kind: str, joins: bool) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                seconds = time.perf_counter() - began
                if self.is_on and not joins:
                    self.seconds[kind].append(seconds)
                elif self.is_on and self.seconds[kind]:
                    self.seconds[kind][-1] += seconds

        return timed


class _Starting(SimulatedExecutor):
    """Turns the meter on when the running trials have been adopted."""

    def begin(self, call: Callable[[], None]) -> None:
        self._on_begin = call

    def poll(self, timeout_seconds: float) -> Any:
        if not self._began and timeout_seconds > 0:
            self._on_begin()
        return super().poll(timeout_seconds)


def fill(url: StorageURL, config: StudyConfig, history: int) -> None:
    """Make a study with so many finished trials in a database that has none."""
    with open_study(url, STUDY, directions=[config.direction], create=True) as handle:
        number = handle.study._study_id
    insert_trials(url, number, make_trials(config, STUDY, history))


def run_case(case: Case, url: StorageURL, config: StudyConfig, folder: Path) -> dict[str, Any]:
    """Run a case in a database of its own that `fill` has filled; its figures."""
    search = config.search.model_copy(update={"n_trials": case.history + case.workers + 2 * case.trials + 1})
    config = config.model_copy(update={"search": search})
    steps = tuple(report_steps(config))
    load = Load(case.trial_seconds, steps, _score, samples=config.trial.batch_size * steps[-1])
    executor = _Starting(case.workers, load, case.trials)
    before = _rss_mib()
    with engine_of(url) as engine, engine.connect() as connection:
        number = int(connection.scalar(sqlalchemy.text("SELECT study_id FROM studies")))
    insert_trials(url, number, make_trials(config, STUDY, case.workers, first=case.history, running=True))
    began = time.perf_counter()
    with open_study(url, STUDY, directions=[config.direction], create=False) as handle:
        statements = [0]
        sqlalchemy.event.listen(handle._database.engine, "before_cursor_execute", lambda *_: _count(statements))
        journal = Journal(folder / "journal.jsonl", study_id(handle.study))
        meter, started = Meter(), {}

        def begin() -> None:
            meter.is_on = True
            statements[0] = 0
            started.update(cpu=time.process_time(), seconds=time.perf_counter() - began, rows=_rows(url), bytes=_bytes(url))

        executor.begin(begin)
        with meter.installed(handle.study), suppress(Interrupted):
            Coordinator(config, handle.study, executor, journal, lambda event: None, lambda: executor.is_done).run()
        cpu = time.process_time() - started["cpu"]
        connections = _scalar(url, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()")
        rows, size = _rows(url), _bytes(url)
        gc.collect()
        memory = _rss_mib()
    per_trial = executor.coordinator_seconds / case.trials
    return {
        "workers": case.workers,
        "trial_seconds": case.trial_seconds,
        "history": case.history,
        "trials": case.trials,
        "idle_share": executor.idle_share,
        "simulated_seconds": executor.seconds,
        "coordinator_seconds_per_trial": per_trial,
        "coordinator_cpu_seconds_per_trial": cpu / case.trials,
        "coordinator_share": per_trial * case.workers / case.trial_seconds,
        **{f"{kind}_seconds": _spread(seconds) for kind, seconds in meter.seconds.items()},
        "statements_per_trial": statements[0] / case.trials,
        "start_seconds": started["seconds"],
        "database_rows": rows,
        "database_rows_per_trial": (rows - started["rows"]) / case.trials,
        "database_bytes": size,
        "database_connections": int(connections),
        "memory_mib": memory,
        "memory_of_history_mib": memory - before,
    }


def ask_report_tell(figure: dict[str, Any]) -> float:
    """Median seconds of one ask, one report and one tell."""
    return float(sum(figure[f"{kind}_seconds"]["median"] for kind in ("ask", "report", "tell")))


def _score(job: Job) -> float:
    hp = job.hyperparameters
    weights = {f"loss_weight/{term}": weight for term, weight in hp.loss_weights.items()}
    return score_of({"lr": hp.lr, "weight_decay": hp.weight_decay, "seed": hp.seed, **weights})


def _count(statements: list[int]) -> None:
    statements[0] += 1


def _scalar(url: StorageURL, query: str) -> Any:
    with engine_of(url) as engine, engine.connect() as connection:
        return connection.scalar(sqlalchemy.text(query))


def _rows(url: StorageURL) -> int:
    """Of the tables that grow with the trials."""
    return int(_scalar(url, "SELECT " + " + ".join(f"(SELECT count(*) FROM {table})" for table in _TABLES)))


def _bytes(url: StorageURL) -> int:
    return int(_scalar(url, "SELECT pg_database_size(current_database())"))


def _rss_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def _spread(values: list[float]) -> dict[str, float]:
    if not values:
        return {"median": math.nan, "p95": math.nan, "max": math.nan, "n": 0}
    return {"median": statistics.median(values), "p95": sorted(values)[math.ceil(0.95 * len(values)) - 1], "max": max(values), "n": len(values)}
