"""No step of the loop asks for a tensor's value: on a GPU the program would wait there for everything it has asked for before."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from autoft.finetune import finetune, trial_recipe
from autoft.losses import METHOD_TERMS
from autoft.search_space import Hyperparameters
from autoft.workspace import Workspace
from tests.runs import ALL_TERMS, hyperparameters, load_workspace, one_thread

CE = {"cross_entropy": 1.0}
OF_METHODS = CE | {name: 0.5 for name, term in METHOD_TERMS.items() if "core" not in term.needs}
WAITING = (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.masked_select, torch.ops.aten.equal)
CASES: dict[str, Hyperparameters] = {
    "every term": hyperparameters(weights=ALL_TERMS),
    "terms of methods": hyperparameters(weights=OF_METHODS),
    "layers": replace(hyperparameters(weights=CE), layer_decay=0.8, schedule="cosine"),
    "sgd": replace(hyperparameters(weights=CE), optimizer="sgd"),
    "average": replace(hyperparameters(weights=CE), averaging="beta"),
    **{name: replace(hyperparameters(weights=CE), constraint=name) for name in ("ftp", "tpgm", "spd", "saft")},  # type: ignore[arg-type]
}


class Waits(TorchDispatchMode):
    """Counts the operations for which the program would wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket in WAITING
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, tiny_vit: Path) -> Iterator[Workspace]:
    with one_thread():
        yield load_workspace(tmp_path_factory.mktemp("waiting"), tiny_vit, trial__batch_size=6)


@pytest.mark.parametrize("name", CASES)
def test_no_step_but_the_first_asks_for_a_value(workspace: Workspace, name: str) -> None:
    recipe = replace(trial_recipe(workspace.config.trial, CASES[name], len(workspace.train)), steps=3, clip_grad_norm=1.0)
    steps = finetune(workspace, recipe)
    next(steps)
    with Waits() as waits:
        assert len(list(steps)) == 2
    assert waits.count == 0


def test_a_value_that_is_asked_for_counts() -> None:
    with Waits() as waits:
        float(torch.ones(()) + 1)
    assert waits.count == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, to wait for")
@pytest.mark.parametrize("name", CASES)
def test_no_step_but_the_first_two_waits_for_a_gpu(workspace: Workspace, name: str) -> None:
    """The first compiles and computes what is computed once; the second may still allocate."""
    there = Workspace.of(workspace.config, torch.device("cuda"), workspace.loaded, workspace.data)
    recipe = replace(trial_recipe(workspace.config.trial, CASES[name], len(workspace.train)), steps=6, clip_grad_norm=1.0)
    steps = finetune(there, recipe)
    next(steps), next(steps)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in steps:
            pass
    finally:
        torch.cuda.set_sync_debug_mode("default")
        workspace.loaded.clip.to("cpu")
