"""The only training loop. Trials, baselines, other methods and the final fine-tune differ by configuration alone.

    restore the zero-shot weights -> for each step: batch, one forward for all loss terms, backward, scaled rate, optimizer

A batch that does not fit the memory is computed in parts (`autoft.gradients`), which the loop remembers and `Step.split` tells. Several
processes share each batch (`autoft.shared_gradients`) and take the same steps.

References: AutoFT, arXiv 2401.10220 (weighted sum of loss terms, AdamW over every parameter); WiSE-FT and FLYP (per-step cosine
with warm-up). Everything random is a function of (seed, step), so a run resumed at a step goes on as if it had not stopped.
"""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from autoft.batch_split import WHOLE, Split
from autoft.collective import share, share_of
from autoft.config import FinalConfig, ScheduleName, TrialConfig
from autoft.gradients import Batch, StepLoss, most_parts, restore_statistics, running_statistics
from autoft.losses import needs_text
from autoft.models import copy_state
from autoft.models.shards import gathered, held_everywhere, own_state, parts_of
from autoft.on_device import sent
from autoft.optim import lr_multiplier
from autoft.own_weights import OwnWeights
from autoft.search_space import Hyperparameters
from autoft.shardable import check_shardable
from autoft.shared_gradients import SharedStepLoss, check_shares
from autoft.start import start_from, training_mode, training_pool
from autoft.update import Update
from autoft.workspace import Workspace

MAX_LOG_LOGIT_SCALE = 4.605170185988092  # ln 100, the bound open_clip trains with


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One fine-tune in full: what is minimised, by which rate, for how many steps, from which randomness."""

    hyperparameters: Hyperparameters
    steps: int
    batch_size: int
    schedule: ScheduleName = "constant"
    warmup_steps: int = 0
    clip_grad_norm: float | None = None

    @property
    def samples(self) -> int:
        """Training examples seen."""
        return self.steps * self.batch_size


@dataclass(frozen=True)
class Step:
    """One finished step. `loss` and `terms` are scalars on the device: reading them waits for it.

    number: from 1; 0 for the only step of a recipe that trains nothing.
    loss: the weighted sum of `terms`.
    terms: each term's unweighted value at the weights the step started from. The weight norms are among them if `finetune` was told to
        `report_norms`; they count in training in any case.
    optimizer: as it is after the step.
    average: moving average of the floating entries of the model's state, by name, of sharded ones this process's part; None without
        `averaging`.
    split: how its batch was computed.
    weights: what the optimizer steps; None for trials in lock step, whose state nobody keeps.
    """

    number: int
    loss: Tensor
    terms: Mapping[str, Tensor]
    optimizer: torch.optim.Optimizer
    average: Mapping[str, Tensor] | None = None
    split: Split = WHOLE
    weights: OwnWeights | None = None


class Diverged(ArithmeticError):
    """The loss or the score is not finite; trying again would end the same way."""


def trial_recipe(trial: TrialConfig, hyperparameters: Hyperparameters, train_examples: int) -> Recipe:
    """A trial: `trial.steps` steps at the constant searched rate, or on the searched schedule, without warm-up."""
    return Recipe(
        hyperparameters=hyperparameters,
        steps=0 if hyperparameters.trained == "nothing" else trial.steps,
        batch_size=min(trial.batch_size, train_examples),
        schedule=hyperparameters.schedule or "constant",
        clip_grad_norm=trial.clip_grad_norm,
    )


def final_recipe(final: FinalConfig, hyperparameters: Hyperparameters, train_examples: int) -> Recipe:
    """The full fine-tune: whole epochs, warm-up and a schedule that scales the given rate."""
    batch_size = min(final.batch_size, train_examples)
    steps = 0 if hyperparameters.trained == "nothing" else final.epochs * (train_examples // batch_size)
    return Recipe(
        hyperparameters=hyperparameters,
        steps=steps,
        batch_size=batch_size,
        schedule=hyperparameters.schedule or final.schedule,
        warmup_steps=round(final.warmup_fraction * steps),
        clip_grad_norm=final.clip_grad_norm,
    )


def finetune(workspace: Workspace, recipe: Recipe, resume: Mapping[str, Any] | None = None, report_norms: bool = False) -> Iterator[Step]:
    """Fine-tune `workspace.model` from the zero-shot weights and yield after each step.

    The caller may score the model between steps. `resume` is what `training_state` returned after some step of the same recipe.
    `report_norms` has each `Step` tell the weight norms' values, a pass over all weights that changes no result. Nothing here waits for
    the device; a loss that is not finite is found by `check_finite`, and weights that are not finite by the loss of the step after or by
    the score.

    Raises:
        ConfigError: the hyperparameters contradict each other, or need what the study does not have, or what sharded weights do not allow.
        torch.OutOfMemoryError: a step does not fit the memory in whatever parts, or what goes with the model does not. The next fine-tune
            can do as if nothing had happened.
    """
    hp, model, collective = recipe.hyperparameters, workspace.model, workspace.collective
    batch_size = min(recipe.batch_size, len(training_pool(workspace, hp)))
    check_shares(workspace, batch_size)
    if workspace.sharded:
        check_shardable(hp)
    start_from(workspace, hp)
    collective.copy_from_first(held_everywhere(model))  # a probe, or a head, may round otherwise on another kind of processor
    weights = OwnWeights(model, workspace.zero_shot, collective)
    alone = collective.size == 1
    step_loss = StepLoss(workspace, hp, weights.parameters, weights.anchor) if alone else SharedStepLoss(workspace, hp, weights)
    most = most_parts(workspace, len(range(batch_size)[share(batch_size, 0, collective.size)]))

    def gradients(step: int, parts: int) -> tuple[Tensor, Mapping[str, Tensor], Split]:
        return step_loss.add_gradients(draw_batch(workspace, recipe, step), parts, report_norms)

    state = None if resume is None else resume["optimizer"]
    update = Update.of(workspace, hp, weights, recipe.steps, gradients, most, state)
    first = 0
    if resume is not None:
        first = restore_training_state(workspace, update, resume)
        resume = state = None  # frees a second copy of the model and its optimizer state
    if recipe.steps == 0:
        yield Step(0, torch.zeros((), device=workspace.device), {}, update.optimizer, weights=weights)
    statistics = running_statistics(workspace)

    def undo() -> None:
        model.zero_grad(set_to_none=True)
        restore_statistics(statistics)

    def own_examples(step: int) -> Tensor:
        examples = drawn_examples(workspace, recipe, step)
        return examples[share_of(collective, len(examples))]

    for step in workspace.train.ahead(range(first, recipe.steps), own_examples, recipe.batch_size):
        training_mode(workspace)
        loss, terms, split = workspace.fitting(functools.partial(gradients, step), most, undo)
        statistics.clear()  # of the first step only, where memory runs out if it does
        update.step(step, lr_multiplier(step, recipe.steps, recipe.warmup_steps, recipe.schedule), recipe.clip_grad_norm)
        if model.logit_scale.requires_grad:
            model.logit_scale.data.clamp_(0, MAX_LOG_LOGIT_SCALE)
        yield Step(step + 1, loss.detach(), terms, update.optimizer, update.average, split, weights)


def draw_batch(workspace: Workspace, recipe: Recipe, step: int) -> Batch:
    """What a step draws: examples, their augmentation, their texts. Seeds what the model itself draws, too."""
    hp = recipe.hyperparameters
    rng = step_generator(hp.seed, step)
    examples = drawn_examples(workspace, recipe, step)
    rows = share_of(workspace.collective, len(examples))
    images = workspace.train_transform(workspace.train.take(examples[rows]), rng, len(examples), rows)
    tokens = text_index = None
    if needs_text(hp.loss_weights):
        tokens, text_index = workspace.texts.pick(examples, workspace.train.labels_cpu[examples], rng)
    labels = workspace.train.labels[sent(examples, workspace.device)]
    return Batch(examples, images, labels, tokens, text_index, rng)


def drawn_examples(workspace: Workspace, recipe: Recipe, step: int) -> Tensor:
    """The examples of TRAIN that a step draws, (batch,) int64 on the CPU; draws from no generator but its own."""
    pool = training_pool(workspace, recipe.hyperparameters)
    return pool[batch_examples(len(pool), min(recipe.batch_size, len(pool)), recipe.hyperparameters.seed, step)]


def step_generator(seed: int, step: int) -> torch.Generator:
    """The CPU generator of a step's augmentation and prompts; also seeds what the model itself draws (dropout)."""
    mixed = (seed * 1_000_003 + step + 1) % (2**63)
    torch.manual_seed(mixed)
    return torch.Generator().manual_seed(mixed)


def batch_examples(examples: int, batch_size: int, seed: int, step: int) -> Tensor:
    """The examples of a step, (batch,) int64: epoch after epoch without replacement, each in an order drawn from (seed, epoch).

    The incomplete batch at the end of an epoch is dropped.
    """
    steps_per_epoch = examples // batch_size
    epoch, position = divmod(step, steps_per_epoch)
    return _epoch_order(examples, seed, epoch)[position * batch_size : (position + 1) * batch_size]


@functools.lru_cache(maxsize=2)
def _epoch_order(examples: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(examples, generator=torch.Generator().manual_seed((seed * 1_000_003 + epoch) % (2**63) ^ 0x5EED))


def check_finite(losses: list[Tensor], step: int) -> float:
    """The mean of some steps' losses; waits for the device once.

    Raises:
        Diverged: one of them is not finite.
    """
    values = torch.stack(losses)
    if not bool(torch.isfinite(values).all()):
        raise Diverged(f"the loss is not finite within the {len(losses)} steps before step {step}")
    return float(values.mean())


def training_state(workspace: Workspace, step: Step) -> dict[str, Any]:
    """Everything `finetune` needs to go on after `step`: tensors and plain numbers only, of whole weights.

    The tensors are the live ones: save or copy them before the next step. Those of sharded weights are copies on the CPU, which all processes
    must ask for and the first one alone gets.
    """
    state: dict[str, Any] = {"step": step.number, "batch_split": workspace.batch_split}
    if workspace.sharded:
        assert step.weights is not None
        model, wanted = workspace.model, workspace.collective.rank == 0
        state["model"] = gathered(own_state(model), model, wanted)
        state["optimizer"] = step.weights.whole_optimizer_state(step.optimizer, wanted)
        return state if step.average is None else {**state, "average": gathered(step.average, model, wanted)}
    state["model"], state["optimizer"] = dict(workspace.model.state_dict()), step.optimizer.state_dict()
    return state if step.average is None else {**state, "average": dict(step.average)}


def restore_training_state(workspace: Workspace, update: Update, state: Mapping[str, Any]) -> int:
    """Load what `training_state` returned, with however many processes; the number of steps already done."""
    copy_state(workspace.model, parts_of(state["model"], workspace.model) if workspace.sharded else state["model"])
    update.load(state["optimizer"], state.get("average"))
    workspace.batch_split = int(state.get("batch_split", 1))  # steps go on as they would have, to the bit; sharded weights ignore it
    return int(state["step"])
