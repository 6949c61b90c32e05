"""The token that lets a process into a Ray cluster: found or made, and named to Ray by its file's path, never by its value."""

import logging
import os
import secrets
from pathlib import Path

from autoft.errors import ClusterError
from workers.inspect import MODE_VARIABLE, PATH_VARIABLE, TOKEN_VARIABLE, inspect_token

logger = logging.getLogger(__name__)


def default_token_file() -> Path:
    """RAY_AUTH_TOKEN_PATH, else where Ray itself looks."""
    return Path(os.environ.get(PATH_VARIABLE) or Path.home() / ".ray" / "auth_token").expanduser()


def use_token(file: Path | None, *, make: bool) -> str | None:
    """Make this process, and Ray's processes that it starts, show a token to the cluster. To be called before Ray is imported.

    Args:
        file: the token's file; None: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token, as Ray looks for it.
        make: write a new token to the file if there is none, readable by its owner only.

    Returns:
        Where the token is: a path, or the variable's name; None if there is none, or RAY_AUTH_MODE is "disabled".

    Raises:
        ClusterError: the file given is missing, empty or cannot be read or written.
    """
    if os.environ.get(MODE_VARIABLE, "token") == "disabled":
        if file is not None:
            raise ClusterError(f"--token-file {file} and {MODE_VARIABLE}=disabled contradict each other; unset {MODE_VARIABLE}")
        return None
    if file is not None:
        os.environ.pop(TOKEN_VARIABLE, None)
        os.environ[PATH_VARIABLE] = str(file.expanduser().absolute())
    if not os.environ.get(TOKEN_VARIABLE):
        path = default_token_file()
        if make and not path.exists():
            _write_token(path)
        if file is not None and not path.is_file():
            raise ClusterError(f"--token-file {file}: there is no such file; copy the token file of the cluster's head there")
    facts = inspect_token()
    if facts.problem is not None:
        raise ClusterError(f"the cluster's token cannot be used: {facts.problem}")
    if facts.source is not None:
        os.environ[MODE_VARIABLE] = "token"
    if facts.open_to_others:
        logger.warning("other users of this machine can read the cluster's token; mend it with: chmod 600 %s", facts.source)
    return facts.source


def _write_token(path: Path) -> None:
    """A new token of 256 bits, in a file only its owner can read. A file that appears at the same moment is kept."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
            file.write(secrets.token_hex(32))
    except FileExistsError:
        return
    except OSError as error:
        raise ClusterError(f"the cluster's token cannot be written to {path}: {error.strerror}") from None
