"""Parts of a run for tests: workspaces over the small studies, fine-tunes, stages, whole runs, without Ray and Postgres."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autoft.config import StudyConfig, load_config
from autoft.finetune import Recipe, Step, draw_batch, finetune
from autoft.gradients import StepLoss
from autoft.losses import LOSS_TERMS, StepOutputs
from autoft.models import state_digest
from autoft.models.state import trainable_parameters
from autoft.search_space import Hyperparameters
from autoft.stages import StageRequest, all_splits, run_stages, trained_methods
from autoft.stages import load_workspace as stage_workspace
from autoft.trial import TrialResult, run_trial
from autoft.workspace import Workspace
from tests.studies import write_study

ALL_TERMS = dict.fromkeys(LOSS_TERMS, 0.5) | {"cross_entropy": 1.0}
IMAGE_TERMS = {term: weight for term, weight in ALL_TERMS.items() if term != "contrastive"}


def hyperparameters(lr: float = 1e-3, weights: Mapping[str, float] = ALL_TERMS, seed: int = 5, weight_decay: float = 0.1) -> Hyperparameters:
    return Hyperparameters(lr=lr, weight_decay=weight_decay, loss_weights=weights, seed=seed)


def load_workspace(folder: Path, model: Path, **changes: Any) -> Workspace:
    """A workspace with every split of a small study written to `folder`."""
    config = load_config(write_study(folder, model, **changes))
    return Workspace.load(config, "cpu", folder / "cache", splits=all_splits(config))


def digest(workspace: Workspace) -> str:
    """The exact state of a workspace's model."""
    return state_digest(workspace.model.state_dict())


def cloned(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def tune(workspace: Workspace, recipe: Recipe, **options: Any) -> list[float]:
    """Fine-tune to the end; the losses."""
    return [float(step.loss) for step in finetune(workspace, recipe, **options)]


def outputs_of(workspace: Workspace, recipe: Recipe, step: int) -> StepOutputs:
    """What a step's loss terms see, the model as it is."""
    model = workspace.model
    step_loss = StepLoss(workspace, recipe.hyperparameters, trainable_parameters(model), workspace.zero_shot.parameters_of(model))
    return step_loss.outputs(draw_batch(workspace, recipe, step))


def first_steps(workspace: Workspace, recipe: Recipe, count: int) -> Step:
    """Fine-tune for some steps of a recipe and break off."""
    return next(islice(finetune(workspace, recipe), count - 1, None))


def whole_trial(workspace: Workspace, values: Hyperparameters) -> TrialResult:
    trial = run_trial(workspace, values)
    while True:
        try:
            next(trial)
        except StopIteration as end:
            result: TrialResult = end.value
            return result


def stages(
    config: StudyConfig, folder: Path, best: Hyperparameters | None = None, should_stop: Callable[[], bool] = lambda: False
) -> list[dict[str, Any]]:
    """Run the stages of a study over `folder`/run; the events."""
    events: list[dict[str, Any]] = []
    request = StageRequest(
        config=config,
        run_dir=folder / "run",
        methods=trained_methods(config, best or hyperparameters(), entries=1000),
        fingerprint="f" * 16,
        versions={"autoft": "0"},
    )
    run_stages(request, stage_workspace(config, "cpu", folder / "cache"), events.append, should_stop)
    return events


def started(events: list[dict[str, Any]]) -> list[str]:
    """Names of the stages that were computed, in order."""
    return [event["stage"] for event in events if event["event"] == "stage_started"]


@contextmanager
def one_thread() -> Iterator[None]:
    """One torch thread inside, and afterwards what was set before; denormal numbers count again."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_flush_denormal(False)
