"""`autoft doctor`: each check against a machine that is well and one that is not; what goes wrong in one never hides the others."""

import json
import os
import resource
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from autoft.cli import checks, doctor
from autoft.cli.checks import CHECKS, Asked, Finding, compute, machine, run_check, services
from autoft.cli.main import main
from autoft.errors import StorageError
from storage import parse_storage_url
from storage.connections import connect_postgres
from tests.postgres_fixtures import PASSWORD, ROLE, PostgresServer
from tests.studies import write_study
from workers.inspect import inspect_token

QUICK = [check for check in CHECKS if check[0] not in ("gpu", "ray", "packages")]


def asked(folder: Path, url: str | None = None, study: Path | None = None) -> Asked:
    return Asked(runs=folder / "runs", study=study, storage=parse_storage_url(url, "test") if url else None)


def by_name(found: Iterable[Finding]) -> dict[str, Finding]:
    return {finding.check: finding for finding in found}


def statuses(found: Iterable[Finding]) -> dict[str, str]:
    return {finding.check: finding.status for finding in found}


def run_doctor(capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[int, dict[str, Any], str]:
    code = main(["doctor", "--json", *flags])
    out, err = capsys.readouterr()
    return code, json.loads(out), out + err


# --- the command -----------------------------------------------------------------------------------------------------------------------


def test_all_is_well(
    tmp_path: Path, database_url: str, tiny_vit: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AUTOFT_STORAGE_URL", database_url)
    monkeypatch.setenv("AUTOFT_HOME", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    code, said, _ = run_doctor(capsys, "--study", str(write_study(tmp_path / "study", tiny_vit)), "--runs", str(tmp_path / "runs"))
    assert code == 0 and said["ok"] and said["problems"] == 0
    found = {entry["check"]: entry["status"] for entry in said["checks"]}
    assert {"python", "packages", "study", "model", "database", "tables", "pooler", "ray"} <= {name for name, status in found.items() if status == "ok"}
    assert any(name.startswith("gpu") for name in found)
    assert not (tmp_path / "runs").exists()


def test_a_password_is_never_shown_and_does_not_stay_in_the_environment(
    tmp_path: Path, password_database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "CHECKS", [check for check in CHECKS if check[0] == "database"])
    for url in (password_database_url, password_database_url.replace(f"{ROLE}:", "nobody:")):
        monkeypatch.setenv("AUTOFT_STORAGE_URL", url)
        code, _, text = run_doctor(capsys)
        assert code == (0 if url == password_database_url else 3)
        assert PASSWORD not in text and url.split(":")[2].split("@")[0] not in text
        assert "AUTOFT_STORAGE_URL" not in os.environ


def test_the_first_problem_decides_the_exit_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "CHECKS", [check for check in CHECKS if check[0] in ("database", "ray", "time")])
    monkeypatch.setenv("AUTOFT_STORAGE_URL", "postgresql://u:p@127.0.0.1:1/x")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    code, said, _ = run_doctor(capsys)
    assert code == 3 and not said["ok"] and said["problems"] == 2
    assert all(entry["advice"] for entry in said["checks"] if entry["status"] == "problem")
    monkeypatch.setattr(doctor, "CHECKS", [check for check in CHECKS if check[0] == "ray"])
    assert main(["doctor"]) == 4
    assert "PROBLEM" in capsys.readouterr().out


def test_two_ways_to_name_a_database_are_a_problem_not_an_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "CHECKS", QUICK)
    monkeypatch.setenv("AUTOFT_STORAGE_URL", "postgresql://u:secret@h/x")
    monkeypatch.setenv("AUTOFT_STORAGE_URL_FILE", str(tmp_path / "file"))
    code, said, text = run_doctor(capsys)
    assert code == 3 and len(said["checks"]) > 8 and "secret" not in text


# --- how checks run --------------------------------------------------------------------------------------------------------------------


def test_a_check_that_fails_or_hangs_hides_nothing(tmp_path: Path) -> None:
    def fails(asked: Asked) -> Iterable[Finding]:
        yield Finding("a", "ok", "first")
        raise RuntimeError("boom")

    def refuses(asked: Asked) -> Iterable[Finding]:
        raise StorageError("no such thing")

    gate = threading.Event()

    def hangs(asked: Asked) -> Iterable[Finding]:
        gate.wait(60)
        return []

    what = asked(tmp_path)
    assert [finding.status for finding in run_check("a", fails, what, 5)] == ["ok", "warning"]
    assert [(finding.status, finding.exit_code) for finding in run_check("b", refuses, what, 5)] == [("problem", 3)]
    began = time.monotonic()
    assert [finding.status for finding in run_check("c", hangs, what, 0.1)] == ["problem"]
    assert time.monotonic() - began < 5
    gate.set()


def test_names_are_unique_and_every_check_has_a_limit() -> None:
    assert len({name for name, _, _ in CHECKS}) == len(CHECKS)
    assert all(0 < seconds <= 90 for _, _, seconds in CHECKS)
    assert checks.CHECKS is CHECKS


# --- the machine -----------------------------------------------------------------------------------------------------------------------


def test_versions_that_do_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine._fault(Requirement("optuna>=5.0")) is None
    assert machine._fault(Requirement("optuna>=999")) == f"optuna is {machine.metadata.version('optuna')}, needed is >=999"
    assert machine._fault(Requirement("no-such-package-of-ours")) == "no-such-package-of-ours is missing"
    monkeypatch.setattr(machine.metadata, "requires", lambda name: ["optuna>=999", 'h5py>=999; extra == "hdf5"'])
    (found,) = machine.packages(asked(tmp_path))
    assert found.status == "problem" and "h5py" not in found.detail
    monkeypatch.setattr(machine.sys, "version_info", (3, 9, 1))
    assert [finding.status for finding in machine.python(asked(tmp_path))] == ["problem"]


def test_disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = machine.shutil.disk_usage(tmp_path)
    for free, status in ((machine.NO_DISK_BYTES - 1, "problem"), (machine.LOW_DISK_BYTES - 1, "warning"), (machine.LOW_DISK_BYTES, "ok")):
        monkeypatch.setattr(machine.shutil, "disk_usage", lambda path, free=free: usage._replace(free=free))
        assert set(statuses(machine.disks(asked(tmp_path))).values()) == {status}
    (tmp_path / "file").touch()
    assert machine._disk("runs", tmp_path / "file" / "runs").status == "problem"


def test_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = machine.shutil.disk_usage("/dev/shm")
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: usage._replace(total=64 * 2**20))
    (found,) = machine.memory(asked(tmp_path))
    assert found.status == "warning" and "shm" in found.advice
    monkeypatch.setattr(machine, "memory_limit", lambda: 100 * machine.GIB)
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: usage._replace(total=machine.GIB))
    (found,) = machine.memory(asked(tmp_path))
    assert found.status == "ok" and "--object-store-memory" in found.detail


def test_limits_threads_and_time_zone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    what = asked(tmp_path)
    monkeypatch.setattr(machine.resource, "getrlimit", lambda which: (1024, 4096))
    assert list(statuses(machine.open_files(what)).values()) == ["warning"]
    monkeypatch.setattr(machine.resource, "getrlimit", lambda which: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert list(statuses(machine.open_files(what)).values()) == ["ok"]
    for given, status in (("1", "ok"), ("4096", "warning"), ("all", "warning")):
        monkeypatch.setenv("OMP_NUM_THREADS", given)
        assert list(statuses(machine.threads(what)).values()) == [status]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert list(statuses(machine.threads(what)).values()) == ["warning"]
    for zone, status in (("UTC", "ok"), ("Europe/Berlin", "ok"), ("Europe/Atlantis", "warning")):
        monkeypatch.setenv("TZ", zone)
        assert list(statuses(machine.timezone(what)).values()) == [status]


# --- compute ---------------------------------------------------------------------------------------------------------------------------


def test_a_study_file_that_is_wrong_is_named_with_its_field(tmp_path: Path, tiny_vit: Path) -> None:
    file = write_study(tmp_path, tiny_vit)
    file.write_text(file.read_text().replace("n_trials", "n_trails"))
    (found,) = run_check("study", compute.study, asked(tmp_path, study=file), 30)
    assert (found.status, found.exit_code) == ("problem", 2) and "n_trails" in found.detail


def test_weights_that_are_here_or_are_not(tmp_path: Path, tiny_vit: Path) -> None:
    config = compute.ModelConfig(name=f"local-dir:{tiny_vit}")
    assert compute._weights(config, offline=True).status == "ok"
    assert compute._weights(compute.ModelConfig(name=f"local-dir:{tmp_path}"), offline=False).status == "problem"
    tag = compute.ModelConfig(name="ViT-B-32-quickgelu", pretrained="no-such-tag")
    assert compute._weights(tag, offline=True).status == "problem"
    assert compute._weights(tag, offline=False).status == "warning"


class _Card:
    name, major, minor, total_memory = "A card", 8, 6, 24 * 2**30


@pytest.mark.parametrize(
    ("built_for", "free", "status"), [({"80", "90"}, 20, "ok"), ({"90"}, 20, "problem"), ({"80"}, 2, "warning"), ({"75"}, 20, "problem"), ({"89"}, 20, "problem")]
)
def test_a_gpu(built_for: set[str], free: int, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: _Card)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (free * 2**30, _Card.total_memory))
    found = compute._one_gpu(0, "550.1", built_for)
    assert found.status == status and "8.6" in found.detail and "550.1" in found.detail


def test_no_gpu_is_said_plainly_and_a_driver_without_cuda_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(compute, "_driver", lambda: None)
    (found,) = compute.gpu(asked(tmp_path))
    assert found.status == "warning" and found.detail.startswith("none on this machine")
    monkeypatch.setattr(compute, "_driver", lambda: "550.1")
    (found,) = compute.gpu(asked(tmp_path))
    assert (found.status, found.exit_code) == ("problem", 4)


# --- services --------------------------------------------------------------------------------------------------------------------------


def test_a_new_database_and_one_that_may_not_be_used(postgres_server: PostgresServer, empty_database: str, tmp_path: Path) -> None:
    url = postgres_server.socket_url(empty_database)
    found = by_name(services.database(asked(tmp_path, url)))
    assert found["tables"].status == "ok" and "may make what is missing" in found["tables"].detail
    assert found["pooler"].status == found["database clock"].status == "ok"
    postgres_server.execute(f"REVOKE ALL ON DATABASE {empty_database} FROM PUBLIC, {ROLE}")
    postgres_server.execute(f"ALTER DATABASE {empty_database} OWNER TO postgres")
    postgres_server.execute(f"GRANT CONNECT ON DATABASE {empty_database} TO {ROLE}")
    found = by_name(services.database(asked(tmp_path, url)))
    assert (found["tables"].status, found["tables"].exit_code) == ("problem", 3)
    assert found["pooler"].status == "ok"  # the rest is looked at all the same


def test_a_superuser_and_a_server_that_may_lose_commits_are_warned_about(postgres_server: PostgresServer, database: str, tmp_path: Path) -> None:
    postgres_server.execute(f"ALTER ROLE {ROLE} SUPERUSER")
    try:
        found = [one for one in services.database(asked(tmp_path, postgres_server.password_url(database))) if one.status == "warning"]
    finally:
        postgres_server.execute(f"ALTER ROLE {ROLE} NOSUPERUSER")
    assert [one.check for one in found] == ["database server"] * 2  # the tests' server runs without fsync
    assert "superuser" in found[0].detail and "fsync" in found[1].detail


def test_clocks(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for ahead, status in ((0.5, "ok"), (-1.9, "ok"), (5, "warning"), (-30, "warning"), (3600, "problem"), (-3600, "problem")):
        assert services._clock(ahead).status == status
    assert "behind" in services._clock(-30).detail
    from storage import inspect

    true = inspect.time.time
    monkeypatch.setattr(inspect.time, "time", lambda: true() - 90)
    assert by_name(services.database(asked(tmp_path, database_url)))["database clock"].status == "problem"


def test_a_pooler_that_swaps_sessions_is_a_problem(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from storage import inspect

    def refuses(url: Any, *, read_only: bool = False, keeps_locks: bool = False) -> Any:
        if keeps_locks:
            raise StorageError("a pooler in transaction mode")
        return connect_postgres(url, read_only=read_only)

    monkeypatch.setattr(inspect, "connect_postgres", refuses)
    found = by_name(services.database(asked(tmp_path, database_url)))["pooler"]
    assert (found.status, found.exit_code) == ("problem", 3)


def test_sqlite(tmp_path: Path) -> None:
    found = by_name(services.database(asked(tmp_path, f"sqlite:///{tmp_path}/studies.db")))
    assert found["tables"].status == "ok" and found["database clock"].status == "skipped"
    assert not (tmp_path / "studies.db").exists()


def test_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    token = tmp_path / "token"
    token.write_text("abc")
    token.chmod(0o600)
    assert inspect_token({}).source is None
    assert inspect_token({"RAY_AUTH_TOKEN": "abc", "RAY_AUTH_MODE": "token"}).source == "RAY_AUTH_TOKEN"
    facts = inspect_token({"RAY_AUTH_TOKEN_PATH": str(token)})
    assert facts.source == str(token) and facts.problem is None and "abc" not in repr(facts)
    assert inspect_token({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")}).problem is not None
    token.write_text("")
    assert inspect_token({"RAY_AUTH_TOKEN_PATH": str(token)}).problem == "it is empty"


@pytest.mark.parametrize(
    ("mode", "has_token", "address", "status"),
    [
        (None, False, None, "ok"),
        ("token", True, "head:6379", "ok"),
        ("token", False, "head:6379", "problem"),
        (None, False, "head:6379", "warning"),
        ("disabled", True, "head:6379", "warning"),
    ],
)
def test_what_is_said_of_a_token(
    mode: str | None, has_token: bool, address: str | None, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    if mode is not None:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    if has_token:
        monkeypatch.setenv("RAY_AUTH_TOKEN", "very-secret")
    found = services._token(address)
    assert found.status == status and "very-secret" not in found.detail


def test_a_token_file_for_everybody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        token = Path(folder) / "token"
        token.write_text("abc")
        token.chmod(0o644)
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
        assert services._token("head:6379").status == "ok"  # its folder keeps others out
        Path(folder).chmod(0o755)
        assert services._token("head:6379").status == "warning"
