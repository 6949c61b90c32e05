"""The only training loop. Trials, baselines and the final fine-tune differ by configuration alone.

    restore the zero-shot weights -> for each step: batch, one forward for all loss terms, backward, scaled rate, AdamW

References: AutoFT, arXiv 2401.10220 (weighted sum of loss terms, AdamW over every parameter); WiSE-FT and FLYP (per-step cosine
with warm-up). Everything random is a function of (seed, step), so a run resumed at a step goes on as if it had not stopped.
"""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from autoft.config import FinalConfig, TrialConfig
from autoft.losses import StepOutputs, backward, needs_text, weighted_loss
from autoft.models.state import trainable_parameters
from autoft.optim import build_optimizer, lr_multiplier, scale_learning_rates
from autoft.optim.schedules import Schedule
from autoft.search_space import Hyperparameters
from autoft.workspace import Workspace

MAX_LOG_LOGIT_SCALE = 4.605170185988092  # ln 100, the bound open_clip trains with


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One fine-tune in full: what is minimised, by which rate, for how many steps, from which randomness."""

    hyperparameters: Hyperparameters
    steps: int
    batch_size: int
    schedule: Schedule = "constant"
    warmup_steps: int = 0
    clip_grad_norm: float | None = None

    @property
    def samples(self) -> int:
        """Training examples seen."""
        return self.steps * self.batch_size


@dataclass(frozen=True)
class Step:
    """One finished step. `loss` and `terms` are scalars on the device: reading them waits for it.

    number: from 1.
    loss: the weighted sum of `terms`.
    terms: each term's unweighted value at the weights the step started from. The weight norms are among them if `finetune` was told to
        `report_norms`; they count in training in any case.
    optimizer: as it is after the step.
    """

    number: int
    loss: Tensor
    terms: Mapping[str, Tensor]
    optimizer: torch.optim.Optimizer


class Diverged(ArithmeticError):
    """The loss or the score is not finite; trying again would end the same way."""


def trial_recipe(trial: TrialConfig, hyperparameters: Hyperparameters, train_examples: int) -> Recipe:
    """A trial: `trial.steps` steps at the constant searched rate."""
    return Recipe(
        hyperparameters=hyperparameters,
        steps=trial.steps,
        batch_size=min(trial.batch_size, train_examples),
        clip_grad_norm=trial.clip_grad_norm,
    )


def final_recipe(final: FinalConfig, hyperparameters: Hyperparameters, train_examples: int) -> Recipe:
    """The full fine-tune: whole epochs, warm-up and a schedule that scales the given rate."""
    batch_size = min(final.batch_size, train_examples)
    steps = final.epochs * (train_examples // batch_size)
    return Recipe(
        hyperparameters=hyperparameters,
        steps=steps,
        batch_size=batch_size,
        schedule=final.schedule,
        warmup_steps=round(final.warmup_fraction * steps),
        clip_grad_norm=final.clip_grad_norm,
    )


def finetune(workspace: Workspace, recipe: Recipe, resume: Mapping[str, Any] | None = None, report_norms: bool = False) -> Iterator[Step]:
    """Fine-tune `workspace.model` from the zero-shot weights and yield after each step.

    The caller may score the model between steps. `resume` is what `training_state` returned after some step of the same recipe.
    `report_norms` has each `Step` tell the weight norms' values, a pass over all weights that changes no result. Nothing here waits for
    the device; a loss that is not finite is found by `check_finite`, and weights that are not finite by the loss of the step after or by
    the score.
    """
    hp, model = recipe.hyperparameters, workspace.model
    model.train_text_tower(needs_text(hp.loss_weights))
    workspace.zero_shot.restore(model)
    model.zero_grad(set_to_none=True)  # a fine-tune that was broken off may have left gradients
    parameters = trainable_parameters(model)
    optimizer = build_optimizer(model, hp.lr, hp.weight_decay, hp.layer_lr, hp.layer_weight_decay)
    weights = {term: torch.tensor(weight, device=workspace.device) for term, weight in hp.loss_weights.items()}
    anchor = workspace.zero_shot.parameters_of(model)
    first = 0
    if resume is not None:
        first = restore_training_state(workspace, optimizer, resume)
        resume = None  # frees a second copy of the model and its optimizer state
    for step in range(first, recipe.steps):
        model.train()
        if workspace.config.model.batch_norm == "frozen":
            model.freeze_batch_norm_statistics()
        outputs = _forward(workspace, recipe, step, parameters, anchor)
        loss, terms = weighted_loss(weights, outputs, with_norms=report_norms)
        backward(loss, weights, outputs)
        if recipe.clip_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, recipe.clip_grad_norm, foreach=True)
        scale_learning_rates(optimizer, lr_multiplier(step, recipe.steps, recipe.warmup_steps, recipe.schedule))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if model.logit_scale.requires_grad:
            model.logit_scale.data.clamp_(0, MAX_LOG_LOGIT_SCALE)
        yield Step(step + 1, loss.detach(), terms, optimizer)


def _forward(workspace: Workspace, recipe: Recipe, step: int, parameters: list[torch.nn.Parameter], anchor: list[Tensor]) -> StepOutputs:
    """One forward pass that serves every loss term of the recipe."""
    hp, model = recipe.hyperparameters, workspace.model
    rng = step_generator(hp.seed, step)
    examples = batch_examples(len(workspace.train), recipe.batch_size, hp.seed, step)
    images = workspace.train_transform(workspace.train.take(examples), rng)
    text_features = text_index = None
    with workspace.autocast():
        image_features = model.image_features(images)
        logits = model.head(image_features)
        if needs_text(hp.loss_weights):
            tokens, text_index = workspace.texts.pick(examples, workspace.train.labels_cpu[examples], rng)
            text_features = model.text_features(tokens)
    return StepOutputs(
        logits=logits,
        labels=workspace.train.labels[examples.to(workspace.device, non_blocking=True)],
        image_features=image_features,
        text_features=text_features,
        text_index=text_index,
        logit_scale=model.logit_scale.exp() if text_features is not None else None,
        parameters=parameters,
        anchor=anchor,
    )


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
    """Everything `finetune` needs to go on after `step`: tensors and plain numbers only.

    The tensors are the live ones: save or copy them before the next step.
    """
    return {"step": step.number, "model": dict(workspace.model.state_dict()), "optimizer": step.optimizer.state_dict()}


def restore_training_state(workspace: Workspace, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> int:
    """Load what `training_state` returned; the number of steps already done."""
    workspace.model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])
