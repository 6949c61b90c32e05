"""The weights a fine-tune trains, as one process holds them: whole, or its own parts of sharded ones.

Optimizer, weight norms and clipping work on these, and know nothing of shards: a sum over all weights is one over own parts, added up over
the processes. On disk everything is whole.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from autoft.collective import Collective
from autoft.losses.weight_norms import add_norm_gradients, norm_values
from autoft.models import ClipClassifier, ZeroShotState
from autoft.models.shards import own_part, part_of, whole_of
from autoft.models.state import trainable_parameters


class OwnWeights:
    """One fine-tune's trainable weights in this process.

    parameters: plain leaves in the order of `trainable_parameters`: of a sharded parameter one over its shard's memory, else the parameter.
    anchor: their zero-shot values.
    sharded: whether any of them is only a part.
    """

    def __init__(self, model: ClipClassifier, zero_shot: ZeroShotState, collective: Collective) -> None:
        self._of_model, self._collective = trainable_parameters(model), collective
        self.parameters = [nn.Parameter(own_part(found)) if isinstance(found, DTensor) else found for found in self._of_model]
        self.anchor = zero_shot.parameters_of(model)
        self._cut = [isinstance(found, DTensor) for found in self._of_model]
        self.sharded = any(self._cut)
        self._entries = sum(found.numel() for found in self._of_model)  # of sharded ones all, wherever they are

    @property
    def everywhere(self) -> list[nn.Parameter]:
        """Those that every process holds whole, and whose gradients have to be added up."""
        return [own for own, cut in zip(self.parameters, self._cut, strict=True) if not cut]

    def take_gradients(self) -> None:
        """Move the gradients that a backward pass has left at sharded parameters, summed over the processes, to their own parts."""
        for own, found in zip(self.parameters, self._of_model, strict=True):
            if found is not own and found.grad is not None:
                own.grad = own_part(found.grad)
                found.grad = None

    def add_norm_gradients(self, weights: Mapping[str, Tensor]) -> None:
        """Add the weighted norms' gradient; see `autoft.losses.weight_norms`."""
        add_norm_gradients(self.parameters, self.anchor, weights, self._entries)

    def norm_values(self, names: tuple[str, ...]) -> dict[str, Tensor]:
        """The value of each norm, over the weights of all processes; all of them must ask."""
        if not self.sharded:
            return norm_values(self.parameters, self.anchor, names)
        counted = self._counted()
        own = norm_values([self.parameters[i] for i in counted], [self.anchor[i] for i in counted], names, self._entries)
        self._collective.add_up(list(own.values()))
        return own

    def clip_gradients(self, largest_norm: float) -> None:
        """Scale all gradients so that the norm of all together, in all processes, is at most that; all of them must ask."""
        if not self.sharded:
            torch.nn.utils.clip_grad_norm_(self.parameters, largest_norm, foreach=True)
            return
        own = [gradient for i in self._counted() if (gradient := self.parameters[i].grad) is not None]
        square = torch.nn.utils.get_total_norm(own, foreach=True).square()
        self._collective.add_up([square])
        torch.nn.utils.clip_grads_with_norm_(self.parameters, largest_norm, square.sqrt(), foreach=True)

    def _counted(self) -> list[int]:
        """What this process contributes to a sum over all weights: its parts, and in the first process what all hold whole."""
        return [i for i, cut in enumerate(self._cut) if cut or self._collective.rank == 0]

    def stand_in(self, optimizer: torch.optim.Optimizer) -> None:
        """Have a new optimizer over the model's parameters step these instead."""
        own = dict(zip(map(id, self._of_model), self.parameters, strict=True))
        for group in optimizer.param_groups:
            group["params"] = [own[id(parameter)] for parameter in group["params"]]

    def whole_optimizer_state(self, optimizer: torch.optim.Optimizer, wanted: bool) -> dict[str, Any]:
        """The optimizer's `state_dict` with whole tensors on the CPU, gathered one at a time; all processes must ask.

        Args:
            wanted: whether this process is to have it; else it gets no tensors.
        """
        stored, found = optimizer.state_dict(), dict[int, dict[str, Any]]()
        like = self._in_order_of(optimizer)
        for number, values in stored["state"].items():
            whole = {name: whole_of(value, like[number]) if _per_entry(value) else value for name, value in values.items()}
            if wanted:
                found[number] = {name: value.to("cpu", copy=True) if isinstance(value, Tensor) else value for name, value in whole.items()}
        return {**stored, "state": found}

    def own_optimizer_state(self, optimizer: torch.optim.Optimizer, stored: Mapping[str, Any]) -> dict[str, Any]:
        """A whole `state_dict` cut to what this process holds, as the memory of its weights is laid out."""
        like, found = self._in_order_of(optimizer), dict[int, dict[str, Any]]()
        for number, values in stored["state"].items():
            found[number] = {name: part_of(value, like[number]) if _per_entry(value) else value for name, value in values.items()}
        return {**stored, "state": found}

    def _in_order_of(self, optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
        """The model's parameters as an optimizer's `state_dict` numbers them."""
        of_model = dict(zip(map(id, self.parameters), self._of_model, strict=True))
        return [of_model[id(own)] for group in optimizer.param_groups for own in group["params"]]


def _per_entry(value: Any) -> bool:
    """Whether an optimizer keeps a value for each of a weight's entries, rather than one for the weight."""
    return isinstance(value, Tensor) and value.dim() > 0
