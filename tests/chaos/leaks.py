"""`secrets`: after a disturbed run with a database password and a Ray token, neither is found anywhere but in the files that hold them."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import random
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from urllib.parse import quote, quote_plus

import psutil

from tests.chaos.database import Database, postgres, wait_until_up
from tests.chaos.diary import Diary
from tests.chaos.processes import Program, descendants, eventually, is_alive, title
from tests.chaos.ray_cluster import RayCluster, ray_cluster
from tests.chaos.scene import ON_CPU, QUICK_END, Scene, scene

RUN_SECONDS = 400.0
OUTAGE_SECONDS = 3.0


def run(diary: Diary, *, trials: int, workers: int, small: bool, full: bool) -> None:
    """One run on a cluster that asks for a token, with a worker and the database killed on the way, so that errors are logged too."""
    with scene(diary, search__n_trials=8, search__seed=diary.seed, trial__steps=150, **QUICK_END) as where, postgres() as database, ray_cluster(where.env) as cluster:
        secrets = {"database password": database.password, "Ray token": cluster.token}
        with Watch(secrets) as watch:
            cluster.start_head()
            cluster.add_node(2)
            program = _run_disturbed(diary, where, database, cluster, watch)
        diary.figures |= {"processes_watched": len(watch.seen), "readings": watch.readings}
        diary.check("the run ended well", program.code() == 0, program.tail()[-500:])
        names = " ".join(watch.names)
        unseen = [name for name in ("raylet", "gcs_server", "ray::TrialWorke", "ray::StageWorke", "DashboardAgen") if name not in names]
        diary.check("every kind of process was looked at", not unseen, unseen)
        diary.check("not in any command line or environment under /proc", not watch.leaks, sorted(watch.leaks))
        said = {"stdout": program.stdout, "stderr": program.stderr}
        diary.check("not in what the run said", not (found := leaks(said, secrets)), found)
        _check_files(diary, secrets, {"scratch folder, with run folder and caches": where.folder, "Ray's session folder": cluster.folder}, [cluster.folder / "token", where.folder / "secret"])
        tables = database.dump()
        diary.figures["tables"] = len(tables)
        diary.check("not in any table of the database", len(tables) > 5 and not (found := leaks(tables, secrets)), found)
        diary.check("not in the server's log", not (found := leaks({"log": (database.data / "log").read_text(errors="replace")}, secrets)), found)


def _run_disturbed(diary: Diary, where: Scene, database: Database, cluster: RayCluster, watch: Watch) -> Program:
    """Launch until the study is done; on the way the database is down for some seconds, and a worker is killed."""
    chance = random.Random(diary.seed)
    program = _launch(where, database, cluster, watch, in_a_file=False)
    program.wait_for("trial_ended", RUN_SECONDS)
    if eventually(lambda: bool(cluster.workers(busy=True)), 30):
        victim = chance.choice(cluster.workers(busy=True) or cluster.workers())
        victim.kill()
        eventually(lambda: not is_alive(victim))
        diary.note("worker killed", pid=victim.pid)
    database.kill()
    diary.note("database killed", seconds=OUTAGE_SECONDS)
    time.sleep(OUTAGE_SECONDS)
    database.start()
    wait_until_up(database)
    code = program.wait(RUN_SECONDS)
    diary.note("coordinator ended", code=code)
    if code != 0:  # it may not live through an outage; the same command goes on, now with the URL in a file
        first = program
        program = _launch(where, database, cluster, watch, in_a_file=True)
        diary.note("coordinator ended", code=program.wait(RUN_SECONDS))
        program.stderr += first.stderr
        program.stdout += first.stdout
    return program


def _launch(where: Scene, database: Database, cluster: RayCluster, watch: Watch, *, in_a_file: bool) -> Program:
    env = {name: value for name, value in cluster.env.items() if name.startswith("RAY_")}
    secret = where.folder / "secret"
    secret.write_text(database.url() + "\n")
    secret.chmod(0o600)
    given = {"AUTOFT_STORAGE_URL_FILE": str(secret)} if in_a_file else {"AUTOFT_STORAGE_URL": database.url()}
    program = where.launch("--workers", 2, *ON_CPU, RAY_ADDRESS=cluster.address, **env, **given)
    watch.not_before(program)
    return program


def _check_files(diary: Diary, secrets: Mapping[str, str], folders: Mapping[str, Path], excepted: Iterable[Path]) -> None:
    for name, folder in folders.items():
        files = {path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()} - set(excepted)
        diary.figures[f"files in {name}"] = len(files)
        found = leaks({str(path.relative_to(folder)): path.read_bytes().decode("latin-1") for path in files}, secrets)
        diary.check(f"not in the {name}", len(files) > 3 and not found, found)


def forms(secret: str) -> dict[str, str]:
    """How a secret may look where it does not belong, by what was done to it."""
    found = {"raw": secret, "percent-encoded": quote(secret, safe=""), "percent-encoded, slashes kept": quote(secret), "form-encoded": quote_plus(secret)}
    found |= {"percent-encoded in lower case": quote(secret, safe="").replace("%", "\0").lower().replace("\0", "%")} if secret == secret.lower() else {}
    found |= {"JSON": json.dumps(secret)[1:-1], "Python": repr(secret)[1:-1]}
    for before in range(3):  # base64 of a longer text in which it stands, whatever is before and after it
        whole = base64.b64encode(b"\0" * before + secret.encode()).decode().rstrip("=")
        inner = whole[(before * 8 + 5) // 6 : len(whole) - 1]
        found |= {f"base64, offset {before}": inner, f"base64 for URLs, offset {before}": inner.replace("+", "-").replace("/", "_")}
    return found


def leaks(texts: Mapping[str, str], secrets: Mapping[str, str]) -> list[str]:
    """Where which secret was found in which form."""
    wanted = [(name, form, text.encode().decode("latin-1")) for name, secret in secrets.items() for form, text in forms(secret).items()]
    return sorted({f"{name} ({form}) in {place}" for place, text in texts.items() for name, form, wanted_text in wanted if wanted_text in text})


class Watch:
    """Reads command line and environment of every process started by this one, again and again, in a thread."""

    def __init__(self, secrets: Mapping[str, str]) -> None:
        self._secrets = secrets
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._given: list[Program] = []  # programs that are handed a secret in their environment, and have to take it first
        self.leaks: set[str] = set()
        self.seen: set[int] = set()
        self.names: set[str] = set()
        self.readings = 0

    def not_before(self, program: Program) -> None:
        """Leave a program alone until it has said its first word: until then it has not come to take what it was handed."""
        self._given.append(program)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join(20)

    def _run(self) -> None:
        while not self._stop.wait(0.3):
            with contextlib.suppress(psutil.Error):
                for process in descendants():
                    self._read(process)

    def _read(self, process: psutil.Process) -> None:
        early = {program.pid for program in self._given if not program.events}
        if process.pid in early:
            return
        with contextlib.suppress(OSError, psutil.Error):  # it has ended meanwhile
            name = title(process)
            texts = dict(self._contents(process.pid))
            self.seen.add(process.pid)
            self.names.add(name)
            self.readings += len(texts)
            for leak in leaks(texts, self._secrets):
                self.leaks.add(f"{leak} of {os.path.basename(name)}")  # noqa: PTH119

    @staticmethod
    def _contents(pid: int) -> Iterator[tuple[str, str]]:
        for file in ("cmdline", "environ"):
            yield file, Path(f"/proc/{pid}/{file}").read_bytes().decode("latin-1")
