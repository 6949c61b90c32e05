"""Several processes that share every batch take the steps one would take alone."""

import copy
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from autoft.cli.launch import check_flags
from autoft.cli.parser import build_parser
from autoft.collective import ALONE, Collective, share, together
from autoft.config import load_config
from autoft.errors import AutoFTError, ClusterError, ConfigError, Interrupted
from autoft.finetune import Recipe, finetune
from autoft.models.state import state_digest
from autoft.search_space import Hyperparameters
from autoft.stages import StageRequest, all_splits, run_stages, stage_result, trained_methods
from autoft.state_writer import StateWriter
from autoft.workspace import Workspace
from tests.processes import in_processes
from tests.runs import ALL_TERMS, cloned, hyperparameters, one_thread
from tests.studies import write_study
from tests.test_batch_split import SMOOTH_TERMS, in_float64, load
from workers import distributed
from workers.capacity import Node
from workers.cluster import WorkerSpec

NINE_BUT_SIGNS = {term: weight for term, weight in ALL_TERMS.items() if not term.startswith("l1_")}


class Meeting:
    """Processes as threads that meet: the plainest way to exchange, against which everything else is held."""

    def __init__(self, size: int) -> None:
        self.size, self.barrier = size, threading.Barrier(size, timeout=60)
        self.brought: list[Any] = [None] * size

    def exchange(self, rank: int, value: Any) -> list[Any]:
        self.brought[rank] = value
        self.barrier.wait()
        found = list(self.brought)
        self.barrier.wait()
        return found


class Thread:
    """A `Collective`."""

    def __init__(self, meeting: Meeting, rank: int) -> None:
        self.meeting, self.rank, self.size = meeting, rank, meeting.size

    def largest(self, numbers: Sequence[int]) -> list[int]:
        return [max(map(int, of_all)) for of_all in zip(*self.meeting.exchange(self.rank, list(numbers)), strict=True)]

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        everybody = self.meeting.exchange(self.rank, [tensor.detach().clone() for tensor in tensors])
        for tensor, *values in zip(tensors, *everybody, strict=True):
            assert len({value.dtype for value in values}) == 1
            tensor.detach().copy_(torch.stack(values).sum(dim=0))

    def gathered(self, own: Tensor, rows: int) -> Tensor:
        pieces = self.meeting.exchange(self.rank, own.detach().clone())
        pieces[self.rank] = own
        assert [len(piece) for piece in pieces] == [len(range(rows)[share(rows, rank, self.size)]) for rank in range(self.size)]
        return torch.cat(pieces)

    def copy_from_first(self, tensors: Sequence[Tensor]) -> None:
        for tensor, first in zip(tensors, self.meeting.exchange(self.rank, [tensor.detach().clone() for tensor in tensors])[0], strict=True):
            tensor.detach().copy_(first)


def in_threads(size: int, work: Callable[[Collective], Any]) -> list[Any]:
    """What `work` returned in each of so many threads; raises what the first of them to fail raised."""
    meeting = Meeting(size)
    found: list[Any] = [None] * size
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            found[rank] = work(Thread(meeting, rank))
        except BaseException as error:
            errors.append(error)
            if not isinstance(error, AutoFTError):  # which all raise alike
                meeting.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return found


def copied(workspace: Workspace, collective: Collective) -> Workspace:
    """A workspace of its own for a process."""
    found = replace(workspace, model=copy.deepcopy(workspace.model), sets={}, collective=collective)
    found.cached.update({name: value for name, value in workspace.cached.items() if name == "train_features"})
    return found


def run(workspace: Workspace, recipe: Recipe) -> dict[str, Any]:
    steps = list(finetune(workspace, recipe, report_norms=True))
    return {
        "losses": torch.stack([step.loss.double() for step in steps]),
        "terms": {name: torch.stack([step.terms[name].double() for step in steps]) for name in steps[0].terms},
        "state": cloned(workspace.model.state_dict()),
        "exact": all(step.split.exact for step in steps),
        "parts": workspace.batch_split,
    }


def shared(workspace: Workspace, recipe: Recipe, size: int) -> list[dict[str, Any]]:
    return in_threads(size, lambda collective: run(copied(workspace, collective), recipe))


def recipe(values: Hyperparameters, batch_size: int = 11, steps: int = 3) -> Recipe:
    return Recipe(hyperparameters=values, steps=steps, batch_size=batch_size, clip_grad_norm=1.0)


def check_same(alone: Mapping[str, Any], many: Sequence[Mapping[str, Any]], tolerance: float = 1e-10, states: bool = True) -> None:
    for one in many:
        assert torch.equal(one["losses"], many[0]["losses"])
        assert state_digest(one["state"]) == state_digest(many[0]["state"]), "all have the same weights, to the bit"
    torch.testing.assert_close(many[0]["losses"], alone["losses"], rtol=0, atol=tolerance)
    assert list(many[0]["terms"]) == list(alone["terms"])
    torch.testing.assert_close(many[0]["terms"], alone["terms"], rtol=0, atol=tolerance)
    if states:
        torch.testing.assert_close(many[0]["state"], alone["state"], rtol=0, atol=100 * tolerance)


@pytest.fixture(scope="module", autouse=True)
def _threads() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory, tiny_vit: Path) -> Workspace:
    return load(tmp_path_factory.mktemp("vit"), tiny_vit, evaluate__batch_size=7)


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory, tiny_vit: Path) -> Workspace:
    return in_float64(load(tmp_path_factory.mktemp("vit64"), tiny_vit))


@pytest.mark.parametrize(("rows", "size"), [(11, 2), (2, 3), (0, 2), (12, 4), (7, 7)])
def test_shares_are_all_rows_once_and_nearly_equal(rows: int, size: int) -> None:
    shares = [range(rows)[share(rows, rank, size)] for rank in range(size)]
    assert [row for part in shares for row in part] == list(range(rows))
    sizes = [len(part) for part in shares]
    assert sizes == sorted(sizes, reverse=True) and max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("weights", "batch", "size"),
    [
        pytest.param(SMOOTH_TERMS, 11, 2, id="every smooth term"),
        pytest.param(SMOOTH_TERMS, 11, 3, id="every smooth term in three", marks=pytest.mark.slow),
        pytest.param(SMOOTH_TERMS, 2, 3, id="one without examples", marks=pytest.mark.slow),
        pytest.param({"cross_entropy": 1.0, "hinge": 0.5, "l2_init": 10.0}, 5, 3, id="means"),
        pytest.param({"contrastive": 1.0}, 2, 3, id="contrastive"),
        pytest.param({"l2_zero": 3.0}, 2, 2, id="norm"),
        pytest.param({"lipsum": 1.0, "feature_mixup": 1.0}, 6, 2, id="two that draw"),
    ],
)
def test_losses_terms_and_weights_are_those_of_one_process(vit: Workspace, weights: dict[str, float], batch: int, size: int) -> None:
    """In float64, so that nothing but rounding may differ; a batch of 2 leaves the third process without an example."""
    asked = recipe(hyperparameters(weights=weights), batch)
    many = shared(vit, asked, size)
    check_same(run(copied(vit, ALONE), asked), many)


def test_the_curve_of_all_nine_terms(vit: Workspace) -> None:
    """The weights are not compared: where a gradient is but rounding, the L1 norms take its sign."""
    asked = recipe(hyperparameters(weights=ALL_TERMS), 11, 4)
    check_same(run(copied(vit, ALONE), asked), shared(vit, asked, 2), tolerance=1e-6, states=False)


@pytest.mark.slow
@pytest.mark.parametrize("values", [{"constraint": "saft", "density": 0.05, "mask_batches": 2}, {"constraint": "tpgm"}, {"constraint": "ftp"}, {"averaging": "beta"}])
def test_updates_of_other_methods(vit: Workspace, values: dict[str, Any]) -> None:
    asked = recipe(replace(hyperparameters(weights={"cross_entropy": 1.0, "contrastive": 0.5}), **values), 10)
    check_same(run(copied(vit, ALONE), asked), shared(vit, asked, 2))


@pytest.mark.slow
def test_each_share_in_parts(vit: Workspace) -> None:
    """Gradient accumulation within every process, for terms that couple examples and those that do not."""
    for weights in (SMOOTH_TERMS, {"cross_entropy": 1.0, "ldifs": 1.0}):
        asked = recipe(hyperparameters(weights=weights))

        def work(collective: Collective, asked: Recipe = asked) -> dict[str, Any]:
            workspace = copied(vit, collective)
            workspace.batch_split = 4
            return run(workspace, asked)

        many = in_threads(2, work)
        check_same(run(copied(vit, ALONE), asked), many)


@pytest.mark.parametrize("weights", [{"cross_entropy": 1.0}, {"contrastive": 1.0}], ids=["mean", "coupled"])
def test_memory_that_runs_out_in_one_process_splits_the_batch_in_all(vit: Workspace, weights: dict[str, float]) -> None:
    asked = recipe(hyperparameters(weights=weights), steps=2)

    def work(collective: Collective) -> dict[str, Any]:
        workspace = copied(vit, collective)
        features = workspace.model.image_features
        if collective.rank == 1:

            def scarce(images: Tensor) -> Tensor:
                if len(images) > 2:
                    raise torch.OutOfMemoryError("CUDA out of memory.")
                return features(images)

            workspace.model.image_features = scarce  # type: ignore[method-assign]
        return run(workspace, asked)

    many = in_threads(2, work)
    assert [one["parts"] for one in many] == [4, 4]
    check_same(run(copied(vit, ALONE), asked), many)


def test_together_another_error_is_not_hidden() -> None:
    def fails() -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        in_threads(2, lambda collective: together(collective, fails if collective.rank else lambda: None))


def test_batch_norm_that_trains_is_the_same_everywhere_and_recorded_as_not_exact(tmp_path: Path, tiny_convnet: Path) -> None:
    workspace = load(tmp_path, tiny_convnet)
    many = shared(workspace, recipe(hyperparameters(weights={"cross_entropy": 1.0}), 6, 2), 2)
    assert state_digest(many[0]["state"]) == state_digest(many[1]["state"])
    assert not many[0]["exact"]
    with pytest.raises(ConfigError, match=r"a batch of 3 cannot be shared among 2 processes: BatchNorm that trains needs two examples"):
        shared(workspace, recipe(hyperparameters(), 3), 2)


@pytest.mark.slow
def test_frozen_batch_norm_is_exact(tmp_path: Path, tiny_convnet: Path) -> None:
    workspace = in_float64(load(tmp_path, tiny_convnet, model__batch_norm="frozen"))
    asked = recipe(hyperparameters(weights=NINE_BUT_SIGNS), 5, 2)
    many = shared(workspace, asked, 2)
    check_same(run(copied(workspace, ALONE), asked), many)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_logits_are_those_of_one_process_to_the_bit(narrow: Workspace, size: int) -> None:
    """24 images in batches of 7: the last one is short, and five processes are more than there are batches."""
    alone = copied(narrow, ALONE).logits("val_ood")
    for found in in_threads(size, lambda collective: copied(narrow, collective).logits("val_ood")):
        assert torch.equal(found, alone)


# --- a whole run


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, tiny_vit: Path) -> tuple[Workspace, Path]:
    folder = tmp_path_factory.mktemp("study")
    config = load_config(write_study(folder, tiny_vit, final__epochs=2, final__batch_size=11, wise_ft__alphas=[0.0, 1.0]))
    return Workspace.load(config, "cpu", folder / "cache", splits=all_splits(config)), folder


def run_stages_in(study: tuple[Workspace, Path], name: str, size: int, stop_at: int | None = None) -> tuple[Path, list[dict[str, Any]]]:
    """Run the stages in so many processes; the first one is told to stop when it asks for the so many-th time."""
    workspace, folder = study
    methods = trained_methods(workspace.config, hyperparameters(weights=NINE_BUT_SIGNS), entries=1000)
    request = StageRequest(config=workspace.config, run_dir=folder / name, methods=methods, fingerprint="f" * 16, versions={"autoft": "0"})
    events: list[dict[str, Any]] = []
    asked = iter(range(1, 10_000))

    def work(collective: Collective) -> None:
        def emit(event: dict[str, Any]) -> None:
            assert collective.rank == 0
            events.append(event)

        run_stages(request, copied(workspace, collective), emit, lambda: collective.rank == 0 and next(asked) == stop_at)

    try:
        in_threads(size, work)
    except Interrupted:
        assert stop_at is not None
    return folder / name, events


def curve(folder: Path) -> list[float]:
    found = stage_result(folder, "final") or {}
    return [epoch[name] for epoch in found["epochs"] for name in ("train_loss", "val_id")]


@pytest.mark.slow
def test_stages_in_two_processes_and_stopped_in_the_middle_of_an_epoch(study: tuple[Workspace, Path]) -> None:
    """Stopped at step 2 of 8 in two processes, at 6 in three, ended by one: the curve is an undisturbed one's."""
    alone, _ = run_stages_in(study, "alone", 1)
    two, events = run_stages_in(study, "two", 2)
    assert curve(two) == pytest.approx(curve(alone), abs=1e-4)
    assert [event["stage"] for event in events if event["event"] == "stage_ended"] == ["final", "wise_ft", "evaluate-zero_shot", "evaluate-final", "evaluate-wise_ft"]
    moved, _ = run_stages_in(study, "moved", 2, stop_at=3)
    state = torch.load(moved / "training" / "final.pt", weights_only=True)
    assert state["training"]["step"] == 2 and len(state["losses"]) == 2
    run_stages_in(study, "moved", 3, stop_at=5)
    assert torch.load(moved / "training" / "final.pt", weights_only=True)["training"]["step"] == 6
    run_stages_in(study, "moved", 1)
    assert curve(moved) == pytest.approx(curve(alone), abs=1e-4)
    assert not (moved / "training" / "final.pt").exists()


# --- states written meanwhile


def test_a_state_is_written_as_it_was_when_it_was_handed_over(tmp_path: Path) -> None:
    writer = StateWriter(tmp_path / "deep" / "state.pt")
    weight = torch.zeros(3)
    writer.write({"training": {"weights": [weight], "step": 1}, "key": "k"}, live=("training",))
    weight += 1
    writer.finish()
    stored = torch.load(tmp_path / "deep" / "state.pt", weights_only=True)
    assert stored["key"] == "k" and torch.equal(stored["training"]["weights"][0], torch.zeros(3))
    assert not writer.busy and [path.name for path in (tmp_path / "deep").iterdir()] == ["state.pt"]


def test_training_goes_on_while_a_state_is_written_and_a_failure_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    going, save = threading.Event(), torch.save
    writer = StateWriter(tmp_path / "state.pt")

    def slow(value: Any, file: Any) -> None:
        assert going.wait(30)
        save(value, file)

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", slow)
        writer.write({"step": 1}, live=())
        assert writer.busy and not (tmp_path / "state.pt").exists()
        going.set()
        writer.finish()

    def full(value: Any, file: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", full)
        writer.write({"step": 2}, live=())
        with pytest.raises(OSError, match="No space left"):
            writer.finish()
    assert torch.load(tmp_path / "state.pt", weights_only=True) == {"step": 1}


# --- how many workers


def test_as_many_workers_as_asked_for_or_as_there_are_gpus() -> None:
    with_gpus = [Node(id=str(number), address=f"10.0.0.{number}", cpus=8, gpus=gpus) for number, gpus in enumerate((2, 1, 0))]
    without = [Node(id="0", address="10.0.0.1", cpus=8, gpus=0)]
    for gpus_each in (None, 0.5, 2.0):
        found = distributed.plan_final(with_gpus, None, gpus_each, None, "auto")
        assert found is not None and (found.count, found.gpus, found.device) == (3, 1.0, "cuda"), "a whole GPU each"
    assert distributed.plan_final(with_gpus, 1, None, None, "auto") is None
    assert distributed.plan_final(with_gpus, None, 0.0, None, "auto") is None and distributed.plan_final(without, None, None, None, "auto") is None
    assert distributed.plan_final(without, 4, None, None, "auto") == WorkerSpec(count=4, device="cpu", cpus=2, gpus=0.0)
    with pytest.raises(ClusterError, match=r"--final-workers 9: .* need 9 CPU cores; the cluster has 8"):
        distributed.plan_final(without, 9, None, None, "cpu")


def test_without_ray_there_is_one_process(tmp_path: Path) -> None:
    arguments = ["launch", "study.yaml", "--runs", str(tmp_path), "--executor", "in-process", "--final-workers", "2"]
    with pytest.raises(ClusterError, match=r"--final-workers 2 needs --executor ray"):
        check_flags(build_parser().parse_args(arguments))


def test_a_lost_peer_is_told_from_a_mistake() -> None:
    lost = RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.2]:17483")
    assert distributed._is_loss(lost) and distributed._is_loss(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert not distributed._is_loss(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) and not distributed._is_loss(OSError("Connection reset"))


# --- real processes


def gloo_work(collective: Collective, folder: str) -> dict[str, Any]:
    config = load_config(Path(folder) / "tiny.yaml")
    workspace = Workspace.load(config, "cpu", Path(folder) / "cache", splits=all_splits(config))
    workspace.collective = collective
    texts = torch.full((2 - collective.rank, 2), float(collective.rank), requires_grad=True)
    gathered = collective.gathered(texts, 3)
    gathered.square().sum().backward()
    large = [torch.full((7_000_000,), 1.0 + collective.rank), torch.arange(3), torch.ones(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)]
    collective.add_up(large)
    copies = [torch.tensor([float(collective.rank)]), torch.tensor(collective.rank)]
    collective.copy_from_first(copies)
    exchange = {
        "largest": collective.largest([collective.rank, -collective.rank]),
        "gathered": gathered.detach(),
        "gradient": texts.grad,
        "sums": [large[0][::1_000_000], large[1], large[2]],
        "copies": copies,
    }
    nine = run(workspace, recipe(hyperparameters(weights=NINE_BUT_SIGNS), 11, 6))
    return {"exchange": exchange, "nine": nine, "logits": workspace.logits("val_ood")}


@pytest.mark.slow
def test_two_processes_over_gloo(tmp_path: Path, tiny_vit: Path) -> None:
    write_study(tmp_path, tiny_vit, evaluate__batch_size=7)
    many = in_processes(2, gloo_work, str(tmp_path))
    for rank, one in enumerate(many):
        exchange = one["exchange"]
        assert exchange["largest"] == [1, 0]
        assert torch.equal(exchange["gathered"], torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 1.0]]))
        assert torch.equal(exchange["gradient"], 2.0 * torch.full((2 - rank, 2), float(rank)))
        assert exchange["sums"][0].tolist() == [3.0] * 7 and exchange["sums"][1].tolist() == [0, 2, 4]
        assert torch.equal(exchange["sums"][2], torch.full((2, 3, 4, 5), 2.0))
        assert [copy.item() for copy in exchange["copies"]] == [0.0, 0]
    config = load_config(tmp_path / "tiny.yaml")
    workspace = Workspace.load(config, "cpu", tmp_path / "cache", splits=all_splits(config))
    alone = run(workspace, recipe(hyperparameters(weights=NINE_BUT_SIGNS), 11, 6))
    check_same(alone, [one["nine"] for one in many], tolerance=2e-5, states=False)
    assert torch.equal(many[0]["logits"], many[1]["logits"])
    assert many[0]["nine"]["exact"] and many[1]["nine"]["exact"]
