"""What a Ray cluster is like, for `autoft doctor`: looked at from a process of its own, because joining may hang and cannot be interrupted."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoft.errors import ClusterError

MODE_VARIABLE = "RAY_AUTH_MODE"
TOKEN_VARIABLE = "RAY_AUTH_TOKEN"
PATH_VARIABLE = "RAY_AUTH_TOKEN_PATH"


@dataclass(frozen=True, kw_only=True)
class TokenFacts:
    """Where this process gets the cluster's token from; never the token.

    Attributes:
        mode: RAY_AUTH_MODE as it is set; None where it is not.
        source: a variable or a file; None where there is no token.
        problem: why the token named cannot be used.
        open_to_others: the file can be read by other users of this machine.
    """

    mode: str | None
    source: str | None
    problem: str | None = None
    open_to_others: bool = False


@dataclass(frozen=True, kw_only=True)
class ClusterFacts:
    """A cluster that was joined."""

    nodes: int
    cpus: float
    gpus: float
    ray_version: str


def inspect_token(environment: Mapping[str, str] | None = None) -> TokenFacts:
    """Look for a token where Ray does: RAY_AUTH_TOKEN, then RAY_AUTH_TOKEN_PATH, then ~/.ray/auth_token."""
    environment = os.environ if environment is None else environment
    mode = environment.get(MODE_VARIABLE)
    if environment.get(TOKEN_VARIABLE):
        return TokenFacts(mode=mode, source=TOKEN_VARIABLE)
    named = environment.get(PATH_VARIABLE)
    file = Path(named) if named else Path.home() / ".ray" / "auth_token"
    if not named and not file.is_file():
        return TokenFacts(mode=mode, source=None)
    try:
        empty = not file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        return TokenFacts(mode=mode, source=str(file), problem=f"cannot read it: {reason}")
    return TokenFacts(mode=mode, source=str(file), problem="it is empty" if empty else None, open_to_others=_open_to_others(file))


def inspect_cluster(address: str, seconds: float = 45.0) -> ClusterFacts:
    """Join a cluster, count what it has, and leave. Raises ClusterError, also when that takes too long."""
    program = [sys.executable, "-m", "workers.inspect", address]
    try:
        done = subprocess.run(program, capture_output=True, text=True, timeout=seconds, check=False, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        raise ClusterError(f"the Ray cluster at {address} did not let us join within {seconds:g} s") from None
    try:
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        raise ClusterError(f"joining the Ray cluster at {address} ended with exit code {done.returncode}") from None
    if "error" in answer:
        raise ClusterError(answer["error"])
    return ClusterFacts(**answer)


def _open_to_others(file: Path) -> bool:
    """Whether a stranger gets to the file: it is readable, and no folder above it keeps them out."""
    file = file.resolve()
    return bool(file.stat().st_mode & stat.S_IROTH) and all(folder.stat().st_mode & stat.S_IXOTH for folder in file.parents)


def _answer(address: str) -> dict[str, Any]:
    import ray  # takes a second

    from workers.cluster import cluster

    try:
        with cluster(address) as resources:
            alive = sum(bool(node["Alive"]) for node in ray.nodes())
            return {"nodes": alive, "cpus": resources.get("CPU", 0.0), "gpus": resources.get("GPU", 0.0), "ray_version": ray.__version__}
    except ClusterError as error:
        return {"error": str(error)}


if __name__ == "__main__":
    found = json.dumps(_answer(sys.argv[1]))
    sys.stdout.write("\n" + found + "\n")
