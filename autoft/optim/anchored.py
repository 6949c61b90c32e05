"""What FTP, TPGM and SPD share: a wrapper around an optimizer that knows, by name, where each parameter started (its anchor)."""

import difflib
import fnmatch
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from autoft.errors import ConfigError
from autoft.optim.rows import Rows, row_shape

_OWN = "anchored"  # the wrapper's entry in a state dict, beside the base's `state` and `param_groups`


@dataclass(frozen=True)
class Bundle:
    """The constrained parameters of one device and dtype, sorted by the length of their rows; all lists are parallel.

    groups: the index of each one's group in the optimizer's `param_groups`.
    """

    names: Sequence[str]
    parameters: Sequence[Tensor]
    anchors: Sequence[Tensor]
    groups: Sequence[int]
    rows: Rows

    @cached_property
    def members(self) -> dict[int, Tensor]:
        """For each group with parameters here: (tensors,), 1 for its own and 0 for others."""
        found = sorted(set(self.groups))
        flags = torch.tensor([[float(own == group) for own in self.groups] for group in found])
        return dict(zip(found, flags.to(self.parameters[0].device, self.rows.dtype), strict=True))

    def with_gradient(self) -> list[int]:
        """The positions of the parameters that have a gradient now; the others are left alone in this step."""
        return [i for i, parameter in enumerate(self.parameters) if parameter.grad is not None]

    def mask(self, active: Sequence[int]) -> Tensor | None:
        """(tensors,) bool: which are active; None if all are. Copied to the device without waiting for it."""
        if len(active) == len(self.parameters):
            return None
        chosen = set(active)
        device = self.parameters[0].device
        flags = torch.tensor([i in chosen for i in range(len(self.parameters))], pin_memory=device.type == "cuda")
        return flags.to(device, non_blocking=True)

    def write_deviations(self, active: Sequence[int], views: Sequence[Tensor]) -> None:
        """Overwrite the active entries of `views` with parameter - anchor."""
        if not active:
            return
        targets = [views[i] for i in active]
        torch._foreach_copy_(targets, [self.parameters[i] for i in active])
        torch._foreach_sub_(targets, [self.anchors[i] for i in active])

    def subtract(self, active: Sequence[int], flat: Tensor) -> None:
        """Subtract the active tensors' parts of a flat buffer from their parameters."""
        if active:
            views = self.rows.views(flat)
            torch._foreach_sub_([self.parameters[i] for i in active], [views[i] for i in active])

    def write_sums(self, flat: Tensor) -> None:
        """Overwrite every parameter with anchor + its part of a flat buffer."""
        torch._foreach_copy_(list(self.parameters), list(self.anchors))
        torch._foreach_add_(list(self.parameters), self.rows.views(flat))


def multiply(active: Sequence[int], views: Sequence[Tensor], factors: Sequence[Tensor | None]) -> None:
    """Multiply the active entries of `views` by their entries of `factors`, in place."""
    chosen = [factor for i in active if (factor := factors[i]) is not None]
    if chosen:
        torch._foreach_mul_([views[i] for i in active], chosen)


class AnchoredOptimizer(torch.optim.Optimizer):
    """A base optimizer (AdamW, SGD, fused or not) of which some parameters are also held near their anchors.

    The base is what takes steps on the weights, with its own decay and momentum. `param_groups`, `state` and `defaults` *are* the
    base's, so that schedulers and whoever rescales `group["lr"]` act on it. `state_dict` is the base's with an entry more, by parameter
    name, and loads with `weights_only=True`.
    """

    base: torch.optim.Optimizer

    def __init__(
        self,
        base: torch.optim.Optimizer,
        named_parameters: Iterable[tuple[str, Tensor]],
        anchor: Mapping[str, Tensor],
        exclude: Iterable[str] = (),
        whole: bool = False,
    ) -> None:
        """
        Args:
            base: built over the parameters to train.
            named_parameters: at least those of `base`; more (a model's frozen ones) do no harm.
            anchor: each constrained parameter's start by name, such as `ZeroShotState.tensors`: same shape, dtype and device. It is
                used as it is, not copied. More entries do no harm.
            exclude: fnmatch patterns of names (or one pattern) that only the base moves.
            whole: a tensor is one row, whatever its shape.

        Raises:
            ConfigError: a pattern of `exclude` matches no name.
            ValueError: a parameter of `base` has no name, or no anchor that fits, or its anchor shares storage with a parameter.
        """
        self.base = base
        super().__setstate__({})  # hooks and profiling as every optimizer has; groups and state are the base's
        named = list(named_parameters)
        excluded = matching_names([name for name, _ in named], (exclude,) if isinstance(exclude, str) else exclude)
        constrained = [item for item in _named_groups(base, named) if item[0] not in excluded and item[1].numel()]
        _check_anchor(constrained, anchor)
        self.bundles = _bundles(constrained, anchor, whole)

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The base's own groups."""
        return self.base.param_groups

    @property
    def state(self) -> "defaultdict[Tensor, Any]":  # type: ignore[override]
        """The base's own state."""
        return self.base.state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """The base's own defaults."""
        return self.base.defaults

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refused: a new parameter needs a name and an anchor."""
        raise NotImplementedError(f"{type(self).__name__} takes no further groups: build the base with all of them, then wrap it")

    def zero_grad(self, set_to_none: bool = True) -> None:
        """The base's."""
        self.base.zero_grad(set_to_none)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of the base and what the method makes of it. Nothing waits for the device.

        Clip and unscale gradients before. `closure`, if given, is called once, before all else; its value is returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            before = self._before_step()
            self.base.step()
            self._after_step(before)
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The base's state dict with the wrapper's own state in `anchored`. Tensors are the live ones, as in every optimizer."""
        return {**self.base.state_dict(), _OWN: self._own_state()}

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load what `state_dict` of an optimizer of the same kind and parameters returned; the values are copied.

        Raises:
            ValueError: it is the state of another kind of optimizer, or of other parameters.
        """
        if _OWN not in state_dict:
            raise ValueError(f"this is no state of {type(self).__name__}: it has no entry {_OWN!r}, only {sorted(state_dict)}")
        self._load_own_state(state_dict[_OWN])
        self.base.load_state_dict({key: value for key, value in state_dict.items() if key != _OWN})

    @abstractmethod
    def _before_step(self) -> Any:
        """What has to be known of gradients and weights before the base moves; goes to `_after_step`."""

    @abstractmethod
    def _after_step(self, before: Any) -> None:
        """Put the weights that the base has moved where the method wants them."""

    @abstractmethod
    def _own_state(self) -> dict[str, Any]:
        """Tensors and plain numbers, by parameter name."""

    @abstractmethod
    def _load_own_state(self, state: Mapping[str, Any]) -> None:
        """Take over what `_own_state` returned. Raises ValueError if it does not fit."""


def matching_names(names: Sequence[str], patterns: Iterable[str]) -> set[str]:
    """The names that match one of the fnmatch patterns.

    Raises:
        ConfigError: a pattern matches none; a typing mistake would hold a new head at its random start (TPGM's code did so until 2023).
    """
    found: set[str] = set()
    for pattern in patterns:
        matches = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
        if not matches:
            near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.4) or list(names[:3])
            raise ConfigError(f"exclude: {pattern!r} matches no parameter's name; near it are {', '.join(near)}")
        found.update(matches)
    return found


def check_range(name: str, value: float, low: float, high: float = float("inf"), open_low: bool = False) -> None:
    """Raises ConfigError unless low <= value <= high (low < value if `open_low`) and value is finite."""
    if not (low <= value <= high) or value == float("inf") or (open_low and value == low):
        bound = f"> {low:g}" if open_low else f">= {low:g}"
        raise ConfigError(f"{name} = {value!r} is not valid; it must be {bound}" + (f" and <= {high:g}" if high < float("inf") else ""))


def _named_groups(base: torch.optim.Optimizer, named: Sequence[tuple[str, Tensor]]) -> list[tuple[str, Tensor, int]]:
    """(name, parameter, index of its group) of every parameter of the base."""
    names = {id(parameter): name for name, parameter in reversed(named)}
    found = [(names.get(id(parameter), ""), parameter, i) for i, group in enumerate(base.param_groups) for parameter in group["params"]]
    unnamed = sum(not name for name, _, _ in found)
    if unnamed:
        raise ValueError(f"{unnamed} of the {len(found)} parameters of the base optimizer are not in named_parameters")
    return found


def _check_anchor(constrained: Sequence[tuple[str, Tensor, int]], anchor: Mapping[str, Tensor]) -> None:
    storages = {parameter.untyped_storage().data_ptr() for _, parameter, _ in constrained}
    for name, parameter, _ in constrained:
        if name not in anchor:
            raise ValueError(f"the anchor has no {name!r}")
        start = anchor[name]
        if (start.shape, start.dtype, start.device) != (parameter.shape, parameter.dtype, parameter.device):
            wanted = f"{tuple(parameter.shape)} {parameter.dtype} on {parameter.device}"
            raise ValueError(f"the anchor's {name!r} is {tuple(start.shape)} {start.dtype} on {start.device}, the parameter {wanted}")
        if start.untyped_storage().data_ptr() in storages:
            raise ValueError(f"the anchor's {name!r} shares storage with a parameter, so it would move with it; clone it")


def _bundles(constrained: Sequence[tuple[str, Tensor, int]], anchor: Mapping[str, Tensor], whole: bool) -> list[Bundle]:
    kinds: dict[tuple[torch.device, torch.dtype], list[tuple[str, Tensor, int]]] = defaultdict(list)
    for item in constrained:
        kinds[item[1].device, item[1].dtype].append(item)
    bundles = []
    for items in kinds.values():
        items.sort(key=lambda item: row_shape(item[1], whole)[1])
        names, parameters, groups = map(list, zip(*items, strict=True))
        bundles.append(Bundle(names, parameters, [anchor[name].detach() for name in names], groups, Rows(parameters, whole)))
    return bundles
