"""The bench of scale: the arithmetic of its clock, and that the history it inserts is what a study would have left."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autoft.errors import Interrupted
from autoft.executor import Finished, Job, Reported, Stopped
from autoft.journal import Journal
from autoft.ledger import study_id
from autoft.search import Coordinator
from autoft.search_space import Hyperparameters
from autoft.trial import report_steps
from benches.scale.__main__ import CASES, IDLE, LONGEST, named, study_config
from benches.scale.executor import Load, SimulatedExecutor
from benches.scale.history import insert_trials, make_trials
from benches.scale.measure import _score, ask_report_tell
from storage import open_study, parse_storage_url
from tests.postgres_fixtures import PostgresServer


class Clock:
    """Real time that passes when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def work(self, seconds: float) -> None:
        self.now += seconds


def job(number: int) -> Job:
    return Job(number, Hyperparameters(lr=1e-3, weight_decay=0.1, loss_weights={"cross_entropy": 1.0}, seed=number))


def executor(workers: int, limit: int, clock: Clock, reports: tuple[int, ...] = (4,)) -> SimulatedExecutor:
    return SimulatedExecutor(workers, Load(10.0, reports, lambda job: 0.5), limit, wall=clock, wait=clock.work)


def test_two_workers_by_hand() -> None:
    """Trials of 10 s. Jobs 0 and 1 run at the beginning, 1 half done. The coordinator takes 3 s for each job it hands out."""
    clock = Clock()
    simulated = executor(2, 3, clock)
    simulated.submit(job(0))
    simulated.submit(job(1))
    assert [e.number for e in simulated.poll(0.2) if isinstance(e, Reported)] == [1] and simulated.seconds == 5.0  # 1 ends at 5
    clock.work(3.0)
    simulated.submit(job(2))  # at 8, to end at 18; a worker was idle for 3 s
    (reported, ended) = simulated.poll(0.2)  # 0 ends at 10
    assert isinstance(reported, Reported) and isinstance(ended, Finished) and ended.number == 0 and simulated.seconds == 10.0
    clock.work(3.0)
    simulated.submit(job(3))  # at 13, to end at 23; 3 s idle again
    assert {e.number for e in simulated.poll(0.2)} == {2} and simulated.seconds == 18.0
    clock.work(6.0)  # until 24: 3 ended meanwhile, at 23
    simulated.submit(job(4))  # the last awaited one; its worker idle for 6 s, the other one for 1 s
    assert simulated.is_done
    assert {e.number for e in simulated.poll(0.2)} == {3}
    clock.work(5.0)
    simulated.submit(job(5))
    assert simulated.poll(0.2)
    assert simulated.seconds == 24.0
    assert simulated.coordinator_seconds == 17.0
    assert simulated.ended == 5
    assert simulated.idle_share == pytest.approx((3 + 3 + 6 + 1) / (2 * 24))


def test_while_a_coordinator_works_in_the_background_the_clock_does_not_jump() -> None:
    clock = Clock()
    simulated = executor(2, 2, clock)
    simulated.submit(job(0))
    simulated.poll(0.2)
    for _ in range(4):
        assert simulated.poll(0.2) == []  # a worker is free and a job is awaited
    assert 0 < simulated.seconds < 0.01
    simulated.submit(job(1))
    assert simulated.poll(0.2) and simulated.seconds == 10.0


def test_a_pruned_trial_ends_after_a_step() -> None:
    clock = Clock()
    simulated = executor(1, 9, clock, reports=(2, 4))
    simulated.poll(0.2)
    simulated.submit(job(0))
    assert [type(event) for event in simulated.poll(0.2)] == [Reported]
    clock.work(1.0)  # clock 6 after the report at 5
    simulated.prune(0)
    (stopped,) = simulated.poll(0.2)
    assert isinstance(stopped, Stopped) and simulated.seconds == pytest.approx(6 + 10 / 4, abs=0.01)
    simulated.submit(job(1))
    simulated.prune(7)  # nobody runs it
    later = [event for _ in range(4) for event in simulated.poll(0.2)]
    assert [(event.number, type(event)) for event in later] == [(1, Reported), (1, Reported), (1, Finished)], "nothing more of job 0"


def test_the_named_figures() -> None:
    assert IDLE in CASES and (IDLE.workers, IDLE.trial_seconds, IDLE.history) == (512, 60.0, 3000)
    assert LONGEST in CASES and LONGEST.history == 10_000
    times = {f"{kind}_seconds": {"median": seconds} for kind, seconds in (("ask", 0.5), ("report", 0.25), ("tell", 0.125))}
    assert ask_report_tell(times) == 0.875
    assert named({IDLE.name: {"idle_share": 0.01}, LONGEST.name: times}) == {"idle_512_workers": 0.01, "ask_tell_seconds_10000": 0.875}


_ROWS = {
    "trials": "number, state, datetime_start, datetime_complete",
    "trial_params": "number, param_name, param_value, distribution_json",
    "trial_values": "number, objective, value, value_type",
    "trial_intermediate_values": "number, step, intermediate_value, intermediate_value_type",
    "trial_user_attributes": "number, key, value_json",
    "trial_system_attributes": "number, key, value_json",
}


def test_inserted_trials_are_those_the_coordinator_writes(database_url: str, database: str, postgres_server: PostgresServer, tmp_path: Path) -> None:
    config, url = study_config(), parse_storage_url(database_url, "test")
    config = config.model_copy(update={"search": config.search.model_copy(update={"n_trials": 100})})
    steps = tuple(report_steps(config))
    simulated = SimulatedExecutor(4, Load(60.0, steps, _score), 26)
    with open_study(url, "real", directions=["maximize"], create=True) as handle:
        real, journal = handle.study._study_id, Journal(tmp_path / "journal.jsonl", study_id(handle.study))
        with pytest.raises(Interrupted):
            Coordinator(config, handle.study, simulated, journal, lambda event: None, lambda: simulated.is_done).run()
        trials = handle.study.get_trials()
    with open_study(url, "copy", directions=["maximize"], create=True) as handle:
        copy = handle.study._study_id
    insert_trials(url, copy, trials)

    def rows(study: int, table: str, columns: str) -> list[Any]:
        joined = "" if table == "trials" else "JOIN trials USING (trial_id)"
        return postgres_server.execute(f"SELECT {columns} FROM {table} {joined} WHERE study_id = {study} ORDER BY {columns}", database)

    assert len(trials) >= 30 and {t.state.name for t in trials} == {"COMPLETE", "PRUNED", "RUNNING"}
    for table, columns in _ROWS.items():
        found = rows(copy, table, columns)
        assert len(found) > 0 and found == rows(real, table, columns), table

    def looks(trials: Any) -> Iterator[Any]:
        """What a trial has on it, values aside."""
        for trial in trials:
            last = max(trial.intermediate_values, default=0)
            notes = {name for name in trial.system_attrs if not name.startswith("completed_rung")}
            yield trial.state.name, last, tuple(trial.distributions), *map(tuple, map(sorted, (notes, trial.user_attrs, trial.user_attrs.get("run", {}))))

    synthetic = [*make_trials(config, "real", 200), *make_trials(config, "real", 2, first=200, running=True)]
    assert [t.number for t in synthetic] == list(range(202))
    # The first ones were drawn before TPE had ten to learn from.
    learnt = set(looks(t for t in trials[16:] if t.state.is_finished()))
    assert learnt <= set(looks(synthetic)), learnt - set(looks(synthetic))
    rungs = {name for t in trials for name in t.system_attrs} - {name for t in synthetic for name in t.system_attrs}
    assert rungs == set()


@pytest.mark.slow
def test_the_dry_run_prints_its_table_and_writes_nothing(tmp_path: Path) -> None:
    folder = Path(__file__).parents[1]
    before = {path: path.stat().st_mtime for path in (folder / "benches").rglob("*.json")}
    done = subprocess.run([sys.executable, "-m", "benches.scale", "--dry-run"], cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "| 2 workers, 1 s, 30 finished |" in done.stdout and "| 4 workers, 60 s, 30 finished |" in done.stdout
    assert {path: path.stat().st_mtime for path in (folder / "benches").rglob("*.json")} == before
