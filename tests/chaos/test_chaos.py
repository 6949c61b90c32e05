"""The suite's own parts: its checks find what they are to find, and it leaves nothing behind."""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import quote

import optuna
import psutil
import pytest
from optuna.trial import FrozenTrial, TrialState

from tests.chaos import page
from tests.chaos.__main__ import compact
from tests.chaos.diary import Diary
from tests.chaos.full_disk import damaged
from tests.chaos.leaks import forms, leaks
from tests.chaos.network import Proxy
from tests.chaos.partition import LOGGED, writes
from tests.chaos.points import choose
from tests.chaos.steps import label
from tests.chaos.trials import check_same, check_trials

SECRET = 'pa{ss}"\\/x+y'


def trial(number: int, x: float, state: TrialState = TrialState.COMPLETE, **attrs: Any) -> FrozenTrial:
    made = optuna.create_trial(
        state=state, value=x if state == TrialState.COMPLETE else None, params={"x": x}, distributions={"x": optuna.distributions.FloatDistribution(0, 100)}, user_attrs=attrs
    )
    made.number = number
    return made


def checked(trials: list[FrozenTrial], wanted: int, tmp_path: Path, numbers: list[int] | None = None) -> list[str]:
    """Names of the checks that failed."""
    journal = tmp_path / "journal.jsonl"
    journal.write_text("".join(json.dumps({"number": number}) + "\n" for number in (numbers if numbers is not None else range(len(trials)))))
    diary = Diary("test", 0)
    check_trials(diary, trials, wanted, journal)
    return [check["name"] for check in diary.checks if not check["passed"]]


def test_whole_trials_pass(tmp_path: Path) -> None:
    trials = [trial(0, 1.0), trial(1, 2.0, TrialState.PRUNED), trial(2, 3.0, TrialState.FAIL, failure_kind="infrastructure")]
    assert checked(trials, 2, tmp_path) == []


@pytest.mark.parametrize(
    ("trials", "numbers", "found"),
    [
        ([trial(0, 1.0)], None, "exactly 2 trials are finished"),
        ([trial(0, 1.0), trial(1, 2.0), trial(2, 3.0)], None, "exactly 2 trials are finished"),
        ([trial(0, 1.0), trial(1, 2.0), trial(2, 3.0, TrialState.RUNNING)], None, "none is left RUNNING or WAITING"),
        ([trial(0, 1.0), trial(2, 2.0)], [0, 2], "numbers are 0, 1, 2, ... without a gap"),
        ([trial(0, 1.0), trial(1, 1.0)], None, "no parameters occur twice"),
        ([trial(0, 1.0), trial(1, 2.0), trial(2, 3.0, TrialState.FAIL)], None, "every failed trial has its failure_kind"),
        ([trial(0, 1.0), trial(1, 2.0)], [0, 1, 1], "the journal has each trial's end once"),
        ([trial(0, 1.0), trial(1, 2.0)], [0], "the journal has each trial's end once"),
    ],
)
def test_what_is_wrong_is_found(trials: list[FrozenTrial], numbers: list[int] | None, found: str, tmp_path: Path) -> None:
    assert found in checked(trials, 2, tmp_path, numbers)


@pytest.mark.parametrize("other", [[trial(0, 1.0)], [trial(0, 1.0), trial(1, 2.5)], [trial(0, 1.0), trial(1, 2.0, TrialState.PRUNED)]])
def test_other_trials_than_the_undisturbed_ones_are_found(other: list[FrozenTrial]) -> None:
    reference = [trial(0, 1.0), trial(1, 2.0)]
    diary = Diary("test", 0)
    check_same(diary, reference, reference)
    check_same(diary, other, reference)
    assert [check["passed"] for check in diary.checks] == [True, False]


@pytest.mark.parametrize(
    "text",
    [
        f"before {SECRET} after",
        f"postgresql://u:{quote(SECRET, safe='')}@host/db",
        json.dumps({"url": SECRET}),
        repr({"url": SECRET}),
        *(base64.b64encode(b"u" * n + b":" + SECRET.encode() + b"@host").decode() for n in range(3)),
        *(base64.urlsafe_b64encode(b"u" * n + SECRET.encode() + b"?").decode() for n in range(3)),
    ],
)
def test_a_secret_is_found_in_every_form(text: str) -> None:
    assert leaks({"log": text}, {"password": SECRET})
    assert not leaks({"log": text.replace(SECRET, "***")}, {"password": f"no{SECRET}no"})


def test_forms_are_long_enough_to_mean_something() -> None:
    assert all(len(form) >= len(SECRET) for form in forms(SECRET).values())


@pytest.mark.parametrize(
    ("name", "content", "is_damaged"),
    [
        ("a.json", b'{"a": 1}', False),
        ("a.json", b'{"a": ', True),
        ("a.safetensors", b"\x00" * 40, True),
        ("journal.jsonl", b'{"number": 0}\n{"number": 1}\n{"numb', False),  # a torn last line is cut off by the next run
        ("journal.jsonl", b'{"number": 0}\n{"num\n{"number": 1}\n', True),
        ("journal.jsonl", b'{"number": 0}\n{"number": 0}\n', True),
        ("trials.csv", b"", True),
    ],
)
def test_a_truncated_file_is_found(name: str, content: bytes, is_damaged: bool, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert bool(damaged(tmp_path)) == is_damaged


def test_points_cover_many_kinds_and_always_the_torn_line() -> None:
    import random

    counts = Counter({"rename:a": 3, "fsync:a": 5, "torn:journal.jsonl": 2, "commit:create_new_trial": 4})
    assert {point for point, _ in choose(counts, random.Random(1), 9)} == set(counts)
    for seed in range(20):
        points = choose(counts, random.Random(seed), 2)
        assert len(points) == 2 and "torn:journal.jsonl" in dict(points)
        assert all(1 <= n <= counts[point] for point, n in points)


def test_steps_are_named_by_what_they_write() -> None:
    assert label("/x/runs/tiny/stages/final.json") == "stages/final.json"
    assert label(f"/x/runs/tiny/.trials.csv.{os.getpid()}.partial") == ".trials.csv.partial"
    assert label("/x/runs/tiny/plots/scores.png") == "plots/PLOT.png"
    assert label("/x/cache-3/abc/images.npy") == "cache"


def test_a_killed_step_is_a_killed_process(tmp_path: Path) -> None:
    """The command line is killed after the step that was asked for, and not when another number of them is asked for."""
    program = f"""
import os, sys
from tests.chaos.steps import Killer, Steps
Steps(Killer("rename:b", int(sys.argv[1]))).install()
for n in range(3):
    open({str(tmp_path)!r} + "/a", "w").close()
    os.replace({str(tmp_path)!r} + "/a", {str(tmp_path)!r} + "/b")
    print(n, flush=True)
"""
    root = Path(__file__).parents[2]
    for n, code, said in ((2, -signal.SIGKILL, "0\n"), (4, 0, "0\n1\n2\n")):
        run = subprocess.run([sys.executable, "-c", program, str(n)], cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True, timeout=120)
        assert (run.returncode, run.stdout) == (code, said), run.stderr


def test_a_cut_proxy_holds_bytes_back() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        proxy = Proxy(server.getsockname()[1])
        with socket.create_connection(("127.0.0.1", proxy.port), 5) as client:
            end, _ = server.accept()
            client.sendall(b"one")
            assert end.recv(3) == b"one"
            proxy.cut()
            end.settimeout(1.5)  # longer than the proxy's own wait
            client.sendall(b"two")
            with pytest.raises(TimeoutError):
                end.recv(3)
            proxy.restore()
            end.settimeout(10)
            assert end.recv(3) == b"two"
            end.close()
        proxy.close()


def test_writes_are_read_from_the_servers_log(tmp_path: Path) -> None:
    class Fake:
        data = tmp_path

    (tmp_path / "log").write_text(
        "2026-01-02 03:04:05.678 UTC [12] autoft:host:99 LOG:  statement: UPDATE trials SET state = 1\n"
        "2026-01-02 03:04:06.000 UTC [12] autoft:host:99 DETAIL:  parameters\n"
        "2026-01-02 03:04:07.000 UTC [13] psql LOG:  statement: UPDATE trials SET state = 1\n"
    )
    assert "log_statement = mod" in LOGGED
    ((at, session, text),) = writes(Fake())  # type: ignore[arg-type]
    assert (at.isoformat(), session, text) == ("2026-01-02T03:04:05.678000+00:00", "autoft:host:99", "UPDATE trials SET state = 1")


def test_nothing_is_left_even_of_a_detached_grandchild() -> None:
    program = """
import subprocess, sys
from tests.chaos.processes import nothing_left
with nothing_left():
    child = subprocess.run(["sh", "-c", "setsid sleep 600 >/dev/null 2>&1 & echo $!"], capture_output=True, text=True)
    print(child.stdout.strip(), flush=True)
"""
    root = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", program], cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert not psutil.pid_exists(int(run.stdout))


def test_records_do_not_name_this_machines_folders() -> None:
    diary = Diary("test", 3, hidden={"/checkout/here": "CHECKOUT"})
    diary.note("killed", said="in /checkout/here/runs and /dev/shm/x-1/log")
    diary.check("ok", True, {"/checkout/here": ["/tmp/ray-5/session/x", sys.base_prefix + "/lib/x.py"]})
    record = diary.record()
    assert record["done"][0]["said"] == "in CHECKOUT/runs and FOLDER"
    assert record["checks"][0]["found"] == {"CHECKOUT": ["FOLDER", "FOLDER"]}


def test_compact_json_is_json() -> None:
    value = {"a": [{"b": "x" * 150, "c": [1, 2]}, {"d": None}], "e": {}}
    assert json.loads(compact(value)) == value


def test_the_page_says_what_was_not_run_and_what_failed() -> None:
    check = {"name": "all is well", "passed": False, "found": "it is not"}
    record = {"scenario": "crowd", "seed": 4, "passed": False, "seconds": 12.3, "figures": {"coordinators": 8, "ended": {"5": 7, "runs": 1}}, "checks": [check, {"name": "x", "passed": True}]}
    text = page.figures({"machine": {"cpus": 2, "memory_gib": 4, "system": "Linux"}, "versions": {"ray": "1"}, "records": [record]})
    assert "| crowd | 4 | 0 of 1 | 1 of 2 | 12.3 |" in text
    assert "| storm | **not run** | | | |" in text
    assert "- crowd, seed 4: all is well: `it is not`" in text
    assert "| ended | 5 7, runs 1 |" in text


def test_the_page_is_printed_from_the_latest_records() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    assert text.split(page.MARK + "\n")[1] == page.figures(json.loads(page.OUT.read_text())), "run `python -m tests.chaos.page`"
