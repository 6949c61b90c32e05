"""Every malformed input on record leads to the error it should, in bounded time."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz.make_corpus import CORPUS, cases
from tests.fuzz.targets import TARGETS, outcome

MANIFEST: dict[str, Any] = json.loads((CORPUS / "manifest.json").read_text(encoding="utf-8"))
SECONDS = 20.0  # of processor time; all but a few take milliseconds


def target_of(name: str) -> str:
    """The first folder, or the second of what a fuzzer found."""
    parts = Path(name).parts
    return parts[1] if parts[0] == "found" else parts[0]


@pytest.mark.parametrize("name", MANIFEST)
def test_a_bad_input_is_refused_as_it_should_be(name: str) -> None:
    started = time.process_time()
    error = outcome(target_of(name), (CORPUS / name).read_bytes())
    assert time.process_time() - started < SECONDS
    expected = MANIFEST[name]
    assert (error and type(error).__name__) == expected["error"], f"{error}"
    assert expected["says"] in str(error or "")
    assert len(str(error)) < 20_000, "a message for a person"


def test_the_corpus_is_whole() -> None:
    """As many inputs as promised, for every target, small, and each file has its line."""
    files = {path.relative_to(CORPUS).as_posix(): path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()}
    assert files.keys() - {"manifest.json"} == MANIFEST.keys()
    assert {f"{case.target}/{case.name}" for case in cases()} | {name for name in MANIFEST if name.startswith("found/")} == MANIFEST.keys()
    assert {target_of(name) for name in MANIFEST} == TARGETS.keys()
    assert sum(expected["error"] is not None for expected in MANIFEST.values()) >= 200
    assert sum(files.values()) < 1_000_000
