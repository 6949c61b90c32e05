"""SAFT: the mask against a full sort, AdamW over the kept entries against PyTorch's, delta checkpoints to the bit."""

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from autoft.errors import ConfigError, ModelError
from autoft.models.delta import delta_info, load_delta, save_delta
from autoft.models.state import state_digest
from autoft.optim.saft import GradientMagnitudes, Reduction, select
from autoft.optim.sparse_adamw import SparseAdamW, kept_indices, named_groups
from tests.runs import cloned, one_thread


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    with one_thread():
        yield


class Net(nn.Module):
    """Convolutions with BatchNorm, channels-last, and a head; a parameter that takes no gradients, and one that never gets one."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 12, 3, padding=1)
        self.depthwise = nn.Conv2d(12, 12, 3, groups=12, bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.point = nn.Conv2d(12, 16, 1)
        self.head = nn.Linear(16, 5)
        self.unused = nn.Parameter(torch.ones(7))
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        self.to(dtype).to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.norm(self.depthwise(self.first(images).relu())).relu()
        logits: Tensor = self.head(self.point(hidden).mean(dim=(2, 3)))
        return logits


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def backward(model: nn.Module, batch: int, scale: float = 1.0) -> None:
    """One backward pass of cross-entropy over a batch drawn from its number."""
    rng = torch.Generator().manual_seed(batch)
    dtype = next(model.parameters()).dtype
    images = torch.randn(8, 3, 8, 8, generator=rng).to(dtype).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 5, (8,), generator=rng)
    (scale * functional.cross_entropy(model(images), labels)).backward()


def mask_by_sorting(magnitudes: Mapping[str, Tensor], density: float) -> dict[str, list[int]]:
    """The slow way: sort every entry by magnitude, the earlier first among equals."""
    values = np.concatenate([tensor.double().numpy().ravel() for tensor in magnitudes.values()])
    chosen = np.sort(np.lexsort((np.arange(len(values)), -np.abs(values)))[: max(1, int(density * len(values)))])
    kept, start = {}, 0
    for name, tensor in magnitudes.items():
        inside = chosen[(chosen >= start) & (chosen < start + tensor.numel())]
        kept[name] = [int(index) - start for index in inside]
        start += tensor.numel()
    return kept


def lists(kept: Mapping[str, Tensor]) -> dict[str, list[int]]:
    return {name: indices.tolist() for name, indices in kept.items()}


def masked(gradient: Tensor, indices: Tensor) -> Tensor:
    mask = torch.zeros(gradient.numel(), dtype=gradient.dtype)
    mask[indices.long()] = 1
    return gradient * mask.view(gradient.shape)


def some_indices(model: nn.Module, density: float = 0.05) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(1)
    return select({name: torch.rand(parameter.shape, generator=rng) for name, parameter in trained(model).items()}, density)


def all_indices(model: nn.Module) -> dict[str, Tensor]:
    return {name: torch.arange(parameter.numel(), dtype=torch.int32) for name, parameter in trained(model).items()}


# --- the mask


@pytest.mark.parametrize("reduction", ["abs_of_sum", "sum_of_abs"])
def test_the_mask_is_that_of_a_full_sort_over_all_batches(reduction: Reduction) -> None:
    model, reference = Net(), Net()
    backward(model, 99)  # from before; must not count
    magnitudes = GradientMagnitudes(model.named_parameters(), reduction)
    total = {name: torch.zeros_like(parameter) for name, parameter in trained(reference).items()}
    for batch in range(3):
        backward(model, batch)
        magnitudes.add()
        reference.zero_grad()
        backward(reference, batch)
        for name, parameter in trained(reference).items():
            if parameter.grad is not None:
                total[name] += parameter.grad if reduction == "abs_of_sum" else parameter.grad.abs()
    result = magnitudes.result()
    assert list(result) == list(total)
    for name, expected in total.items():
        torch.testing.assert_close(result[name], expected.abs(), rtol=1e-5, atol=1e-7)
    assert lists(select(result, 0.03)) == mask_by_sorting(result, 0.03)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_two_reductions_differ_where_batches_cancel() -> None:
    def magnitudes(reduction: Reduction) -> Tensor:
        parameter = nn.Parameter(torch.zeros(2))
        accumulated = GradientMagnitudes([("w", parameter)], reduction)
        for gradient in ([3.0, 1.0], [-3.0, 1.0]):
            (parameter * torch.tensor(gradient)).sum().backward()
            accumulated.add()
        return accumulated.result()["w"]

    assert magnitudes("abs_of_sum").tolist() == [0.0, 2.0]
    assert magnitudes("sum_of_abs").tolist() == [6.0, 2.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("density", [1e-9, 0.001, 0.013, 0.4, 1.0])
def test_select_with_ties_zeros_layouts_and_blocks(density: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoft.optim.saft._BLOCK", 100)
    rng = torch.Generator().manual_seed(3)
    coarse = torch.randint(-4, 5, (7, 11, 3, 3), generator=rng) * 1e-3  # few values: ties at every threshold; signs do not count
    sparse = torch.randn(500, generator=rng) * (torch.rand(500, generator=rng) < 0.1)
    tensors = {
        "sparse": sparse.to(dtype),
        "coarse": coarse.to(dtype).contiguous(memory_format=torch.channels_last),
        "scalar": torch.tensor(0.004).to(dtype),
        "empty": torch.zeros(0, 4, dtype=dtype),
        "rows": torch.randn(40, 6, generator=rng).to(dtype).t(),
        "zeros": -torch.zeros(300, dtype=dtype),
    }
    assert lists(select(tensors, density)) == mask_by_sorting(tensors, density)


def test_zeros_are_kept_only_where_nothing_else_is_left() -> None:
    magnitudes = {"a": torch.zeros(50), "b": torch.cat([torch.zeros(40), torch.full((10,), 1e-40)])}
    assert lists(select(magnitudes, 0.1)) == {"a": [], "b": list(range(40, 50))}
    assert lists(select(magnitudes, 0.12)) == {"a": [0, 1], "b": list(range(40, 50))}


def test_magnitudes_of_several_types_are_compared_as_the_widest() -> None:
    close = 1 + torch.arange(5, dtype=torch.float64) * 1e-12  # one value in float32
    magnitudes = {"half": torch.ones(3, dtype=torch.bfloat16), "single": torch.ones(3), "double": close}
    assert lists(select(magnitudes, 0.2)) == {"half": [], "single": [], "double": [3, 4]}
    assert lists(select(magnitudes, 0.5)) == {"half": [0], "single": [], "double": [1, 2, 3, 4]}


def test_excluded_tensors_are_kept_whole_and_do_not_count() -> None:
    magnitudes = {"body": torch.arange(1000.0), "head.weight": torch.full((10, 3), 1e9), "head.bias": torch.zeros(3)}
    kept = select(magnitudes, 0.01, exclude=["head.*"])
    assert lists(kept) == {"body": list(range(990, 1000)), "head.weight": list(range(30)), "head.bias": [0, 1, 2]}
    assert {indices.dtype for indices in kept.values()} == {torch.int32}
    assert lists(select(magnitudes, 0.01, exclude=["*"])) == {"body": list(range(1000)), "head.weight": list(range(30)), "head.bias": [0, 1, 2]}


@pytest.mark.parametrize(
    ("density", "exclude", "expected"),
    [
        (0.0, (), "density = 0.0 must be greater than 0 and at most 1"),
        (1.1, (), "density = 1.1 must"),
        (float("nan"), (), "density = nan must"),
        (0.1, ("module.head.*",), r"exclude: 'module\.head\.\*' matches none of the 1 parameters; they are named like body"),
    ],
)
def test_a_wrong_choice_of_entries_is_named(density: float, exclude: tuple[str, ...], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        select({"body": torch.ones(10)}, density, exclude)


def test_no_mask_is_chosen_by_gradients_that_are_not_finite_or_not_there() -> None:
    with pytest.raises(ModelError, match="gradient of b at the zero-shot weights is not finite"):
        select({"a": torch.ones(2), "b": torch.tensor([1.0, float("nan")])}, 0.5)
    model = Net()
    with pytest.raises(ConfigError, match="reduction = 'mean' must be one of abs_of_sum, sum_of_abs"):
        GradientMagnitudes(model.named_parameters(), "mean")  # type: ignore[arg-type]
    magnitudes = GradientMagnitudes(model.named_parameters())
    with pytest.raises(RuntimeError, match="no batch"):
        magnitudes.result()
    for batch in range(2):
        model.zero_grad()
        backward(model, batch)
        if not batch:
            magnitudes.add()
    with pytest.raises(RuntimeError, match=r"zeroed between two batches, that of first\.weight"):
        magnitudes.add()


# --- AdamW over the kept entries


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_with_every_entry_kept_it_is_adamw(dtype: torch.dtype, tolerance: float) -> None:
    """Two groups, a changing rate, weight decay, clipping, and a tensor that has a gradient every other step only."""
    ours, theirs = Net(dtype), Net(dtype)
    options = [{"lr": 1e-3, "weight_decay": 0.1}, {"lr": 3e-3, "weight_decay": 0.0}]

    def groups(model: Net) -> list[dict[str, Any]]:
        parameters = list(trained(model).values())
        return [{"params": part, **values} for part, values in zip((parameters[:4], parameters[4:]), options, strict=True)]

    sparse = SparseAdamW(named_groups(groups(ours), ours.named_parameters()), all_indices(ours))
    dense = torch.optim.AdamW(groups(theirs), foreach=False)
    for step in range(30):
        for model, optimizer in ((ours, sparse), (theirs, dense)):
            backward(model, step)
            if step % 2:
                model.norm.weight.grad = None
            for group, values in zip(optimizer.param_groups, options, strict=True):
                group["lr"] = values["lr"] * (1 - step / 40)
        norms = sparse.clip_grad_norm_(0.5), nn.utils.clip_grad_norm_(trained(theirs).values(), 0.5)
        torch.testing.assert_close(*norms, rtol=tolerance, atol=0)
        for optimizer in (sparse, dense):
            optimizer.step()
            optimizer.zero_grad()
    for name, expected in trained(theirs).items():
        # Relative to the tensor: entries near 0 are differences of larger numbers.
        torch.testing.assert_close(trained(ours)[name], expected, rtol=tolerance, atol=tolerance * float(expected.detach().abs().max()))
    assert ours.first.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("clip", [None, 0.05])
def test_kept_entries_follow_adamw_on_masked_gradients_and_the_others_stay(clip: float | None) -> None:
    """The reference: dense AdamW over masked gradients, everything not kept copied back after every step."""
    ours, theirs = Net(), Net()
    kept = some_indices(ours)
    start = cloned(ours.state_dict())
    sparse = SparseAdamW(trained(ours).items(), kept, lr=1e-2, weight_decay=0.3)
    dense = torch.optim.AdamW(trained(theirs).values(), lr=1e-2, weight_decay=0.3, foreach=False)
    for step in range(20):
        for model in (ours, theirs):
            model.load_state_dict(cloned(model.state_dict()))  # writes in place: nothing may be remembered of the weights
            backward(model, step)
        for name, parameter in trained(theirs).items():
            if parameter.grad is not None:
                parameter.grad = masked(parameter.grad, kept[name])
        if clip is not None:
            ours_norm, norm = sparse.clip_grad_norm_(clip), nn.utils.clip_grad_norm_(trained(theirs).values(), clip)
            torch.testing.assert_close(ours_norm, norm)
            assert float(norm) > clip
        sparse.step()
        dense.step()
        for optimizer in (sparse, dense):
            optimizer.zero_grad()
        with torch.no_grad():
            for name, parameter in trained(theirs).items():
                parameter.copy_(start[name] + masked(parameter - start[name], kept[name]))
    moved = 0
    for name, parameter in trained(ours).items():
        untouched = torch.ones(parameter.numel(), dtype=torch.bool)
        untouched[kept[name].long()] = False
        now, before = parameter.detach().reshape(-1), start[name].reshape(-1)
        assert torch.equal(now[untouched].view(torch.int32), before[untouched].view(torch.int32)), name
        moved += int((now != before).sum())
        torch.testing.assert_close(parameter, trained(theirs)[name], rtol=1e-5, atol=1e-6)
    assert moved == sum(len(indices) for name, indices in kept.items() if name != "unused")


def test_clipping_counts_and_scales_the_kept_gradients_alone() -> None:
    model = Net()
    kept = some_indices(model, 0.02)
    optimizer = SparseAdamW(trained(model).items(), kept)
    assert float(optimizer.clip_grad_norm_(1.0)) == 0.0  # no gradients yet
    backward(model, 0, scale=100.0)
    before = {name: parameter.grad.clone() for name, parameter in trained(model).items() if parameter.grad is not None}
    expected = float(torch.stack([masked(gradient, kept[name]).double().square().sum() for name, gradient in before.items()]).sum().sqrt())
    assert float(optimizer.clip_grad_norm_(0.1)) == pytest.approx(expected, rel=1e-5)
    for name, gradient in before.items():
        now = trained(model)[name].grad
        assert now is not None
        torch.testing.assert_close(masked(now, kept[name]), masked(gradient, kept[name]) * 0.1 / expected, rtol=1e-4, atol=1e-9)
        assert torch.equal(now - masked(now, kept[name]), gradient - masked(gradient, kept[name]))
    assert float(optimizer.clip_grad_norm_(1.0)) == pytest.approx(0.1, rel=1e-4)
    assert float(optimizer.clip_grad_norm_(1.0)) == pytest.approx(0.1, rel=1e-4), "below the bound nothing changes"


def test_gradients_and_weights_may_change_their_memory_layout() -> None:
    def run(change: bool) -> dict[str, Tensor]:
        model = Net()
        optimizer = SparseAdamW(trained(model).items(), some_indices(model, 0.3), lr=1e-2)
        for step in range(4):
            backward(model, step)
            if change and step == 1:
                for parameter in trained(model).values():
                    parameter.grad = parameter.grad.contiguous() if parameter.grad is not None else None
            if change and step == 2:
                model.point.bias.grad = model.point.bias.grad[:, None].expand(-1, 2)[:, 0]  # type: ignore[index]
                transposed = model.head.weight.grad.t().contiguous()  # type: ignore[union-attr]
                model.head.weight.grad = transposed.t()
            optimizer.clip_grad_norm_(0.5)
            optimizer.step()
            optimizer.zero_grad()
            if change and step == 2:
                model.to(memory_format=torch.contiguous_format)
        return {name: parameter.detach() for name, parameter in trained(model).items()}

    for (name, expected), values in zip(run(False).items(), run(True).values(), strict=True):
        torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-6, msg=name)


def test_its_state_is_below_a_hundredth_of_adamws_at_a_density_of_a_thousandth() -> None:
    model = nn.Sequential(nn.Linear(400, 500), nn.Conv2d(64, 64, 3).to(memory_format=torch.channels_last), *(nn.Linear(64, 64) for _ in range(9)))
    optimizer = SparseAdamW(model.named_parameters(), some_indices(model, 0.001))
    dense = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    for each in (optimizer, dense):
        each.step()
    reachable = [tensor for values in optimizer.state_dict()["state"].values() for tensor in values.values() if isinstance(tensor, Tensor)]
    reachable += [places for piece in optimizer._pieces() for _, places in piece.places.values()]
    dense_bytes = sum(tensor.nbytes for values in dense.state.values() for tensor in values.values())
    assert 0 < sum(tensor.nbytes for tensor in reachable) < 0.01 * dense_bytes
    assert optimizer.state_dict()["state"]["0.weight"]["exp_avg"].untyped_storage().nbytes() < 0.001 * dense_bytes, "no view of something dense"


def test_a_step_makes_no_dense_temporary() -> None:
    model = nn.Conv2d(256, 256, 3).to(memory_format=torch.channels_last)
    optimizer = SparseAdamW(model.named_parameters(), some_indices(model, 0.001))
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        optimizer.clip_grad_norm_(1.0)
        optimizer.step()
    assert model.weight.nbytes > 2_000_000
    assert 0 < max(event.cpu_memory_usage for event in profile.events()) < 0.02 * model.weight.nbytes


def test_resuming_is_exact_and_needs_no_new_mask() -> None:
    model = Net()
    kept = select({name: torch.rand_like(parameter) for name, parameter in trained(model).items()}, 0.1, exclude=["head.weight"])

    def groups(model: Net) -> list[dict[str, Any]]:
        parameters = list(trained(model).values())
        return named_groups(
            [{"params": part, "lr": 0.01, "base_lr": 0.01, "layer": str(i)} for i, part in enumerate((parameters[3:], parameters[:3]))],
            model.named_parameters(),
        )

    def steps(model: Net, optimizer: SparseAdamW, numbers: range) -> None:
        for step in numbers:
            backward(model, step)
            optimizer.clip_grad_norm_(0.3)
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] / (1 + step)
            optimizer.step()
            optimizer.zero_grad()

    straight = SparseAdamW(groups(model), kept)
    steps(model, straight, range(5))
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": straight.state_dict()}, file)
    steps(model, straight, range(5, 9))

    saved = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    other = Net()
    other.load_state_dict(saved["model"])
    indices = kept_indices(saved["optimizer"])
    assert lists(indices) == lists(kept)
    resumed = SparseAdamW(groups(other), indices)
    resumed.load_state_dict(saved["optimizer"])
    assert [group["layer"] for group in resumed.param_groups] == ["0", "1"]
    steps(other, resumed, range(5, 9))
    assert state_digest(other.state_dict()) == state_digest(model.state_dict())
    for ours, expected in zip(resumed.state_dict()["state"].values(), straight.state_dict()["state"].values(), strict=True):
        assert ours["step"] == expected["step"]
        assert torch.equal(ours["exp_avg_sq"], expected["exp_avg_sq"])


def test_loading_takes_the_saved_indices_and_refuses_another_optimizers_state() -> None:
    model = Net()
    first, second = some_indices(model, 0.01), some_indices(model, 0.2)
    optimizer = SparseAdamW(trained(model).items(), first)
    optimizer.load_state_dict(SparseAdamW(trained(model).items(), second, lr=0.5, betas=(0.8, 0.9)).state_dict())
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["betas"]) == (0.5, (0.8, 0.9))
    assert lists(kept_indices(optimizer.state_dict())) == lists(second)
    assert all(len(optimizer.state[parameter]["exp_avg"]) == len(second[name]) for name, parameter in trained(model).items())
    for other in (torch.optim.AdamW(trained(model).values()), SparseAdamW(model.head.named_parameters(), all_indices(model.head))):
        with pytest.raises(ValueError, match="of an optimizer with other parameters"):
            optimizer.load_state_dict(other.state_dict())


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"head.bias": None}, "indices has none for 'head.bias'"),
        ({"head.bias": torch.tensor([0, 5])}, "indices of 'head.bias' must ascend from 0 to below 5"),
        ({"head.bias": torch.tensor([-1, 2])}, "must ascend from 0"),
        ({"head.bias": torch.tensor([1, 1])}, "must ascend from 0"),
        ({"head.bias": torch.tensor([0.0])}, r"indices of 'head.bias' are torch.float32 of shape \(1,\)"),
        ({"tail": torch.tensor([0])}, "indices has entries for 'tail', which is no parameter of this optimizer"),
    ],
)
def test_indices_that_do_not_fit_are_refused(change: dict[str, Tensor | None], expected: str) -> None:
    model = Net()
    indices = {name: values for name, values in {**all_indices(model), **change}.items() if values is not None}
    with pytest.raises(ConfigError, match=expected):
        SparseAdamW(trained(model).items(), indices)


def test_parameters_without_names_are_refused() -> None:
    model = Net()
    with pytest.raises(ConfigError, match="parameters need names"):
        SparseAdamW(trained(model).values(), all_indices(model))


# --- delta checkpoints


def fine_tuned(model: Net, density: float = 0.05) -> dict[str, Tensor]:
    """The model's state after some steps of the kept entries, with running statistics, a changed sign of zero and a NaN."""
    optimizer = SparseAdamW(trained(model).items(), some_indices(model, density), lr=1e-2)
    model.train()
    for step in range(3):
        backward(model, step)
        optimizer.step()
        optimizer.zero_grad()
    state = cloned(model.state_dict())
    state["first.bias"][0] = -0.0
    state["point.weight"].view(-1)[3] = float("nan")
    return state


def rows(tensor: Tensor) -> Tensor:
    """The bytes of each entry, in row-major order."""
    return tensor.contiguous().view(-1).view(torch.uint8).view(-1, tensor.element_size())


def zero_shot_model() -> Net:
    model = Net()
    with torch.no_grad():
        model.first.bias[0] = 0.0
    return model


def test_a_delta_restores_every_bit(tmp_path: Path) -> None:
    model = zero_shot_model()
    zero_shot = cloned(model.state_dict())
    state = fine_tuned(model)
    changed = save_delta(tmp_path / "delta.safetensors", zero_shot, state, {"method": "saft"})
    assert changed == sum(int((rows(tensor) != rows(zero_shot[name])).any(dim=1).sum()) for name, tensor in state.items())
    restored = load_delta(tmp_path / "delta.safetensors", zero_shot)
    assert list(restored) == list(zero_shot)
    for name, expected in state.items():
        assert torch.equal(rows(restored[name]), rows(expected)), name
        assert restored[name].stride() == zero_shot[name].stride()
        assert restored[name].data_ptr() != zero_shot[name].data_ptr()
    assert delta_info(tmp_path / "delta.safetensors") == {
        "format": "autoft-delta-1",
        "method": "saft",
        "zero_shot_digest": state_digest(zero_shot),
        "digest": state_digest(state),
    }
    stored = load_file(tmp_path / "delta.safetensors")
    assert "whole/norm.running_var" in stored and "whole/norm.num_batches_tracked" in stored
    assert "indices/first.weight" in stored and not any(key.endswith("/frozen") for key in stored)
    assert [path.name for path in tmp_path.iterdir()] == ["delta.safetensors"]


def test_a_delta_of_nothing_and_of_everything(tmp_path: Path) -> None:
    zero_shot = cloned(Net().state_dict())
    other = {name: tensor + 1 for name, tensor in zero_shot.items()}
    for state in (zero_shot, other):
        save_delta(tmp_path / "delta.safetensors", zero_shot, state)
        assert state_digest(load_delta(tmp_path / "delta.safetensors", zero_shot)) == state_digest(state)


def test_a_delta_names_both_digests_where_the_base_is_another(tmp_path: Path) -> None:
    model = zero_shot_model()
    zero_shot = cloned(model.state_dict())
    save_delta(tmp_path / "delta.safetensors", zero_shot, fine_tuned(model))
    other = cloned(zero_shot)
    other["frozen"][0] = 2.0  # untouched by the delta itself
    expected = f"belongs to the zero-shot weights {state_digest(zero_shot)}, not to those given, {state_digest(other)}"
    with pytest.raises(ModelError, match=expected):
        load_delta(tmp_path / "delta.safetensors", other)


def test_a_deltas_size_goes_with_the_density(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(500, 500), nn.Linear(500, 500))
    zero_shot = cloned(model.state_dict())
    entries = sum(parameter.numel() for parameter in model.parameters())
    for density in (0.001, 0.01, 0.1):
        state = cloned(zero_shot)
        for name, indices in some_indices(model, density).items():
            state[name].view(-1)[indices.long()] += 1.0
        path = tmp_path / "delta.safetensors"
        save_delta(path, zero_shot, state)
        assert path.stat().st_size == pytest.approx(8 * density * entries, abs=1500)


def test_a_damaged_or_foreign_file_is_refused(tmp_path: Path) -> None:
    model = zero_shot_model()
    zero_shot = cloned(model.state_dict())
    path = tmp_path / "delta.safetensors"

    def refused(expected: str) -> None:
        with pytest.raises(ModelError, match=expected):
            load_delta(path, zero_shot)

    refused("there is no delta checkpoint")
    path.write_bytes(b"nothing of the kind")
    refused("is no delta checkpoint, or damaged")
    save_file({"first.weight": torch.ones(2)}, path, metadata={"format": "pt"})
    refused("is no delta checkpoint: its format is 'pt'")
    save_delta(path, zero_shot, fine_tuned(model))
    metadata, tensors = delta_info(path), load_file(path)
    save_file({**tensors, "values/first.weight": tensors["values/first.weight"] + 1}, path, metadata=metadata)
    refused("is damaged: it gives the weights [0-9a-f]{16} instead of [0-9a-f]{16}")
    places, values = tensors["indices/first.weight"], tensors["values/first.weight"]
    for key, value, expected in (
        ("indices/first.weight", places - 10**6, "indices/first.weight has positions outside of 324 entries"),
        ("indices/first.weight", places + 10**6, "indices/first.weight has positions outside of 324 entries"),
        ("values/first.weight", values[:-1], "shape mismatch"),
        ("values/first.weight", values.double(), "values of first.weight are torch.float64, but torch.float32 in the zero-shot state"),
        ("whole/norm.running_var", torch.ones(1), r"whole/norm.running_var is of shape \(1,\), but \(12,\) in the zero-shot state"),
        ("whole/tail", torch.ones(3), "tail"),
    ):
        save_file({**tensors, key: value}, path, metadata=metadata)
        refused(f"is damaged: .*{expected}")


def test_states_that_do_not_match_have_no_delta(tmp_path: Path) -> None:
    zero_shot = cloned(Net().state_dict())
    with pytest.raises(ModelError, match=r"do not have the same names: \['tail'\]"):
        save_delta(tmp_path / "delta.safetensors", zero_shot, {**zero_shot, "tail": torch.ones(1)})
    with pytest.raises(ModelError, match=r"head.bias is torch.float16 \(5,\), but torch.float32 \(5,\) in the zero-shot state"):
        save_delta(tmp_path / "delta.safetensors", zero_shot, {**zero_shot, "head.bias": torch.ones(5).half()})
    assert not list(tmp_path.iterdir())
