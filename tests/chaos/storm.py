"""`storm`: many short trials while workers, nodes, the database and the coordinator are killed, each placed by the study's progress."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from tests.chaos.database import Database, postgres, wait_until_up
from tests.chaos.diary import Diary
from tests.chaos.keeper import Keeper
from tests.chaos.processes import Program, eventually, is_alive, title
from tests.chaos.ray_cluster import RayCluster, ray_cluster
from tests.chaos.scene import IN_PROCESS, ON_CPU, QUICK_END, Scene, scene
from tests.chaos.trials import check_reproduced, check_same, check_trials, trials_of

LONG_OUTAGE_SECONDS = 30.0
QUIET_SECONDS = 600  # without a finished trial, and the storm is given up


@dataclass(frozen=True, kw_only=True)
class Weather:
    """How often everything is broken, and how many trials there are meanwhile."""

    trials: int = 100
    steps: int = 60  # of a trial: about a second on a busy core
    workers: int = 3
    worker_kills: int = 12
    node_changes: int = 2
    outages: int = 6
    coordinator_kills: int = 6
    long_outage_seconds: float = LONG_OUTAGE_SECONDS
    stormy: float = 0.6  # share of the trials within which everything happens; the rest is left alone

    @classmethod
    def small(cls, workers: int) -> Weather:
        """One of each, early, and trials so long that some are left on a fast machine when a new node is up, ten seconds later."""
        return cls(
            trials=16, steps=200, workers=workers, worker_kills=1, node_changes=1, outages=1, coordinator_kills=1, long_outage_seconds=5.0, stormy=0.2
        )


@dataclass
class _Storm:
    """What disturbances act on."""

    scene: Scene
    database: Database
    cluster: RayCluster
    keeper: Keeper
    random: random.Random
    diary: Diary
    seen: int = 0  # finished trials
    moved: float = field(default_factory=time.monotonic)

    def progress(self) -> int:
        """Finished trials, as far as the database can be asked."""
        if self.keeper.is_down:
            found = max((event["finished"] for event in self.keeper.events if event["event"] == "trial_ended"), default=0)
        else:
            found = self.database.finished(self.scene.name)
        if found > self.seen:
            self.seen, self.moved = found, time.monotonic()
        assert time.monotonic() - self.moved < QUIET_SECONDS, f"no trial has ended for {QUIET_SECONDS} s\n{self.keeper.programs[-1].tail()}"
        return self.seen

    def pump(self, seconds: float) -> None:
        """Let time pass, with a coordinator running."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.keeper.look()
            time.sleep(0.1)

    def kill_worker(self) -> None:
        """SIGKILL an actor process, nearly always one in the middle of a trial."""
        busy = self.random.random() < 0.85
        deadline = time.monotonic() + 90
        while not (found := self.cluster.workers(busy)):
            self.pump(0.1)
            assert time.monotonic() < deadline, "there is no worker to kill"
        self._kill_one_of(found)

    def kill_worker_now(self) -> None:
        """SIGKILL an actor process if there is one; while the database is away all of them may be idle."""
        if found := self.cluster.workers():
            self._kill_one_of(found)

    def _kill_one_of(self, workers: list[psutil.Process]) -> None:
        victim = self.random.choice(sorted(workers, key=lambda process: process.pid))
        was = title(victim)
        victim.kill()
        assert eventually(lambda: not is_alive(victim))
        self.diary.note("worker killed", pid=victim.pid, was=was, finished=self.progress())

    def change_nodes(self) -> None:
        """A node is lost and another one joins, in either order."""
        lost = self.random.choice(self.cluster.nodes)
        first = self.random.random() < 0.5
        if first:
            self._add_node(lost.cpus)
        self.cluster.remove_node(lost)
        self.diary.note("node removed", cpus=lost.cpus, finished=self.progress())
        if not first:
            self.pump(self.random.uniform(0, 3))
            self._add_node(lost.cpus)

    def _add_node(self, cpus: int) -> None:
        self.cluster.add_node(cpus)
        self.diary.note("node added", cpus=cpus, finished=self.progress())

    def outage(self, seconds: float, meanwhile: Callable[[], None] | None) -> None:
        """The database is killed, and is back after some seconds; something else may be killed in between."""
        finished = self.progress()
        how = self.random.choice(("SIGKILL", "immediate"))
        self.keeper.database_down()
        if how == "SIGKILL":
            self.database.kill()
        else:
            self.database.stop("immediate")
        self.diary.note("database killed", how=how, seconds=round(seconds, 1), finished=finished)
        self.pump(seconds / 2)
        if meanwhile is not None:
            meanwhile()
        self.pump(seconds / 2)
        self.database.start()
        wait_until_up(self.database)
        self.keeper.database_up()
        self.diary.note("database started", finished=self.progress())

    def kill_coordinator(self) -> None:
        """SIGKILL the coordinator, at any moment after it has begun to hand out trials, now and then while it still starts."""
        started = self.random.random() < 0.85
        deadline = time.monotonic() + 120
        while not (program := self.keeper.current) or (started and not any(event["event"] == "trial_started" for event in program.events)):
            self.pump(0.1)
            assert time.monotonic() < deadline, "there is no coordinator to kill"
        self.pump(self.random.uniform(0, 1))
        self.kill_coordinator_now()

    def kill_coordinator_now(self) -> None:
        """SIGKILL the coordinator if there is one."""
        if (program := self.keeper.kill()) is not None:
            self.diary.note("coordinator killed", pid=program.pid, finished=self.progress())


def storm(diary: Diary, weather: Weather, **changes: Any) -> None:
    """Run one study through one storm and check what came of it. `changes` are `section__field=value` of the study."""
    settings = {"search__n_trials": weather.trials, "search__seed": diary.seed, "trial__steps": weather.steps, **QUICK_END, **changes}
    with scene(diary, **settings) as where, postgres() as database, ray_cluster(where.env) as cluster:
        keeper = Keeper(partial(_launch, where, database, cluster, weather), database, diary)
        cluster.start_head()
        cluster.add_node(weather.workers - 1)
        cluster.add_node(1)
        _disturb(_Storm(where, database, cluster, keeper, random.Random(diary.seed), diary), weather)
        _check(diary, weather, where, database, keeper)


def _launch(where: Scene, database: Database, cluster: RayCluster, weather: Weather) -> Program:
    env = {name: value for name, value in cluster.env.items() if name.startswith("RAY_")}
    return where.launch("--workers", weather.workers, *ON_CPU, AUTOFT_STORAGE_URL=database.url(), RAY_ADDRESS=cluster.address, **env)


def _disturb(storm: _Storm, weather: Weather) -> None:
    """Every disturbance at its place, then the rest of the study."""
    for threshold, act in _plan(storm, weather):
        while storm.progress() < threshold and not storm.keeper.is_done:
            storm.pump(0.1)
        if storm.keeper.is_done:
            storm.diary.note("too late for a disturbance")
            return
        act()
    while not storm.keeper.is_done:
        storm.progress()
        storm.pump(0.2)


def _plan(storm: _Storm, weather: Weather) -> list[tuple[int, Callable[[], None]]]:
    """What happens after how many finished trials, in order. The last part of the study is left alone."""
    chance = storm.random
    lengths = [weather.long_outage_seconds, *(chance.uniform(0.5, 6) for _ in range(weather.outages - 1))]
    meanwhile = [None, storm.kill_worker_now, storm.kill_coordinator_now, None, None, None]
    outages = [partial(storm.outage, seconds, meanwhile[i % len(meanwhile)]) for i, seconds in enumerate(lengths)]
    acts: list[Callable[[], None]] = [
        *[storm.kill_worker] * weather.worker_kills,
        *[storm.change_nodes] * weather.node_changes,
        *outages,
        *[storm.kill_coordinator] * weather.coordinator_kills,
    ]
    chance.shuffle(acts)
    last = max(1, int(weather.trials * weather.stormy))
    thresholds = sorted(chance.randint(1, last) for _ in acts)
    return list(zip(thresholds, acts, strict=True))


def _check(diary: Diary, weather: Weather, where: Scene, database: Database, keeper: Keeper) -> None:
    trials = trials_of(database, where.name)
    check_trials(diary, trials, weather.trials, where.run_dir() / "journal.jsonl")
    wanted = {"worker killed": weather.worker_kills, "node removed": weather.node_changes, "node added": weather.node_changes, "database killed": weather.outages, "coordinator killed": weather.coordinator_kills}
    happened = {what: sum(entry["what"] == what and entry["finished"] < weather.trials for entry in diary.done) for what in wanted}
    retried = Counter(event["trial"] for event in keeper.events if event["event"] == "trial_retried")
    away, away_at_start = (keeper.ended_for_want_of_the_database(while_starting=starting) for starting in (False, True))
    diary.figures |= {
        "happened": happened,
        "longest_outage_seconds": round(max(end - start for start, end in keeper.outages), 1),
        "trials_retried": len(retried),
        "trials_adopted": sum(event["event"] == "trial_started" and event["adopted"] for event in keeper.events),
        "coordinators": len(keeper.programs),
        "ended_for_want_of_the_database": away,
        "ended_for_want_of_the_database_while_starting": away_at_start,
    }
    diary.check("everything that was to happen happened before the last trial had ended", all(happened[what] >= least for what, least in wanted.items()), happened)
    diary.check("no coordinator that had begun ended because of an outage", away == 0, keeper.given_up)
    diary.check("no coordinator ended by itself for another reason", len(keeper.given_up) == away + away_at_start, keeper.given_up)
    diary.check("no traceback", not any("Traceback" in program.stderr for program in keeper.programs))
    diary.check("nothing was pruned during an outage", not (pruned := _pruned_in(keeper)), pruned)
    diary.check("the study has its report", (where.run_dir() / "report.html").is_file())
    if where.study.read_text().count("sampler: random") and "pruner" not in where.study.read_text():
        check_same(diary, trials, undisturbed(where, database))
    else:
        check_reproduced(diary, trials, where.run_dir() / "study.yaml", where.folder / "cache")


def _pruned_in(keeper: Keeper) -> list[int]:
    """Trials that were told to stop during an outage; its first 1.5 s are left out, in which a stop decided before it may be heard."""
    ended = [event for event in keeper.events if event["event"] == "trial_ended" and event["state"] == "pruned" and "failure_kind" not in event]
    return [event["trial"] for event in ended if any(start + 1.5 < event["time"] < end for start, end in keeper.outages)]


def undisturbed(where: Scene, database: Database, runs: Path | str = "undisturbed") -> list[Any]:
    """The trials of the same study in one process, with a fresh database and a run folder of its own, undisturbed."""
    database.remade()
    program = where.launch("--runs", runs, *IN_PROCESS, AUTOFT_STORAGE_URL=database.socket_url())
    code = program.wait(600)
    assert code == 0, program.tail()
    return trials_of(database, where.name)


def run(diary: Diary, *, trials: int, workers: int, small: bool, full: bool) -> None:
    """With the random sampler and no pruner: every trial must equal that of a run nothing happened to."""
    storm(diary, Weather.small(workers) if small else Weather(trials=trials, workers=workers))


def run_pruned(diary: Diary, *, trials: int, workers: int, small: bool, full: bool) -> None:
    """With TPE and Hyperband, whose suggestions depend on the order of arrival; a shorter storm unless it is to be full."""
    shorter = Weather(trials=min(trials, 30), workers=workers, worker_kills=4, node_changes=1, outages=2, coordinator_kills=2, long_outage_seconds=10.0)
    weather = Weather.small(workers) if small else Weather(trials=trials, workers=workers) if full else shorter
    storm(diary, weather, search__sampler="tpe", search__pruner="hyperband", trial__reports=3)
