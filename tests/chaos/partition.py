"""`partition`: links are cut and mended between coordinator, workers and database; during a cut a second coordinator asks for the study.

Coordinator, rival, database and two workers are each in a network namespace. Where none can be made, only the link to the database is cut, by
a proxy in between, and trials run in the coordinators' own processes.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from optuna.trial import FrozenTrial

from tests.chaos.database import Database, postgres
from tests.chaos.diary import Diary
from tests.chaos.network import Proxy, network, why_no_namespaces
from tests.chaos.processes import Program, eventually
from tests.chaos.ray_cluster import RayCluster, ray_cluster
from tests.chaos.scene import IN_PROCESS, ON_CPU, QUICK_END, Scene, scene
from tests.chaos.storm import undisturbed
from tests.chaos.trials import check_same, check_trials, trials_of

TRIALS = 40
OWNED = 5  # exit code
TAKEOVER_SECONDS = 200.0  # what a rival is given to become the owner
DEPOSED_SECONDS = 150.0  # what the old owner is given to notice
SHORT_SECONDS = 4.0
NODE_LOST_SECONDS = 20.0  # without its head for so long, a node is given up by Ray
_STATEMENT = re.compile(r"^(\S+ \S+) UTC \[\d+\] (autoft:\S*) LOG:  (?:statement|execute [^:]*): (.*)")


@dataclass
class World:
    """Where things run, and how links are cut."""

    database: Database
    launch: Callable[[], Program]  # the first coordinator
    rival: Callable[[], Program]
    cut: Callable[[], None]  # between the first coordinator and the database
    mend: Callable[[], None]
    disturb_workers: Callable[[Program], None] = lambda program: None
    words: list[str] = field(default_factory=list)


def run(diary: Diary, *, trials: int, workers: int, small: bool, full: bool) -> None:
    """A short cut that nobody should notice, cuts to the workers, then a long one in which a rival takes the study over."""
    reason = why_no_namespaces()
    settings = {"search__n_trials": 16 if small else TRIALS, "search__seed": diary.seed, "trial__steps": 80, **QUICK_END}
    with scene(diary, **settings) as where, (_proxied if reason else _namespaced)(diary, where, small) as world:
        diary.figures["how"] = f"proxy before the database only, because {reason}" if reason else "network namespaces"
        first = world.launch()
        first.wait_for("trial_ended", 180)
        _short_cut(diary, world, first)
        world.disturb_workers(first)
        _takeover(diary, where, world, first)


def _short_cut(diary: Diary, world: World, first: Program) -> None:
    world.cut()
    diary.note("coordinator cut off from the database", seconds=SHORT_SECONDS)
    time.sleep(SHORT_SECONDS)
    world.mend()
    diary.note("mended")
    seen = len(first.events)
    went_on = eventually(lambda: first.code() is not None or any(event["event"] == "trial_ended" for event in first.events[seen:]), 120)
    diary.check("after a short cut to the database the same coordinator goes on", went_on and first.code() is None, first.tail()[-400:])


def _takeover(diary: Diary, where: Scene, world: World, first: Program) -> None:
    if first.code() is not None:  # it may have ended in the short cut
        first = world.launch()
        first.wait_for("trial_ended", 180)
    world.cut()
    diary.note("coordinator cut off from the database", finished=world.database.finished(where.name))
    began = time.monotonic()
    rivals = [world.rival()]
    diary.note("rival launched")

    def is_owner() -> bool:
        if rivals[-1].code() == OWNED:
            diary.note("rival refused", said=rivals[-1].stderr.strip()[-200:])
            time.sleep(5)
            rivals.append(world.rival())
        assert rivals[-1].code() in (None, OWNED), rivals[-1].tail()
        return owner(world.database)["pid"] == rivals[-1].pid

    took = eventually(is_owner, TAKEOVER_SECONDS, every=0.5)
    rival = rivals[-1]
    since = datetime.now(UTC)
    diary.figures |= {"takeover_seconds": round(time.monotonic() - began, 1), "rivals_refused": len(rivals) - 1}
    diary.note("rival owns the study" if took else "rival does not own the study", seconds=diary.figures["takeover_seconds"])
    if not diary.check("a second coordinator becomes the owner while the first is cut off", took, rival.tail()[-500:]):
        world.mend()
        return
    time.sleep(random.Random(diary.seed).uniform(0, 5))
    world.mend()
    diary.note("mended")
    began = time.monotonic()
    ended = eventually(lambda: first.code() is not None, DEPOSED_SECONDS)
    diary.figures["deposed_noticed_seconds"] = round(time.monotonic() - began, 1) if ended else None
    diary.note("first coordinator", code=first.code(), said=first.stderr.strip()[-300:])
    diary.check("the deposed one ends, saying who owns the study", first.code() == OWNED and f"process {rival.pid} on host" in first.stderr and "Traceback" not in first.stderr, first.stderr[-500:])
    diary.check("the new owner ends the study", rival.wait(500) == 0, rival.tail()[-500:])
    _check_writes(diary, where, world.database, first, rival, since)
    trials = trials_of(world.database, where.name)
    check_trials(diary, trials, json_field(where, "n_trials"), None)
    check_same(diary, trials, undisturbed(where, world.database))


def _check_writes(diary: Diary, where: Scene, database: Database, first: Program, rival: Program, since: datetime) -> None:
    """By the server's own log, in which every statement that changes something stands with the name of its session."""
    written = list(writes(database))
    by_first = [(at, statement) for at, session, statement in written if session.endswith(f":{first.pid}")]
    by_rival = [statement for _, session, statement in written if session.endswith(f":{rival.pid}")]
    late = [f"{at:%H:%M:%S} {statement}"[:150] for at, statement in by_first if at > since]
    diary.figures |= {"writes_of_the_first": len(by_first), "writes_of_the_rival": len(by_rival), "writes_of_the_first_after_the_takeover": len(late)}
    diary.check("by the server's log, both have written", bool(by_first and by_rival))
    diary.check("by the server's log, the deposed one never writes again", not late, late[:5])
    strange = [trial.number for trial in trials_of(database, where.name) if _ended_after(trial, since) and trial.user_attrs["run"]["worker"] != "in-process"]
    diary.check("no trial that ended after the takeover is the deposed one's", not strange, strange)


def _ended_after(trial: FrozenTrial, since: datetime) -> bool:
    return trial.datetime_complete is not None and trial.datetime_complete.astimezone(UTC) > since


def writes(database: Database) -> Iterator[tuple[datetime, str, str]]:
    """Time, session's name and text of every statement that changed something."""
    for line in (database.data / "log").read_text(errors="replace").splitlines():
        if match := _STATEMENT.match(line):
            yield datetime.strptime(match[1], "%Y-%m-%d %H:%M:%S.%f").replace(tzinfo=UTC), match[2], match[3]


def owner(database: Database) -> dict[str, Any]:
    """The owner attribute of the one study there is."""
    ((value,),) = database.execute("SELECT value_json FROM study_system_attributes WHERE key = 'autoft:owner'")
    found: dict[str, Any] = json.loads(value)
    return found


def json_field(where: Scene, name: str) -> int:
    """A number of the search section of the study file."""
    import yaml

    return int(yaml.safe_load(where.study.read_text())["search"][name])


@contextlib.contextmanager
def _proxied(diary: Diary, where: Scene, small: bool) -> Iterator[World]:
    with postgres(settings=LOGGED) as database:
        proxy = Proxy(database.port)
        through = database.url().replace(f":{database.port}/", f":{proxy.port}/")
        try:
            yield World(
                database,
                launch=lambda: where.launch("--runs", "runs-first", *IN_PROCESS, AUTOFT_STORAGE_URL=through),
                rival=lambda: where.launch("--runs", "runs-rival", *IN_PROCESS, AUTOFT_STORAGE_URL=database.url()),
                cut=proxy.cut,
                mend=proxy.restore,
            )
        finally:
            proxy.close()


LOGGED = "log_statement = mod\nlog_line_prefix = '%m [%p] %a '\nlog_timezone = UTC\n"


@contextlib.contextmanager
def _namespaced(diary: Diary, where: Scene, small: bool) -> Iterator[World]:
    how = random.Random(diary.seed).choice(("down", "silent"))
    with network() as net, ray_cluster(where.env) as cluster:
        net.add_bridge("data")
        net.add_bridge("ray")
        net.add_host("db", {"data": "10.77.1.1"})
        net.add_host("first", {"data": "10.77.1.2", "ray": "10.77.2.2"})
        net.add_host("rival", {"data": "10.77.1.3"})
        for worker in ("one", "two"):
            net.add_host(worker, {"ray": f"10.77.2.{3 + (worker == 'two')}"})
        with postgres("10.77.1.1", "10.77.1.0/24", LOGGED, lambda start: net.run_inside("db", start)) as database:
            cluster.start_head(net.inside("first"), "10.77.2.2")
            nodes = {worker: cluster.add_node(1, net.inside(worker), f"10.77.2.{3 + (worker == 'two')}") for worker in ("one", "two")}
            url = {"AUTOFT_STORAGE_URL": database.url("10.77.1.1")}
            ray = {name: value for name, value in cluster.env.items() if name.startswith("RAY_")} | {"RAY_ADDRESS": cluster.address}

            def disturb_workers(program: Program) -> None:
                if not small:
                    _cut_workers(diary, net, cluster, nodes, program, how)

            yield World(
                database,
                launch=lambda: where.launch("--runs", "runs-first", "--workers", 2, *ON_CPU, inside=net.inside("first"), **url, **ray),
                rival=lambda: where.launch("--runs", "runs-rival", *IN_PROCESS, inside=net.inside("rival"), **url),
                cut=lambda: net.cut("first", "data", how),
                mend=lambda: net.restore("first", "data"),
                disturb_workers=disturb_workers,
            )


def _cut_workers(diary: Diary, net: Any, cluster: RayCluster, nodes: dict[str, Any], program: Program, how: str) -> None:
    """Both workers for a moment, then one for so long that Ray gives its node up; a supervisor would start it again."""
    for worker in nodes:
        net.cut(worker, "ray", how)
    diary.note("both workers cut off", seconds=SHORT_SECONDS, how=how)
    time.sleep(SHORT_SECONDS)
    for worker in nodes:
        net.restore(worker, "ray")
    diary.note("mended")
    seen = len(program.events)
    went_on = eventually(lambda: any(event["event"] == "trial_ended" for event in program.events[seen:]), 120)
    diary.check("after a short cut to both workers trials go on", went_on and program.code() is None, program.tail()[-400:])
    net.cut("one", "ray", how)
    diary.note("one worker cut off", seconds=NODE_LOST_SECONDS, how=how)
    time.sleep(NODE_LOST_SECONDS)
    seen = len(program.events)
    went_on = eventually(lambda: any(event["event"] == "trial_ended" for event in program.events[seen:]), 120)
    diary.check("while one worker is cut off trials go on with the other", went_on and program.code() is None, program.tail()[-400:])
    net.restore("one", "ray")
    diary.note("mended")
    cluster.remove_node(nodes["one"])
    nodes["one"] = cluster.add_node(1, net.inside("one"), "10.77.2.3")
    diary.note("node started again")
    seen = len(program.events)
    came_back = eventually(lambda: program.code() is not None or any(event["event"] == "trial_ended" and event["worker"].startswith("10.77.2.3:") for event in program.events[seen:]), 120)
    diary.check("a worker on the node that was cut off runs trials again", came_back and program.code() is None, program.tail()[-400:])
