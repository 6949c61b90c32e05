"""A password file: one `USER:HASH` a line, as in an htpasswd file; hashes are scrypt in the PHC string format, as passlib writes it."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import re
import secrets
import stat
import threading
from collections.abc import Mapping
from pathlib import Path

from autoft.errors import ConfigError
from autoft.files import write_text

_LOG_ROUNDS, _BLOCK, _PARALLEL = 15, 8, 1  # 32 MiB and about 0.1 s a hash
_LARGEST_LOG_ROUNDS = 20
_HASH = re.compile(r"\$scrypt\$ln=(\d{1,2}),r=(\d{1,2}),p=(\d{1,2})\$([A-Za-z0-9+/]{8,128})\$([A-Za-z0-9+/]{22,172})")
_USER = re.compile(r"[\w.@-]{1,64}", re.ASCII)
_SHORTEST = 8
_one_at_a_time = threading.Lock()  # visitors who guess cost one core and one hash's memory, however many they are

_NOBODY = "$scrypt$ln=15,r=8,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"


def hash_password(password: str) -> str:
    """The hash of a password with a salt of its own. Raises ConfigError for one shorter than 8 characters."""
    if len(password) < _SHORTEST:
        raise ConfigError(f"a password must be at least {_SHORTEST} characters long, got {len(password)}")
    salt = secrets.token_bytes(16)
    digest = _scrypt(password, salt, _LOG_ROUNDS, _BLOCK, _PARALLEL, 32)
    return f"$scrypt$ln={_LOG_ROUNDS},r={_BLOCK},p={_PARALLEL}${_encode(salt)}${_encode(digest)}"


def check_password(users: Mapping[str, str], user: str, password: str) -> bool:
    """Whether it is that user's password; as slow for a user there is not."""
    match = _HASH.fullmatch(users.get(user, _NOBODY))
    assert match is not None, "read_password_file lets no other hash in"
    log_rounds, block, parallel = (int(match.group(number)) for number in (1, 2, 3))
    wanted = _decode(match.group(5))
    with _one_at_a_time:
        found = _scrypt(password, _decode(match.group(4)), log_rounds, block, parallel, len(wanted))
    return hmac.compare_digest(found, wanted) and user in users


def password_line(user: str, password: str) -> str:
    """A line of a password file. Raises ConfigError for a name with other characters than letters, digits, . _ @ - ."""
    return f"{_checked_user(user)}:{hash_password(password)}"


def store_password(file: Path, user: str, password: str) -> None:
    """Set a user's password in a file, made where it is missing, which only its owner may read. Raises ConfigError."""
    line = password_line(user, password)
    known = read_password_file(file) if file.exists() else {}
    lines = [f"{name}:{value}" for name, value in known.items() if name != user]
    umask = os.umask(0o077)
    try:
        write_text(file, "\n".join([*lines, line]) + "\n")
        file.chmod(0o600)
    except OSError as error:
        raise ConfigError(f"--password-file: cannot write {file}: {error.strerror}") from None
    finally:
        os.umask(umask)


def read_password_file(file: Path) -> dict[str, str]:
    """Password hashes by user name.

    Raises:
        ConfigError: the file cannot be read, others may read it, it is empty, or a line is not one that `--make-password` writes.
    """
    try:
        mode = file.stat().st_mode
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ConfigError(f"--password-file: cannot read {file}: {reason}") from None
    if mode & stat.S_IRWXO:
        raise ConfigError(f"--password-file: {file} can be read or changed by everybody on this machine; chmod 600 it")
    users = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        user, _, value = line.strip().partition(":")
        match = _HASH.fullmatch(value)
        if not (_USER.fullmatch(user) and match and _affordable(match)):
            raise ConfigError(f"--password-file: {file}, line {number} is not USER:$scrypt$...; `autoft dashboard --make-password USER` makes one")
        users[user] = value
    if not users:
        raise ConfigError(f"--password-file: {file} names nobody; `autoft dashboard --make-password USER --password-file {file}` adds a user")
    return users


def _affordable(match: re.Match[str]) -> bool:
    log_rounds, block, parallel = (int(match.group(number)) for number in (1, 2, 3))
    try:
        whole = all(_decode(match.group(number)) for number in (4, 5))
    except binascii.Error:
        return False
    return whole and 1 <= log_rounds <= _LARGEST_LOG_ROUNDS and 1 <= block <= 16 and 1 <= parallel <= 16


def _checked_user(user: str) -> str:
    if not _USER.fullmatch(user):
        raise ConfigError(f"--make-password: a user name is 1 to 64 of A-Z a-z 0-9 . _ @ -, got {user!r}")
    return user


def _scrypt(password: str, salt: bytes, log_rounds: int, block: int, parallel: int, length: int) -> bytes:
    memory = 128 * block * (2**log_rounds + parallel + 2) + 2**20
    return hashlib.scrypt(password.encode(), salt=salt, n=2**log_rounds, r=block, p=parallel, maxmem=memory, dklen=length)


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode().rstrip("=")


def _decode(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
