"""The towers compile once for a worker: graphs are counted by the compiler's backend, and results compared with the uncompiled model's."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.utils import counters

from autoft.compiled import CompiledTowers
from autoft.finetune import draw_batch, trial_recipe
from autoft.gradients import StepLoss
from autoft.models import ZeroShotState
from autoft.models.state import trainable_parameters
from autoft.search_space import Hyperparameters
from autoft.start import start_from, training_mode
from autoft.workspace import Workspace
from tests.runs import ALL_TERMS, IMAGE_TERMS, digest, hyperparameters, load_workspace, one_thread, whole_trial

CE = {"cross_entropy": 1.0}
TRIALS = [
    hyperparameters(1e-3, ALL_TERMS, seed=1),
    hyperparameters(1e-4, ALL_TERMS | {"hinge": 0.01, "contrastive": 3.0}, seed=2, weight_decay=0.9),
    hyperparameters(1e-3, IMAGE_TERMS, seed=3),
    hyperparameters(1e-3, CE, seed=4),
    replace(hyperparameters(1e-3, CE, seed=5), layer_decay=0.7, schedule="cosine", optimizer="sgd", momentum=0.5),
    replace(hyperparameters(1e-3, {"contrastive": 1.0}, seed=6), averaging="beta"),
    replace(hyperparameters(1e-3, CE, seed=7), constraint="ftp"),
]


class Counter:
    """A compiler's backend that runs graphs as they are and counts them."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        self.graphs += 1
        return graph.forward


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    with one_thread():
        yield
    torch._dynamo.reset()  # type: ignore[no-untyped-call]


@pytest.fixture(params=["tiny_vit", pytest.param("tiny_convnet", marks=pytest.mark.slow)])
def workspace(request: pytest.FixtureRequest, tmp_path: Path) -> Workspace:
    """24 images of VAL_OOD in batches of 10: the last one is smaller. 3 classes and 2 templates: a batch has 2 to 6 distinct texts."""
    return load_workspace(tmp_path, request.getfixturevalue(request.param), evaluate__batch_size=10)


def compile_with(workspace: Workspace, backend: Any) -> None:
    workspace.towers = CompiledTowers(workspace.model, backend)


def test_no_trial_compiles_anything_after_the_first(workspace: Workspace) -> None:
    """Whatever trials differ in: the image tower in training and in evaluation and the text tower are one graph each, without a break."""
    compile_with(workspace, count := Counter())
    counters.clear()
    whole_trial(workspace, TRIALS[0])
    assert count.graphs == 3
    for trial in TRIALS[1:]:
        whole_trial(workspace, trial)
    assert count.graphs == 3
    assert not counters["graph_break"] and not counters["recompiles"]


@pytest.mark.slow
def test_another_workspace_has_graphs_of_its_own_however_many_there_are(tmp_path: Path, tiny_vit: Path) -> None:
    """The compiler keeps eight graphs of a line of source; a process that compares methods makes more workspaces than that."""
    for number in range(9):
        workspace = load_workspace(tmp_path / str(number), tiny_vit, trial__steps=1)
        compile_with(workspace, count := Counter())
        whole_trial(workspace, TRIALS[0])
        assert count.graphs == 3


@pytest.mark.parametrize("values", [TRIALS[1], TRIALS[2]], ids=["every term", "image terms"])
def test_the_compiled_gradient_and_logits_are_the_uncompiled_ones(workspace: Workspace, values: Hyperparameters) -> None:
    """Of one step with padded texts, and of an evaluation with a padded batch; in float64, where nothing hides behind rounding."""
    workspace.model.double()
    workspace.zero_shot = ZeroShotState.of(workspace.model)
    recipe = trial_recipe(workspace.config.trial, values, len(workspace.train))
    draw = workspace.train_transform
    workspace.train_transform = lambda images, *how: draw(images, *how).double()  # type: ignore[assignment]
    found = []
    for backend in (None, "aot_eager"):
        compile_with(workspace, backend)
        start_from(workspace, values)
        training_mode(workspace)
        parameters = trainable_parameters(workspace.model)
        step_loss = StepLoss(workspace, values, parameters, workspace.zero_shot.parameters_of(workspace.model))
        loss, _, _ = step_loss.add_gradients(draw_batch(workspace, recipe, 0), 1)
        images = draw_batch(workspace, recipe, 1).images[:7]
        workspace.model.eval()
        with torch.no_grad():
            features = workspace.own_towers.evaluation(10)(images)
        found.append([loss.detach(), features, *(parameter.grad for parameter in parameters if parameter.grad is not None)])
    assert len(found[0]) == len(found[1]) > 10
    for wanted, got in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-10)


def test_parts_of_a_batch_and_captured_slices_are_not_compiled(tmp_path: Path, tiny_vit: Path) -> None:
    workspace = load_workspace(tmp_path, tiny_vit)
    compile_with(workspace, count := Counter())
    workspace.batch_split = workspace.evaluation_split = 2
    for trial in TRIALS[:4]:
        whole_trial(workspace, trial)
    assert count.graphs == 0
    workspace.batch_split = 1
    whole_trial(workspace, hyperparameters(weights=CE | {"ldifs": 1.0}))
    assert count.graphs == 0


def test_memory_that_runs_out_in_a_compiled_tower_splits_the_batch(tmp_path: Path, tiny_vit: Path, caplog: pytest.LogCaptureFixture) -> None:
    def short_of_memory(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        def run(*_: Any) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory")

        return run

    workspace = load_workspace(tmp_path, tiny_vit)
    compile_with(workspace, short_of_memory)
    assert whole_trial(workspace, TRIALS[0]).batch_split == 2
    assert workspace.towers.active and "cannot be compiled" not in caplog.text


def no_compiler(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
    raise RuntimeError("no C compiler was found")


def _broken(*_: Any) -> Any:
    raise TypeError("unsupported operation in the backward pass")


def _runs(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
    return graph.forward


@pytest.mark.parametrize(
    "backend",
    [
        pytest.param(no_compiler, id="forward"),
        pytest.param(aot_autograd(fw_compiler=_runs, bw_compiler=_broken), id="backward", marks=pytest.mark.slow),
    ],
)
def test_where_nothing_compiles_trials_run_uncompiled_after_one_warning(
    tmp_path: Path, tiny_vit: Path, tiny_convnet: Path, caplog: pytest.LogCaptureFixture, backend: Any
) -> None:
    """The failed attempt leaves no trace, in BatchNorm's statistics for example."""
    workspace = load_workspace(tmp_path, tiny_vit if backend is no_compiler else tiny_convnet)
    uncompiled = [(whole_trial(workspace, trial).score, digest(workspace)) for trial in TRIALS[:2]]
    compile_with(workspace, backend)
    with caplog.at_level(logging.WARNING, logger="autoft"):
        assert [(whole_trial(workspace, trial).score, digest(workspace)) for trial in TRIALS[:2]] == uncompiled
    assert [record.getMessage()[:50] for record in caplog.records] == ["the model cannot be compiled on this machine and r"]
    assert not workspace.towers.active


def test_what_is_no_matter_of_compiling_is_raised(tmp_path: Path, tiny_vit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = load_workspace(tmp_path, tiny_vit)
    compile_with(workspace, Counter())
    monkeypatch.setattr(workspace.texts.__class__, "pick", _broken)
    with pytest.raises(TypeError, match="backward pass"):
        whole_trial(workspace, TRIALS[0])


def test_scoring_alone_compiles_nothing(tmp_path: Path, tiny_vit: Path) -> None:
    workspace = load_workspace(tmp_path, tiny_vit)
    compile_with(workspace, count := Counter())
    workspace.score("val_ood")
    assert count.graphs == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_on_a_cpu_nothing_is_compiled_by_itself(tmp_path: Path, tiny_vit: Path) -> None:
    assert not load_workspace(tmp_path, tiny_vit).towers.active
