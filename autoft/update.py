"""How a step's gradients become new weights: the optimizer a fine-tune asks for, its constraint, and the moving average."""

import fnmatch
import functools
from collections.abc import Callable, Mapping
from typing import Any, get_args

import torch
from torch import Tensor

from autoft.batch_split import recomputed
from autoft.collective import together
from autoft.config import Constraint
from autoft.errors import ConfigError
from autoft.losses.classification import cross_entropy
from autoft.models import ClipClassifier
from autoft.models.averaging import beta_weight, update_average
from autoft.models.shards import own_state, parts_of
from autoft.on_device import sent
from autoft.optim import build_optimizer, scale_learning_rates
from autoft.optim.ftp import FTP
from autoft.optim.saft import GradientMagnitudes, select
from autoft.optim.sparse_adamw import SparseAdamW, kept_indices, named_groups
from autoft.optim.spd import SPD
from autoft.optim.tpgm import TPGM
from autoft.own_weights import OwnWeights
from autoft.search_space import Hyperparameters
from autoft.start import held_out_pool, training_mode
from autoft.workspace import Workspace

HEAD_PARAMETERS = ("head.*", "core_head.*")
BETA = 0.5  # of CLIPood's average (Shu et al. 2023)


class Update:
    """The optimizer of one fine-tune and what goes with it. Nothing here waits for the device.

    optimizer: as built from the hyperparameters; its state is part of the training state.
    average: moving average of the floating entries of the model's state by name, from the start on, of sharded ones this process's part;
        None without averaging.
    """

    def __init__(
        self,
        workspace: Workspace,
        hyperparameters: Hyperparameters,
        weights: OwnWeights,
        optimizer: torch.optim.Optimizer,
        total_steps: int,
    ) -> None:
        self.optimizer = optimizer
        self.average: dict[str, Tensor] | None = None
        if hyperparameters.averaging == "beta":
            self.average = {name: tensor.clone() for name, tensor in _floating(own_state(workspace.model)).items()}
        self._workspace, self._hp, self._weights, self._total_steps = workspace, hyperparameters, weights, total_steps
        self._seen: float | None = None  # sum of the weights in the average so far

    @classmethod
    def of(
        cls,
        workspace: Workspace,
        hyperparameters: Hyperparameters,
        weights: OwnWeights,
        total_steps: int,
        gradients: Callable[[int, int], Any],
        most_parts: int,
        state: Mapping[str, Any] | None = None,
    ) -> "Update":
        """Build it for a model at the start of its fine-tune.

        Args:
            gradients: adds the gradients of a step's loss, given its number and the parts to compute it in, to the parameters'; SAFT calls
                it to find its mask.
            most_parts: that a step can be computed in.
            state: of the optimizer, if the fine-tune is to go on from there; `load` it afterwards. It spares SAFT the search for its mask.

        Raises:
            ConfigError: the hyperparameters contradict each other.
            torch.OutOfMemoryError: what it keeps does not fit the memory, or a gradient of SAFT's mask, in whatever parts.
        """
        optimizer = _optimizer(workspace, hyperparameters, gradients, most_parts, state)
        if weights.sharded:
            weights.stand_in(optimizer)
        return cls(workspace, hyperparameters, weights, optimizer, total_steps)

    def step(self, step: int, multiplier: float, clip_grad_norm: float | None) -> None:
        """Turn the gradients that are there into new weights, and drop them.

        Args:
            step: its number from 0.
            multiplier: of every group's rate.
            clip_grad_norm: the largest norm the gradient may have; of SAFT's that of the entries that train.

        Raises:
            torch.OutOfMemoryError: the optimizer's state does not fit the memory beside weights and gradients: no smaller batch would help.
                Or TPGM's backward pass on held-out examples does not, though the step's own did.
        """
        if clip_grad_norm is not None and isinstance(self.optimizer, SparseAdamW):
            self.optimizer.clip_grad_norm_(clip_grad_norm)
        elif clip_grad_norm is not None:
            self._weights.clip_gradients(clip_grad_norm)
        scale_learning_rates(self.optimizer, multiplier)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if isinstance(self.optimizer, TPGM):
            self.optimizer.project(lambda: _held_out_loss(self._workspace, self._hp, step))
            self._workspace.collective.copy_from_first(self._weights.parameters)  # each process has computed it; no two need round alike
        if self._hp.averaging == "beta":
            self._average(step)

    def load(self, optimizer: Mapping[str, Any], average: Mapping[str, Tensor] | None) -> None:
        """Go on from a training state, which is of whole weights."""
        own = self._weights.own_optimizer_state(self.optimizer, optimizer) if self._weights.sharded else dict(optimizer)
        self.optimizer.load_state_dict(own)
        if self._hp.constraint == "none":
            _lay_out(self.optimizer)
        if average is not None:
            self.average = parts_of(average, self._workspace.model)

    def _average(self, step: int) -> None:
        state = _floating(own_state(self._workspace.model))
        assert self.average is not None
        if self._seen is None:
            self._seen = sum(beta_weight(earlier, self._total_steps, BETA) for earlier in range(step + 1))
        weight = beta_weight(step + 1, self._total_steps, BETA)
        self._seen += weight
        update_average(list(self.average.values()), [state[name] for name in self.average], weight / self._seen)


def _lay_out(optimizer: torch.optim.Optimizer) -> None:
    """Give what an optimizer keeps for each entry of a weight that weight's layout in memory, which fused kernels take for granted.

    A state of sharded weights is of contiguous tensors, a convolution's own may be channels-last.
    """
    for weight, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == weight.shape and value.stride() != weight.stride():
                values[name] = torch.empty_like(weight, dtype=value.dtype, requires_grad=False).copy_(value)


def _floating(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in state.items() if tensor.is_floating_point()}


def unconstrained_optimizer(model: ClipClassifier, hp: Hyperparameters) -> torch.optim.Optimizer:
    """What the hyperparameters ask for, without their constraint."""
    return build_optimizer(
        model,
        hp.lr,
        hp.weight_decay,
        hp.layer_lr,
        hp.layer_weight_decay,
        layer_decay=hp.layer_decay,
        name=hp.optimizer,
        momentum=hp.momentum,
        beta2=hp.beta2,
    )


def _optimizer(
    workspace: Workspace, hp: Hyperparameters, gradients: Callable[[int, int], Any], most_parts: int, state: Mapping[str, Any] | None
) -> torch.optim.Optimizer:
    model = workspace.model
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    base = unconstrained_optimizer(model, hp)
    if hp.constraint == "none":
        return base
    if hp.constraint == "saft" and hp.optimizer != "adamw":
        raise ConfigError(f"optimizer = {hp.optimizer!r} is not possible with constraint saft, whose sparse optimizer is AdamW")
    if hp.constraint == "saft":
        kept = _largest_gradients(workspace, hp, named, gradients, most_parts) if state is None else kept_indices(state)
        return SparseAdamW(named_groups(base.param_groups, named.items()), kept, betas=(hp.momentum, hp.beta2))
    anchor = {name: workspace.zero_shot.tensors[name] for name in named}
    if hp.start == "linear_probe":  # the zero-shot head is not where this one starts
        anchor |= {name: parameter.detach().clone() for name, parameter in named.items() if name.startswith("head.")}
    exclude = [pattern for pattern in HEAD_PARAMETERS if fnmatch.filter(named, pattern)]
    if hp.constraint == "ftp":
        return FTP(base, named.items(), anchor, k=hp.strength, mu=hp.mu, mu_reference_lr=hp.mu_reference_lr, exclude=exclude)
    if hp.constraint == "tpgm":
        return TPGM(base, named.items(), anchor, mu=hp.mu, exclude=exclude)
    if hp.constraint == "spd":
        return SPD(base, named.items(), anchor, strength=hp.strength)
    raise ConfigError(f"constraint = {hp.constraint!r} must be one of {', '.join(get_args(Constraint))}")


def _largest_gradients(
    workspace: Workspace,
    hp: Hyperparameters,
    named: Mapping[str, torch.nn.Parameter],
    gradients: Callable[[int, int], Any],
    most_parts: int,
) -> dict[str, Tensor]:
    """The entries SAFT trains, by parameter: those with the largest summed gradient at the start (Nguyen et al. 2024, arXiv 2407.03036).

    The gradient is that of the recipe's own loss: cross-entropy in SAFT, whatever else is in it where a search combines them.
    """

    def summed(parts: int) -> dict[str, Tensor]:
        magnitudes = GradientMagnitudes(named.items(), hp.mask_reduction)
        for step in range(hp.mask_batches):
            training_mode(workspace)
            gradients(step, parts)
            magnitudes.add()
        return magnitudes.result()

    drop = functools.partial(workspace.model.zero_grad, set_to_none=True)
    indices = select(workspace.fitting(summed, most_parts, undo=drop), hp.density)
    drop()
    buffers = {name for name, _ in workspace.model.named_buffers()}
    with torch.no_grad():  # BatchNorm has counted the batches
        for name, tensor in workspace.model.state_dict().items():
            if name in buffers:
                tensor.copy_(workspace.zero_shot.tensors[name])
    return indices


def _held_out_loss(workspace: Workspace, hp: Hyperparameters, step: int) -> Tensor:
    """Cross-entropy on a batch that is not trained on, in evaluation mode."""
    pool = held_out_pool(workspace, hp)
    rng = torch.Generator().manual_seed((hp.seed * 1_000_003 + step + 1) % (2**63) ^ 0x7E57)
    examples = pool[torch.randint(len(pool), (min(workspace.config.trial.batch_size, len(pool)),), generator=rng)]
    images = workspace.train_transform(workspace.train.take(examples), rng)
    labels = workspace.train.labels[sent(examples, workspace.device)]
    workspace.model.eval()

    def loss(parts: int) -> Tensor:
        with workspace.autocast(cache=parts == 1):
            (features,) = recomputed(lambda part: (workspace.model.image_features(part),), images, parts)
            logits = workspace.model.head(features)
        return cross_entropy(logits, labels)

    return workspace.fitting(lambda parts: together(workspace.collective, lambda: loss(parts)), len(examples))
