"""FTP, TPGM and SPD against slow transcriptions of their formulas, and what they promise besides."""

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from autoft.errors import ConfigError
from autoft.models.state import ZeroShotState
from autoft.optim.anchored import AnchoredOptimizer
from autoft.optim.ftp import FTP
from autoft.optim.spd import SPD
from autoft.optim.tpgm import TPGM
from tests.projection_reference import Base, BaseTensor, Batch, FTPTensor, Run, SPDTensor, TPGMRadii, loss_at

STEPS = 40
LR = {"adamw": 1e-2, "sgd": 5e-2}
WEIGHT_DECAY = 1e-2
HEAD = ("head.*",)


class Net(nn.Module):
    """Convolutions, a BatchNorm layer, and a linear head; some weights are laid out channels-last.

    No bias before the BatchNorm: its gradient is rounding error alone, and SPD asks for a sign.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.narrow = nn.Conv2d(6, 4, 1, bias=False)
        self.head = nn.Linear(4, 5)
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, images: Tensor) -> Tensor:
        found = self.narrow(self.norm(self.conv(images)).relu()).tanh().mean((2, 3))
        return self.scale * self.head(found)


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().double().to(memory_format=torch.channels_last)


def batches(count: int, dtype: torch.dtype = torch.float64, seed: int = 1) -> list[Batch]:
    rng = torch.Generator().manual_seed(seed)
    return [(torch.randn(12, 3, 6, 6, generator=rng).to(dtype), torch.randint(5, (12,), generator=rng)) for _ in range(count)]


def base_optimizer(kind: str, model: nn.Module, fused: bool = False) -> torch.optim.Optimizer:
    if kind == "sgd":
        return torch.optim.SGD(model.parameters(), lr=LR[kind], momentum=0.9, weight_decay=WEIGHT_DECAY, fused=fused)
    return torch.optim.AdamW(model.parameters(), lr=LR[kind], weight_decay=WEIGHT_DECAY, fused=fused)


def anchor_of(model: nn.Module) -> dict[str, Tensor]:
    return dict(ZeroShotState.of(model).tensors)


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    model.train()
    optimizer.zero_grad()
    functional.cross_entropy(model(batch[0]), batch[1]).backward()
    optimizer.step()


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def largest_difference(model: nn.Module, weights: dict[str, Tensor]) -> float:
    return max(float((parameter.detach() - weights[name]).abs().max()) for name, parameter in model.named_parameters())


def assert_equal(model: nn.Module, other: nn.Module) -> None:
    for (name, own), theirs in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(own, theirs), name


# --- the formulas


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
@pytest.mark.parametrize("k", [1.0, 0.3, 0.0])
def test_ftp_is_its_formula(net: Net, kind: str, k: float) -> None:
    def rule(name: str, start: Tensor) -> FTPTensor | BaseTensor:
        base = Base(kind, LR[kind], WEIGHT_DECAY)
        return BaseTensor(base) if name.startswith("head.") else FTPTensor(start, base, k, 1e-2)

    reference, plain = Run(net, rule), copy.deepcopy(net)
    optimizer = FTP(base_optimizer(kind, net), net.named_parameters(), anchor_of(net), k=k, exclude=HEAD)
    unbound = base_optimizer(kind, plain)
    for batch in batches(STEPS):
        train_step(net, optimizer, batch)
        train_step(plain, unbound, batch)
        reference.step(batch)
        assert largest_difference(net, reference.weights) < 1e-9
    assert largest_difference(net, weights_of(plain)) > 1e-2


def test_gammas_rate_follows_each_groups_learning_rate(net: Net) -> None:
    rates = {"conv": 3e-2, "norm": 1e-2, "narrow": 1e-2, "head": 1e-2, "scale": 2e-2}

    def rule(name: str, start: Tensor) -> FTPTensor:
        lr = rates[name.split(".")[0]]
        return FTPTensor(start, Base("adamw", lr, WEIGHT_DECAY), 1.0, 4e-3 * lr / 5e-3)

    reference = Run(net, rule)
    groups = [
        {"params": [p for name, p in net.named_parameters() if rates[name.split(".")[0]] == lr], "lr": lr} for lr in (1e-2, 3e-2, 2e-2)
    ]
    base = torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY)
    optimizer = FTP(base, net.named_parameters(), anchor_of(net), mu=4e-3, mu_reference_lr=5e-3)
    for i, batch in enumerate(batches(STEPS)):
        for group, lr in zip(optimizer.param_groups, (1e-2, 3e-2, 2e-2), strict=True):
            group["lr"] = lr * (1 - i / STEPS)
        for name, tensor in reference.rules.items():
            assert isinstance(tensor, FTPTensor)
            tensor.base.lr = rates[name.split(".")[0]] * (1 - i / STEPS)
            tensor.mu = 4e-3 * tensor.base.lr / 5e-3
        train_step(net, optimizer, batch)
        reference.step(batch)
        assert largest_difference(net, reference.weights) < 1e-9


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_spd_is_its_formula(net: Net, kind: str, strength: float) -> None:
    def rule(name: str, start: Tensor) -> SPDTensor | BaseTensor:
        base = Base(kind, LR[kind], WEIGHT_DECAY)
        return BaseTensor(base) if name.startswith("head.") else SPDTensor(start, base, strength)

    reference = Run(net, rule)
    optimizer = SPD(base_optimizer(kind, net), net.named_parameters(), anchor_of(net), strength=strength, exclude=HEAD)
    for batch in batches(STEPS):
        train_step(net, optimizer, batch)
        reference.step(batch)
        assert largest_difference(net, reference.weights) < 1e-9
    assert sum(rule.fired for rule in reference.rules.values() if isinstance(rule, SPDTensor)) > 10


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
@pytest.mark.parametrize("norm", ["mars", "l2"])
def test_tpgm_is_autograd_through_the_projection(net: Net, kind: str, norm: Any) -> None:
    def rule(name: str, start: Tensor) -> BaseTensor:
        return BaseTensor(Base(kind, LR[kind], WEIGHT_DECAY))

    anchor = anchor_of(net)
    reference = Run(net, rule)
    radii = TPGMRadii({name: w for name, w in reference.weights.items() if not name.startswith("head.")}, norm)
    optimizer = TPGM(base_optimizer(kind, net), net.named_parameters(), anchor, norm=norm, exclude=HEAD)
    for batch, held_out in zip(batches(STEPS), batches(STEPS, seed=2), strict=True):
        train_step(net, optimizer, batch)
        loss = optimizer.project(lambda held_out=held_out: loss_at(net, {}, held_out), net)
        reference.step(batch)
        reference.weights = radii.project(reference.model, reference.weights, held_out)
        assert loss is not None and not loss.requires_grad
        assert largest_difference(net, reference.weights) < 1e-9


@pytest.mark.parametrize("norm", ["mars", "l2"])
def test_tpgms_radius_gradient(net: Net, norm: Any) -> None:
    anchor = anchor_of(net)
    optimizer = TPGM(base_optimizer("adamw", net), net.named_parameters(), anchor, norm=norm)
    for batch in batches(3):
        train_step(net, optimizer, batch)
    weights, held_out = weights_of(net), batches(1, seed=2)[0]
    radii = TPGMRadii({name: anchor[name] for name in weights}, norm)
    radii.project(copy.deepcopy(net), weights, held_out)
    optimizer.project(lambda: loss_at(net, {}, held_out), net)
    for name, state in optimizer.state_dict()["anchored"]["radii"].items():
        wanted = radii.gamma[name].grad
        assert wanted is not None
        torch.testing.assert_close(state["mean"] / 0.1, wanted, rtol=1e-9, atol=1e-14)


# --- limits


def test_ftps_first_step_moves_excluded_tensors_only(net: Net) -> None:
    start = weights_of(net)
    optimizer = FTP(base_optimizer("adamw", net), net.named_parameters(), anchor_of(net), exclude=HEAD)
    train_step(net, optimizer, batches(1)[0])
    for name, parameter in net.named_parameters():
        moved = float((parameter.detach() - start[name]).abs().max())
        assert moved > 1e-3 if name.startswith("head.") else moved < 2e-8, name


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_ftp_with_boundless_radii_is_the_base_to_the_bit(net: Net, kind: str) -> None:
    net = net.float()
    plain = copy.deepcopy(net)
    optimizer = FTP(base_optimizer(kind, net), net.named_parameters(), anchor_of(net))
    base = base_optimizer(kind, plain)
    for batch in batches(STEPS, torch.float32):
        state = optimizer.state_dict()
        wide = {name: {**own, "gamma": torch.tensor(1e20)} for name, own in state["anchored"].items()}
        optimizer.load_state_dict({**state, "anchored": wide})
        train_step(net, optimizer, batch)
        train_step(plain, base, batch)
    assert_equal(net, plain)


def shrunk(net: Net, k: float) -> int:
    """How many times a radius became smaller than both it was and its tensor needs."""
    net = copy.deepcopy(net)
    optimizer = FTP(base_optimizer("sgd", net), net.named_parameters(), anchor_of(net), k=k)
    found, before = 0, {name: 0.0 for name, _ in net.named_parameters()}
    for batch in batches(STEPS):
        train_step(net, optimizer, batch)
        for name, own in optimizer.state_dict()["anchored"].items():
            moved = own["deviation"].abs()
            needed = moved.flatten(1).sum(1).max() if moved.dim() > 1 else moved.sum()
            found += int(own["gamma"] < min(before[name], float(needed)) - 1e-12)
            before[name] = float(own["gamma"])
    return found


def test_at_k_0_no_radius_shrinks(net: Net) -> None:
    assert shrunk(net, 1.0) > 5
    assert shrunk(net, 0.0) == 0


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_spd_of_strength_0_is_the_base_to_the_bit(net: Net, kind: str) -> None:
    net = net.float()
    plain = copy.deepcopy(net)
    optimizer, base = SPD(base_optimizer(kind, net), net.named_parameters(), anchor_of(net), strength=0), base_optimizer(kind, plain)
    for batch in batches(STEPS, torch.float32):
        train_step(net, optimizer, batch)
        train_step(plain, base, batch)
    assert_equal(net, plain)


def test_spd_of_strength_1_lands_on_the_radius_before_or_lets_be(net: Net) -> None:
    anchor, fired = anchor_of(net), 0
    optimizer = SPD(base_optimizer("adamw", net), net.named_parameters(), anchor, strength=1)
    for batch in batches(STEPS):
        plain, before = copy.deepcopy(net), weights_of(net)
        base = base_optimizer("adamw", plain)
        base.load_state_dict(copy.deepcopy(optimizer.base.state_dict()))
        train_step(net, optimizer, batch)
        train_step(plain, base, batch)
        for (name, parameter), free in zip(net.named_parameters(), plain.parameters(), strict=True):
            if torch.equal(parameter, free):
                continue
            fired += 1
            torch.testing.assert_close((parameter - anchor[name]).norm(), (before[name] - anchor[name]).norm(), rtol=1e-12, atol=0)
            assert (free - anchor[name]).norm() > (before[name] - anchor[name]).norm()
            assert (parameter.grad * (before[name] - anchor[name])).sum() > 0
    assert fired > 10


def test_a_tensor_that_does_not_move_gives_no_nan() -> None:
    weight = nn.Parameter(torch.ones(3, 2))
    for kind in (FTP, SPD, TPGM):
        optimizer = kind(torch.optim.SGD([weight], lr=0.0), [("w", weight)], {"w": torch.ones(3, 2)})
        for _ in range(3):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
            if isinstance(optimizer, TPGM):
                optimizer.project(lambda: weight.sum())
        assert torch.equal(weight, torch.ones(3, 2))


def test_a_distance_whose_square_is_0_gives_no_nan() -> None:
    weight = nn.Parameter(torch.full((3, 2), 1e-30))
    optimizer = SPD(torch.optim.SGD([weight], lr=0.0), [("w", weight)], {"w": torch.zeros(3, 2)})
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert torch.equal(weight, torch.full((3, 2), 1e-30))


@pytest.mark.parametrize("kind", [FTP, SPD, TPGM])
def test_memory_layout_does_not_matter(kind: Any) -> None:
    rng = torch.Generator().manual_seed(0)
    start, gradients = torch.randn(4, 6, generator=rng), torch.randn(10, 4, 6, generator=rng)
    found = []
    for laid_out in (start.clone(), start.t().contiguous().t(), torch.cat([start, start], dim=1)[:, :6]):
        weight = nn.Parameter(laid_out)
        optimizer = kind(torch.optim.AdamW([weight], lr=1e-2), [("w", weight)], {"w": start.clone()})
        for gradient in gradients:
            weight.grad = gradient.clone()
            optimizer.step()
            if isinstance(optimizer, TPGM):
                optimizer.project(lambda weight=weight: weight.square().sum())
        found.append(weight.detach().clone())
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])


# --- state


Build = Callable[[nn.Module, dict[str, Tensor], str], AnchoredOptimizer]
BUILDS: dict[str, Build] = {
    "ftp": lambda m, a, kind: FTP(base_optimizer(kind, m, fused=True), m.named_parameters(), a, exclude=HEAD, k=0.5),
    "spd": lambda m, a, kind: SPD(base_optimizer(kind, m, fused=True), m.named_parameters(), a, exclude=HEAD),
    "tpgm": lambda m, a, kind: TPGM(base_optimizer(kind, m, fused=True), m.named_parameters(), a, exclude=HEAD, every=2, iterations=2),
}


def steps_of(net: Net, optimizer: AnchoredOptimizer, first: int, last: int) -> None:
    for batch, held_out in list(zip(batches(30, torch.float32), batches(30, torch.float32, seed=2), strict=True))[first:last]:
        train_step(net, optimizer, batch)
        if isinstance(optimizer, TPGM):
            optimizer.project(lambda held_out=held_out: loss_at(net, {}, held_out), net)


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
@pytest.mark.parametrize("method", BUILDS)
def test_resumed_is_uninterrupted_to_the_bit(net: Net, method: str, kind: str) -> None:
    net = net.float()
    anchor, broken_off = anchor_of(net), copy.deepcopy(net)
    steps_of(net, BUILDS[method](net, anchor, kind), 0, 30)
    optimizer = BUILDS[method](broken_off, anchor, kind)
    steps_of(broken_off, optimizer, 0, 17)
    file = io.BytesIO()
    torch.save({"model": broken_off.state_dict(), "optimizer": optimizer.state_dict()}, file)
    steps_of(broken_off, optimizer, 17, 20)  # what was saved is a copy
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    torch.manual_seed(9)
    resumed = Net().to(memory_format=torch.channels_last)
    optimizer = BUILDS[method](resumed, anchor, kind)
    resumed.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    steps_of(resumed, optimizer, 17, 30)
    assert_equal(resumed, net)


def test_a_state_of_something_else_is_refused(net: Net) -> None:
    anchor = anchor_of(net)
    optimizer = FTP(base_optimizer("sgd", net), net.named_parameters(), anchor)
    with pytest.raises(ValueError, match="no state of FTP"):
        optimizer.load_state_dict(base_optimizer("sgd", net).state_dict())
    narrower = FTP(base_optimizer("sgd", net), net.named_parameters(), anchor, exclude=HEAD)
    with pytest.raises(ValueError, match=r"head\.bias"):
        optimizer.load_state_dict(narrower.state_dict())
    for other in (SPD, TPGM):
        with pytest.raises(ValueError):
            other(base_optimizer("sgd", net), net.named_parameters(), anchor).load_state_dict(optimizer.state_dict())


def given_gradients(method: str, missing: set[int], steps: list[int]) -> tuple[list[Tensor], list[Tensor]]:
    """Train three tensors with gradients that are a function of the step; the second one has none in `missing`. Their values in time."""
    values = [torch.full(shape, 0.5).requires_grad_() for shape in ((4, 3), (3,), (2, 3))]
    anchor = {str(i): value.detach().clone() for i, value in enumerate(values)}
    base = torch.optim.AdamW(values, lr=1e-2, fused=True)
    optimizer: AnchoredOptimizer = {"ftp": FTP, "spd": SPD}[method](base, [(str(i), v) for i, v in enumerate(values)], anchor)
    others, second = [], []
    for step in steps:
        rng = torch.Generator().manual_seed(step)
        for value in values:
            value.grad = torch.randn(value.shape, generator=rng) + 0.3
        if step in missing:
            values[1].grad = None
        optimizer.step()
        others.append(torch.cat([values[0].detach().flatten(), values[2].detach().flatten()]))
        second.append(values[1].detach().clone())
    return others, second


@pytest.mark.parametrize("method", ["ftp", "spd"])
def test_a_tensor_without_gradient_rests_and_disturbs_no_other(method: str) -> None:
    missing = {0, 3, 7, 8}
    steps = list(range(14))
    others, second = given_gradients(method, missing, steps)
    undisturbed, _ = given_gradients(method, set(), steps)
    assert all(torch.equal(a, b) for a, b in zip(others, undisturbed, strict=True))
    # Its own time stands still meanwhile.
    _, only = given_gradients(method, set(), [step for step in steps if step not in missing])
    assert torch.equal(torch.stack([value for step, value in enumerate(second) if step not in missing]), torch.stack(only))
    assert torch.equal(second[3], second[2]) and torch.equal(second[8], second[6])


def test_tpgm_leaves_the_radius_of_a_tensor_its_loss_does_not_use() -> None:
    used, unused = (nn.Parameter(torch.full((4, 3), 0.5)) for _ in range(2))
    named = [("used", used), ("unused", unused)]
    optimizer = TPGM(torch.optim.AdamW([used, unused], lr=1e-2), named, {name: w.detach().clone() for name, w in named})
    radii: list[dict[str, dict[str, Tensor]]] = []
    for step in range(4):
        for _, weight in named:
            weight.grad = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
        optimizer.step()
        optimizer.project(lambda step=step: (used.sum() + unused.sum()) if step < 2 else used.sum())
        radii.append(copy.deepcopy(optimizer.state_dict()["anchored"]["radii"]))
    for field in ("mean", "square", "steps"):
        assert radii[3]["unused"][field] == radii[1]["unused"][field], field
        assert radii[3]["used"][field] != radii[1]["used"][field], field


def test_tpgm_gives_a_tensor_its_first_radius_once_it_has_moved() -> None:
    weight = nn.Parameter(torch.zeros(4, 3))
    optimizer = TPGM(torch.optim.SGD([weight], lr=1.0), [("w", weight)], {"w": torch.zeros(4, 3)}, mu=0.0)
    optimizer.step()
    optimizer.project(lambda: weight.sum())
    weight.grad = torch.arange(1.0, 13).reshape(4, 3)
    optimizer.step()
    optimizer.project(lambda: weight.sum())
    assert float(weight.detach().abs().sum(1).max()) == pytest.approx((1 + 2 + 3) / 2)


# --- as an optimizer


@pytest.mark.parametrize("method", BUILDS)
def test_it_is_an_optimizer_and_its_groups_are_the_bases(net: Net, method: str) -> None:
    optimizer = BUILDS[method](net.float(), anchor_of(net), "adamw")
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert optimizer.param_groups is optimizer.base.param_groups and optimizer.state is optimizer.base.state
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.1)
    batch = batches(1, torch.float32)[0]

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_at(net, {}, batch)
        loss.backward()
        return loss

    assert optimizer.step(closure) > 0
    scheduler.step()
    assert optimizer.base.param_groups[0]["lr"] == pytest.approx(LR["adamw"] / 10)
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.param_groups is optimizer.base.param_groups and optimizer.state is optimizer.base.state
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in net.parameters())
    assert "lr" in repr(optimizer)
    with pytest.raises(NotImplementedError, match="wrap"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})


class NoWaiting(TorchDispatchMode):
    """Raises where a tensor's value is asked for on the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if "_local_scalar_dense" in name or "nonzero" in name or "equal.default" in name:
            raise AssertionError(f"{name} waits for the device")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", BUILDS)
def test_nothing_waits_for_the_device(net: Net, method: str) -> None:
    net = net.float()
    optimizer = BUILDS[method](net, anchor_of(net), "adamw")
    batch = batches(1, torch.float32)[0]
    train_step(net, optimizer, batch)
    with pytest.raises(AssertionError), NoWaiting():
        float(net.scale.detach())
    loss_at(net, {}, batch).backward()
    net.norm.weight.grad = None
    with NoWaiting():
        optimizer.step()
        if isinstance(optimizer, TPGM):
            assert optimizer.project(lambda: net(batch[0]).square().mean(), net) is not None


def test_tpgm_projects_every_so_many_steps_and_leaves_gradients_and_modes(net: Net) -> None:
    optimizer = TPGM(base_optimizer("sgd", net), net.named_parameters(), anchor_of(net), every=3, iterations=4)
    held_out, calls = iter(batches(100, seed=2)), 0

    def loss() -> Tensor:
        nonlocal calls
        calls += 1
        assert not net.training
        return loss_at(net, {}, next(held_out))

    for number, batch in enumerate(batches(6), start=1):
        train_step(net, optimizer, batch)
        net.conv.eval()
        buffers = copy.deepcopy(dict(net.named_buffers()))
        gradients = [parameter.grad.clone() for parameter in net.parameters()]
        assert (optimizer.project(loss, net) is None) == bool(number % 3)
        assert net.training and net.norm.training and not net.conv.training
        assert all(torch.equal(old, new) for old, new in zip(buffers.values(), net.buffers(), strict=True))
        assert all(torch.equal(old, new.grad) for old, new in zip(gradients, net.parameters(), strict=True))
    assert calls == 8


@pytest.mark.parametrize("kind", [FTP, SPD, TPGM])
def test_bfloat16_weights_and_empty_ones_are_taken(kind: type[AnchoredOptimizer]) -> None:
    values = {"half": torch.ones(4, 3, dtype=torch.bfloat16), "full": torch.ones(4, 3), "none": torch.ones(0, 3)}
    parameters = {name: nn.Parameter(value.clone()) for name, value in values.items()}
    optimizer = kind(torch.optim.SGD(parameters.values(), lr=0.5), parameters.items(), values)
    for _ in range(3):
        for parameter in parameters.values():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        if isinstance(optimizer, TPGM):
            optimizer.project(lambda: torch.stack([p.float().sum() for p in parameters.values()]).sum())
    assert all(parameter.isfinite().all() for parameter in parameters.values())
    torch.testing.assert_close(parameters["half"].float(), parameters["full"].detach(), rtol=0.02, atol=0.02)


# --- mistakes


@pytest.mark.parametrize("kind", [FTP, SPD, TPGM])
def test_a_pattern_that_matches_nothing(net: Net, kind: Any) -> None:
    with pytest.raises(ConfigError, match=r"'haed\.weight'.*head\.weight"):
        kind(base_optimizer("sgd", net), net.named_parameters(), anchor_of(net), exclude=("conv.*", "haed.weight"))
    optimizer = kind(base_optimizer("sgd", net), net.named_parameters(), anchor_of(net), exclude="head.*")
    assert {name for bundle in optimizer.bundles for name in bundle.names}.isdisjoint({"head.weight", "head.bias"})


@pytest.mark.parametrize("kind", [FTP, SPD, TPGM])
def test_an_anchor_that_is_the_model_itself(net: Net, kind: Any) -> None:
    with pytest.raises(ValueError, match="shares storage"):
        kind(base_optimizer("sgd", net), net.named_parameters(), net.state_dict())
    shifted = {name: value.detach()[:] for name, value in net.named_parameters() if value.dim()} | {"scale": net.scale.detach().clone()}
    with pytest.raises(ValueError, match="shares storage"):
        kind(base_optimizer("sgd", net), net.named_parameters(), shifted)


@pytest.mark.parametrize("kind", [FTP, SPD, TPGM])
def test_an_anchor_or_names_that_do_not_fit(net: Net, kind: Any) -> None:
    anchor, named = anchor_of(net), dict(net.named_parameters())
    with pytest.raises(ValueError, match=r"no 'norm\.bias'"):
        kind(base_optimizer("sgd", net), named.items(), {name: value for name, value in anchor.items() if name != "norm.bias"})
    with pytest.raises(ValueError, match=r"'norm\.bias' is \(7,\)"):
        kind(base_optimizer("sgd", net), named.items(), anchor | {"norm.bias": torch.zeros(7)})
    with pytest.raises(ValueError, match="1 of the 7"):
        kind(base_optimizer("sgd", net), list(named.items())[1:], anchor)


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (FTP, "k", 1.5),
        (FTP, "k", -0.1),
        (FTP, "mu", float("nan")),
        (FTP, "mu_reference_lr", 0.0),
        (SPD, "strength", -1.0),
        (SPD, "strength", float("inf")),
        (TPGM, "norm", "l1"),
        (TPGM, "every", 0),
        (TPGM, "iterations", 0),
    ],
)
def test_numbers_out_of_range(net: Net, kind: Any, field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{field} = {value!r}"):
        kind(base_optimizer("sgd", net), net.named_parameters(), anchor_of(net), **{field: value})
