"""Fixtures every suite may use."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from storage import leave_embedded
from tests.studies import TINY_CONVNET, TINY_VIT, write_model

pytest_plugins = ["tests.postgres_fixtures", "tests.browser_fixtures"]


def skip_or_fail(reason: str) -> None:
    """Skip where a person runs the tests; fail in CI, where everything a test needs must be there."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real data and checkpoints: AUTOFT_SHARED, else ../shared beside the checkout."""
    folder = Path(os.environ.get("AUTOFT_SHARED") or Path(__file__).parents[2] / "shared")
    if not (folder / "data").is_dir():
        skip_or_fail(f"needs the real data sets and checkpoints in {folder} (or in $AUTOFT_SHARED)")
    return folder


@pytest.fixture(scope="session")
def tiny_vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny open_clip ViT with random weights, as a local-dir: folder."""
    return write_model(tmp_path_factory.mktemp("tiny-vit"), TINY_VIT)


@pytest.fixture(scope="session")
def tiny_convnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small convolutional open_clip model with BatchNorm and random weights, as a local-dir: folder."""
    return write_model(tmp_path_factory.mktemp("tiny-convnet"), TINY_CONVNET)


@pytest.fixture(scope="session")
def _embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A data folder for commands that are given no database; what they start in it ends before pytest removes it."""
    home = tmp_path_factory.getbasetemp() / "home"
    yield home
    leave_embedded(home)


@pytest.fixture(autouse=True)
def _home(tmp_path_factory: pytest.TempPathFactory, _embedded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep every test away from the user's own studies and caches."""
    monkeypatch.setenv("AUTOFT_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "image-cache"))
    monkeypatch.setenv("AUTOFT_HOME", str(_embedded))
    monkeypatch.delenv("AUTOFT_STORAGE_URL", raising=False)
    monkeypatch.delenv("AUTOFT_STORAGE_URL_FILE", raising=False)


@pytest.fixture(autouse=True)
def _logging() -> Iterator[None]:
    """`autoft.cli.main.main` sets logging up for a process of its own; undone after every test."""
    handlers = list(logging.root.handlers)
    yield
    logging.disable(logging.NOTSET)
    logging.root.handlers[:] = handlers


@pytest.fixture(autouse=True, scope="module")
def _denormals() -> Iterator[None]:
    """`configure_torch` flushes them to zero in a process of its own; no module finds them gone, in whatever order modules run."""
    yield
    torch.set_flush_denormal(False)
