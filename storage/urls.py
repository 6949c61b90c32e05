"""Where the database is: storage URLs, and how they are taken out of the environment without leaving the password there."""

from __future__ import annotations

import ctypes
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn
from urllib.parse import unquote

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from autoft.errors import StorageError

URL_VARIABLE = "AUTOFT_STORAGE_URL"
FILE_VARIABLE = "AUTOFT_STORAGE_URL_FILE"
PASSWORD_VARIABLE = "PGPASSWORD"

_VALID = "valid are postgresql://USER:PASSWORD@HOST:PORT/DATABASE (with %XX for special characters) and sqlite:///FILE"
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9]*)(?:\+[A-Za-z0-9_]+)?://")


@dataclass(frozen=True)
class StorageURL:
    """A database of studies. `repr`, `str` and `safe` never show the password, and pickling is refused so that it cannot travel.

    Attributes:
        sqlalchemy: the whole URL, password included, always with the driver psycopg2 for Postgres.
    """

    sqlalchemy: URL = field(repr=False)

    @property
    def is_postgres(self) -> bool:
        return self.sqlalchemy.get_backend_name() == "postgresql"

    @property
    def is_sqlite(self) -> bool:
        return self.sqlalchemy.get_backend_name() == "sqlite"

    @property
    def safe(self) -> str:
        """The URL for people: the password as ***, and of the query only the host, where Postgres is reached over a socket."""
        url = self.sqlalchemy
        if self.is_sqlite:
            return f"sqlite:///{url.database}"
        kept = {key: value for key, value in url.query.items() if key == "host"}
        shown = url.set(drivername="postgresql", query=kept).render_as_string(hide_password=True)
        return unquote(shown) if kept else shown

    @property
    def path(self) -> Path:
        """The file of a SQLite database, absolute."""
        assert self.is_sqlite, self.safe
        return Path(str(self.sqlalchemy.database)).expanduser().resolve()

    def __repr__(self) -> str:
        return f"StorageURL({self.safe!r})"

    def __str__(self) -> str:
        return self.safe

    def __reduce__(self) -> NoReturn:
        raise TypeError("a StorageURL holds a password and is not pickled: pass the path of a secret file instead")


def parse_storage_url(text: str, source: str) -> StorageURL:
    """Read a storage URL.

    Args:
        text: `postgres://`, `postgresql://` or `postgresql+DRIVER://` (the driver used is always psycopg2), or `sqlite:///FILE`.
            Percent-encoded characters in user, password and database are decoded.
        source: where the text came from, for messages.

    Raises:
        StorageError: saying what is valid; nothing of the text but its scheme is shown.
    """
    match = _SCHEME.match(text.strip())
    scheme = match.group(1).lower() if match else ""
    if scheme not in ("postgres", "postgresql", "sqlite"):
        shown = f"the scheme {scheme!r} is not one AutoFT stores studies in" if scheme else "this is not a database URL"
        raise StorageError(f"{source}: {shown}; {_VALID}")
    if any(letter < " " or "\ud800" <= letter <= "\udfff" for letter in text.strip()):
        raise StorageError(f"{source}: a control character, or a byte that is no text; write it as %XX")
    rest = text.strip()[len(match.group(0)) if match else 0 :]
    if rest.count("@") > 1:
        raise StorageError(f"{source}: more than one '@'; inside a user name or password write it as %40")
    try:
        url = make_url(("sqlite://" if scheme == "sqlite" else "postgresql+psycopg2://") + rest)
    except (ArgumentError, ValueError):  # both may quote the secret part, so neither is repeated or chained
        raise StorageError(f"{source}: cannot read this {scheme} URL; {_VALID}") from None
    return StorageURL(_checked_sqlite(url, source) if scheme == "sqlite" else _checked_postgres(url, source))


def _checked_postgres(url: URL, source: str) -> URL:
    """libpq also takes a password from the query; it is moved to the one place that is masked."""
    if url.port is not None and not 0 < url.port < 1 << 16:
        raise StorageError(f"{source}: the port must lie in 1 to 65535; {_VALID}")
    if any("\0" in (part or "") for part in (url.username, url.password, url.host, url.database)):
        raise StorageError(f"{source}: a null character (%00); {_VALID}")
    query = dict(url.query)
    password = query.pop("password", None)
    return url.set(query=query, password=url.password or password) if isinstance(password, str) else url


def _checked_sqlite(url: URL, source: str) -> URL:
    if url.host or not url.database or url.database == ":memory:" or url.database.startswith("file:") or url.query:
        raise StorageError(f"{source}: SQLite needs a file, as in sqlite:///studies.db or sqlite:////absolute/studies.db")
    try:
        Path(url.database).expanduser().resolve().exists()
    except (OSError, RuntimeError, ValueError) as error:  # too long, no such user in ~user/, a null character
        raise StorageError(f"{source}: {url.database[:100]!r} cannot be the name of a file: {getattr(error, 'strerror', None) or error}") from None
    return url


def take_storage_url() -> StorageURL | None:
    """The storage URL given in the environment, which is then scrubbed: nothing started later inherits it.

    AUTOFT_STORAGE_URL or AUTOFT_STORAGE_URL_FILE (a file with the URL on its one line); PGPASSWORD serves a URL without a password.
    Values are removed from `os.environ` and from the block /proc/PID/environ shows. A second call therefore finds nothing.

    Returns:
        None where neither is set: the embedded Postgres is meant.

    Raises:
        StorageError: both are given, the file cannot be read or is empty, or the URL is not valid.
    """
    text = _take_variable(URL_VARIABLE)
    password = _take_variable(PASSWORD_VARIABLE)
    file = os.environ.get(FILE_VARIABLE)
    if text and file:
        raise StorageError(f"both {URL_VARIABLE} and {FILE_VARIABLE} are set; give one of them")
    if file:
        url = parse_storage_url(_read_secret(Path(file)), FILE_VARIABLE)
    elif text:
        url = parse_storage_url(text, URL_VARIABLE)
    else:
        return None
    if password and url.is_postgres and url.sqlalchemy.password is None:
        url = StorageURL(url.sqlalchemy.set(password=password))
    return url


def _read_secret(file: Path) -> str:
    try:
        lines = file.expanduser().read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise StorageError(f"{FILE_VARIABLE}: cannot read {file}: {reason}") from None
    if len(lines) != 1:
        raise StorageError(f"{FILE_VARIABLE}: {file} {'is empty' if not lines else 'holds more than one line'}; it must hold one URL")
    return lines[0]


def _take_variable(name: str) -> str | None:
    value = os.environ.pop(name, None)
    _scrub_initial_environment(name)
    return value


def _scrub_initial_environment(name: str) -> None:
    """Overwrite a variable's value in the block the kernel shows as /proc/PID/environ, which unsetting it leaves as it was.

    Its address comes from /proc/self/stat, fields 50 and 51 (env_start, env_end; proc_pid_stat(5)). Elsewhere than on Linux: nothing.
    """
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()  # begins with field 3
        start, end = int(fields[47]), int(fields[48])
    except (OSError, ValueError, IndexError):
        return
    if not 0 < start < end:
        return
    prefix = name.encode() + b"="
    offset = 0
    for entry in ctypes.string_at(start, end - start).split(b"\0"):
        if entry.startswith(prefix):
            ctypes.memset(start + offset + len(prefix), 0, len(entry) - len(prefix))
        offset += len(entry) + 1
