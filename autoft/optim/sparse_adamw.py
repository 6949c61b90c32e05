"""AdamW over a few entries of each parameter: what SAFT trains with.

The update is PyTorch's AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101). Gradients and weights of the kept entries are gathered into one
vector for each group, worked on there, and scattered back. So all other entries stay as they are, to the bit: no decay, no update, no copy
to restore them from. Moments exist for the kept entries only. SAFT (arXiv 2407.03036) was published without code; the sparse state, and
clipping by the norm of the kept gradients, are reconstructed.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from autoft.errors import ConfigError
from autoft.optim.saft import index_dtype


def named_groups(groups: Iterable[Mapping[str, Any]], named_parameters: Iterable[tuple[str, nn.Parameter]]) -> list[dict[str, Any]]:
    """Parameter groups whose `params` are (name, parameter) pairs, from groups of bare parameters; all other keys stay.

    Raises:
        KeyError: a group holds a parameter that `named_parameters` has no name for.
    """
    names = {parameter: name for name, parameter in named_parameters}
    return [{**group, "params": [(names[parameter], parameter) for parameter in group["params"]]} for group in groups]


def kept_indices(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The indices in a `SparseAdamW.state_dict`, by parameter name: what to make an optimizer with that is to load it."""
    return {
        name: _every_index(len(entry["exp_avg"])) if entry["indices"] is None else entry["indices"] for name, entry in state["state"].items()
    }


class SparseAdamW(torch.optim.Optimizer):
    """AdamW that sees only the kept entries of its parameters.

    A parameter without a gradient is skipped, as in PyTorch: its moments and its step count stay. Gradients may have another memory layout
    than their parameter. Moments take their parameter's type.

    Args:
        params: (name, parameter) pairs, such as `model.named_parameters()`, or groups of them; see `named_groups`. Keys of a group that
            AdamW does not know are kept.
        indices: by parameter name, row-major positions of the kept entries, ascending: what `autoft.optim.saft.select` returns. A name
            for each parameter and no others. All positions of a parameter are as good as none: nothing is stored for them.
        lr, betas, eps, weight_decay: as of `torch.optim.AdamW`; for groups without their own.

    Raises:
        ConfigError: parameters have no names, or the indices do not fit them.
    """

    def __init__(
        self,
        params: ParamsT,
        indices: Mapping[str, Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        self._indices, self._vectors = indices, list[list[_Vector]]()  # the vectors of each group
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self._indices = {}  # the pieces have them
        unknown = indices.keys() - {piece.name for piece in self._pieces()}
        if unknown:
            raise ConfigError(f"indices has entries for {min(unknown)!r}, which is no parameter of this optimizer ({len(unknown)} such names)")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """For the constructor. A group that comes later has no indices and is refused with a ConfigError."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        if "param_names" not in group:
            raise ConfigError("parameters need names, which the indices are found by: pass model.named_parameters(), or see named_groups")
        self._vectors.append(self._build(group, self._indices))

    def _build(self, group: Mapping[str, Any], indices: Mapping[str, Tensor]) -> "list[_Vector]":
        """Zero moments for the kept entries of a group, one vector for each type and device."""
        pieces: dict[tuple[torch.device, torch.dtype], list[_Piece]] = {}
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            alike = pieces.setdefault((parameter.device, parameter.dtype), [])
            kept = _checked(name, parameter, indices)
            start = alike[-1].stop if alike else 0
            whole = len(kept) == parameter.numel()
            alike.append(_Piece(name, parameter, None if whole else kept, start, start + len(kept)))
        vectors = []
        for (device, dtype), alike in pieces.items():
            zeros = torch.zeros(alike[-1].stop, dtype=dtype, device=device)
            vectors.append(_Vector(alike, zeros, zeros.clone()))
        self._publish(vectors)
        return vectors

    def _publish(self, vectors: "Iterable[_Vector]") -> None:
        """Let `state` show each parameter's moments, as views, as of any optimizer."""
        for vector in vectors:
            for piece in vector.pieces:
                self.state[piece.parameter] = {key: piece.part(moment) for key, moment in vector.moments().items()}

    def _pieces(self) -> "Iterator[_Piece]":
        return (piece for group in self._vectors for vector in group for piece in vector.pieces)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One AdamW step of the kept entries. Does not wait for the device."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group, vectors in zip(self.param_groups, self._vectors, strict=True):
            for vector in vectors:
                for run in vector.runs():
                    vector.update(run, group)
        return loss

    @torch.no_grad()
    def clip_grad_norm_(self, max_norm: float) -> Tensor:
        """Scale the kept gradients, in place, so that their 2-norm over all groups is `max_norm` at most; the norm before, a scalar.

        Call it between backward and `step`. Gradients that are not kept neither count nor change: the mask comes before clipping, or the
        norm of the 99.9 % that train nothing would set the step. Does not wait for the device.
        """
        gathered = [(run, _gather(run, _gradients(run))) for group in self._vectors for vector in group for run in vector.runs()]
        if not gathered:
            return torch.zeros(())
        norms = [torch.linalg.vector_norm(gradients) for _, gradients in gathered]
        norm: Tensor = torch.linalg.vector_norm(torch.stack([value.to(norms[0].device, non_blocking=True) for value in norms]))
        factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)  # 1e-6: as in torch.nn.utils.clip_grad_norm_
        for run, gradients in gathered:
            _scatter(run, _gradients(run), gradients.mul_(factor.to(gradients.device, gradients.dtype, non_blocking=True)))
        return norm

    def state_dict(self) -> dict[str, Any]:
        """Indices (None: all), moments and step count by parameter name, and the groups' options; live tensors and plain values only."""
        state = {
            piece.name: {
                "step": piece.step,
                "indices": piece.indices,
                **{key: piece.part(moment) for key, moment in vector.moments().items()},
            }
            for group in self._vectors
            for vector in group
            for piece in vector.pieces
        }
        groups = [{key: value for key, value in group.items() if key != "params"} for group in self.param_groups]
        return {"state": state, "param_groups": groups}

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned, with its indices in place of this optimizer's own.

        Raises:
            ValueError: it is the state of another optimizer, or of other parameters or groups.
        """
        saved, groups = state_dict["state"], state_dict["param_groups"]
        if [group.get("param_names") for group in groups] != [group["param_names"] for group in self.param_groups]:
            raise ValueError("the state to load is of an optimizer with other parameters, or with other groups of them")
        indices = kept_indices(state_dict)
        self._vectors = [self._build(group, indices) for group in self.param_groups]
        for vectors in self._vectors:
            for vector in vectors:
                for piece in vector.pieces:
                    entry = saved[piece.name]
                    piece.step = int(entry["step"])
                    for key, moment in vector.moments().items():
                        piece.part(moment).copy_(entry[key])
        for group, options in zip(self.param_groups, groups, strict=True):
            group.update(options)


@dataclass
class _Piece:
    """The kept entries of one parameter, which are [start, stop) of its group's vector."""

    name: str
    parameter: Tensor
    indices: Tensor | None  # row-major, ascending; None: every entry
    start: int
    stop: int
    step: int = 0
    # Of a tensor with the parameter's shape, by its strides: how much of its memory it spans, and where the kept entries lie in there.
    places: dict[tuple[int, ...], tuple[int, Tensor]] = field(default_factory=dict)

    def part(self, vector: Tensor) -> Tensor:
        """This piece's entries of a vector of the group, a view."""
        return vector[self.start : self.stop]

    def read(self, tensor: Tensor) -> Tensor:
        """The kept entries of the parameter or its gradient, of whatever memory layout, in row-major order."""
        if self.indices is None:
            return tensor.reshape(-1)
        memory, places = self._memory(tensor, self.indices)
        return memory.index_select(0, places)

    def write(self, tensor: Tensor, values: Tensor) -> None:
        """Put values where `read` finds them; nothing else changes."""
        if self.indices is None:
            tensor.copy_(values.view(tensor.shape))
            return
        memory, places = self._memory(tensor, self.indices)
        memory.index_copy_(0, places, values)

    def _memory(self, tensor: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        strides = tensor.stride()
        found = self.places.get(strides)
        if found is None:
            found = self.places[strides] = _places(indices, tensor.shape, strides)
        span, places = found
        return tensor.as_strided((span,), (1,)), places


@dataclass
class _Vector:
    """The kept entries of those parameters of a group that share type and device, one after another."""

    pieces: Sequence[_Piece]
    exp_avg: Tensor
    exp_avg_sq: Tensor

    def moments(self) -> dict[str, Tensor]:
        return {"exp_avg": self.exp_avg, "exp_avg_sq": self.exp_avg_sq}

    def runs(self) -> Iterator[list[_Piece]]:
        """Neighbours that have gradients and the same number of steps behind them: all pieces that keep anything, in the usual case."""
        run: list[_Piece] = []
        for piece in self.pieces:
            if piece.start == piece.stop:
                continue
            if run and (piece.parameter.grad is None or piece.step != run[0].step):
                yield run
                run = []
            if piece.parameter.grad is not None:
                run.append(piece)
        if run:
            yield run

    def update(self, run: Sequence[_Piece], group: Mapping[str, Any]) -> None:
        """AdamW for neighbouring pieces, in the order of operations of `torch.optim.AdamW`."""
        (beta1, beta2), lr = group["betas"], group["lr"]
        section = slice(run[0].start, run[-1].stop)
        exp_avg, exp_avg_sq = self.exp_avg[section], self.exp_avg_sq[section]
        parameters = [piece.parameter for piece in run]
        gradients, values = _gather(run, _gradients(run)), _gather(run, parameters)
        for piece in run:
            piece.step += 1
        exp_avg.lerp_(gradients, 1 - beta1)
        exp_avg_sq.mul_(beta2).addcmul_(gradients, gradients, value=1 - beta2)
        root = exp_avg_sq.sqrt().div_((1 - beta2 ** run[0].step) ** 0.5).add_(group["eps"])
        values.mul_(1 - lr * group["weight_decay"]).addcdiv_(exp_avg, root, value=-lr / (1 - beta1 ** run[0].step))
        _scatter(run, parameters, values)


def _gradients(run: Sequence[_Piece]) -> list[Tensor]:
    return [piece.parameter.grad for piece in run if piece.parameter.grad is not None]


def _gather(run: Sequence[_Piece], tensors: Sequence[Tensor]) -> Tensor:
    """The kept entries of the pieces' tensors as one new vector."""
    return torch.cat([piece.read(tensor) for piece, tensor in zip(run, tensors, strict=True)])


def _scatter(run: Sequence[_Piece], tensors: Sequence[Tensor], vector: Tensor) -> None:
    """Write such a vector back."""
    first = run[0].start
    for piece, tensor in zip(run, tensors, strict=True):
        piece.write(tensor, vector[piece.start - first : piece.stop - first])


def _places(indices: Tensor, shape: Sequence[int], strides: Sequence[int]) -> tuple[int, Tensor]:
    """Where row-major positions lie in the memory of a tensor with these strides (int64), and how many entries of it that spans."""
    rest = indices.long()
    places = torch.zeros_like(rest)
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        places += rest % size * stride
        rest = rest.div(size, rounding_mode="floor")
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)), places


def _every_index(entries: int) -> Tensor:
    return torch.arange(entries, dtype=index_dtype(entries))


def _checked(name: str, parameter: Tensor, indices: Mapping[str, Tensor]) -> Tensor:
    """A parameter's indices on its device. Raises ConfigError."""
    if name not in indices:
        raise ConfigError(f"indices has none for {name!r}; a parameter of which nothing is kept has empty ones")
    kept = indices[name]
    if kept.ndim != 1 or kept.dtype not in (torch.int32, torch.int64):
        raise ConfigError(f"indices of {name!r} are {kept.dtype} of shape {tuple(kept.shape)}; they must be a vector of int32 or int64")
    if len(kept) and not (int(kept[0]) >= 0 and int(kept[-1]) < parameter.numel() and bool((kept[1:] > kept[:-1]).all())):
        raise ConfigError(f"indices of {name!r} must ascend from 0 to below {parameter.numel()}, each at most once")
    return kept.to(parameter.device)
