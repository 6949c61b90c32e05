"""A streamed set gives what the cache would have given, to the bit; its processes end with whoever started them, and never hang."""

import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import autoft.data.stream as stream_module
from autoft.config import load_config
from autoft.data import load_study_data
from autoft.data.room import limit_cache
from autoft.data.stream import MAX_PIECE, Stream, StreamLost
from autoft.data.streamed import StreamedImages
from autoft.errors import DataError
from autoft.executor import FailureKind, classify_failure
from autoft.finetune import Recipe, draw_batch, drawn_examples, finetune, training_state
from autoft.search_space import Hyperparameters
from autoft.stages import all_splits
from autoft.workspace import DeviceImages, Workspace
from tests.data.make import as_json, encoded, folder, picture, shards, study, write_folder, write_shard
from tests.runs import ALL_TERMS, digest, first_steps, hyperparameters, load_workspace, one_thread, tune
from tests.studies import write_study

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _left_as_it_was() -> Iterator[None]:
    with one_thread():
        yield
    limit_cache(None)
    assert multiprocessing.active_children() == [], "every process has ended"


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, tiny_vit: Path) -> tuple[Workspace, Workspace]:
    """One study with its images in the cache, and streamed."""
    place = tmp_path_factory.mktemp("streamed")
    kept = load_workspace(place, tiny_vit)
    limit_cache(0)
    config = load_config(place / "tiny.yaml")
    streamed = Workspace.load(config, "cpu", place / "cache", splits=all_splits(config))
    limit_cache(None)
    assert isinstance(streamed.data.train.images, StreamedImages) and not isinstance(kept.data.train.images, StreamedImages)
    return kept, streamed


def streamed_set(source: Path, cache: Path, **options: Any) -> StreamedImages:
    limit_cache(0)
    images = load_study_data(study(folder(source), **options), 16, "bicubic", "shortest", cache).train.images
    assert isinstance(images, StreamedImages)
    return images


@pytest.mark.parametrize("processes", [1, 3])
def test_a_fine_tune_is_the_same_to_the_bit(both: tuple[Workspace, Workspace], processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the number of processes that decode, over epochs, with every loss term."""
    recipe = Recipe(hyperparameters=hyperparameters(weights=ALL_TERMS), steps=10, batch_size=12, schedule="cosine")
    kept, streamed = both
    expected = tune(kept, recipe)
    before = digest(kept)
    monkeypatch.setattr(stream_module, "_processes", lambda: processes)
    assert tune(streamed, recipe) == expected
    assert digest(streamed) == before
    for name in ("val_id", "val_ood", "a", "b"):
        assert torch.equal(streamed.logits(name), kept.logits(name))
        assert streamed.score(name) == kept.score(name)


def test_augmentation_is_a_function_of_seed_and_step(both: tuple[Workspace, Workspace]) -> None:
    """Asked in any order, streamed or not, a step has one batch; other steps and other seeds have others."""
    kept, streamed = both
    recipes = [Recipe(hyperparameters=hyperparameters(seed=seed), steps=8, batch_size=12) for seed in (5, 6)]
    asked = [(recipe, step) for recipe in recipes for step in range(8)]
    in_order = [draw_batch(kept, *one) for one in asked]
    backwards = [draw_batch(workspace, *one) for workspace, one in zip(itertools.cycle((streamed, kept)), reversed(asked), strict=False)]
    for one, other in zip(in_order, reversed(backwards), strict=True):
        assert torch.equal(one.images, other.images) and torch.equal(one.examples, other.examples)
        assert one.tokens is not None and other.tokens is not None and torch.equal(one.tokens, other.tokens)
    assert all(not torch.equal(one.images, other.images) for one, other in itertools.combinations(in_order, 2))


def test_a_resumed_fine_tune_goes_on_as_if_it_had_not_stopped(both: tuple[Workspace, Workspace]) -> None:
    kept, streamed = both
    recipe = Recipe(hyperparameters=hyperparameters(), steps=9, batch_size=12)
    expected = tune(kept, recipe)
    step = first_steps(streamed, recipe, 5)
    saved = _copied(training_state(streamed, step))
    assert tune(streamed, recipe, resume=saved) == expected[5:]
    assert digest(streamed) == digest(kept)


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("changes", [{"constraint": "tpgm"}, {"constraint": "saft", "mask_batches": 2}, {"start": "linear_probe"}])
def test_methods_that_draw_more_than_the_schedule_are_the_same(both: tuple[Workspace, Workspace], changes: dict[str, Any]) -> None:
    hp = replace(Hyperparameters(lr=1e-3, weight_decay=0.0, loss_weights={"cross_entropy": 1.0}, seed=2), **changes)
    recipe = Recipe(hyperparameters=hp, steps=5, batch_size=12)
    kept, streamed = both
    for workspace in both:
        workspace.forget()
    assert tune(streamed, recipe) == tune(kept, recipe)
    assert digest(streamed) == digest(kept)


def test_a_step_that_is_computed_again_gets_its_batch_again(both: tuple[Workspace, Workspace], monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the batch did not fit the memory: decoded once."""
    _, streamed = both
    recipe = Recipe(hyperparameters=hyperparameters(), steps=4, batch_size=12)
    aside: list[int] = []
    monkeypatch.setattr(StreamedImages, "__getitem__", lambda self, wanted: aside.append(len(wanted)))
    for step in streamed.train.ahead(range(4), lambda step: drawn_examples(streamed, recipe, step), 12):
        examples = drawn_examples(streamed, recipe, step)
        first = streamed.train.take(examples)
        assert torch.equal(streamed.train.take(examples.clone()), first)
    assert aside == [], "nothing was decoded outside the processes"


@pytest.mark.parametrize("size", [1, 5, 7, 100])
def test_all_images_come_in_order(tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    images = streamed_set(write_folder(tmp_path / "set", {"ant": 4, "bee": 3}), tmp_path / "cache")
    monkeypatch.setattr(stream_module, "_processes", lambda: 3)
    batches = list(Stream(images, CPU).batches(size))
    assert [len(batch) for batch in batches] == [min(size, 7 - start) for start in range(0, 7, size)]
    assert np.array_equal(torch.cat(batches).numpy(), images[:])


def test_batches_larger_than_a_piece_are_put_together(tmp_path: Path) -> None:
    images = streamed_set(write_folder(tmp_path / "set", {"ant": 40, "bee": 40}), tmp_path / "cache")
    wanted = torch.randperm(80, generator=torch.Generator().manual_seed(0))
    assert len(wanted) > MAX_PIECE
    stream = Stream(images, CPU)
    with stream.foresee([wanted], 80):
        assert torch.equal(stream.take(wanted), torch.from_numpy(images[wanted.numpy()]))


def test_tar_shards_are_read_where_the_images_lie(tmp_path: Path) -> None:
    members = [
        member
        for i in range(9)
        for member in ((f"{i:03}.jpg", encoded(picture(i, 30, 20), "JPEG")), (f"{i:03}.json", as_json({"label": i % 2})))
    ]
    for shard in range(3):
        write_shard(tmp_path / f"{shard}.tar", members[6 * shard : 6 * shard + 6])
    config = study(shards(tmp_path / "{0..2}.tar"))
    kept = load_study_data(config, 16, "bicubic", "shortest", tmp_path / "cache").train
    limit_cache(0)
    streamed = load_study_data(config, 16, "bicubic", "shortest", tmp_path / "other").train
    order = torch.tensor([8, 0, 5, 3, 3])
    assert np.array_equal(DeviceImages(streamed, CPU).take(order), kept.images[order.numpy()])
    assert streamed.content_hash == kept.content_hash


@pytest.mark.slow
def test_corruptions_and_images_left_out_are_the_same(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "set", {"ant": 5, "bee": 5})
    (source / "ant" / "01.png").write_bytes(b"no image")
    corrupted = folder(source, corruptions={"severity": 1})
    config = study(folder(source), val_ood=corrupted, on_bad_image="skip")
    kept = load_study_data(config, 32, "bicubic", "shortest", tmp_path / "cache", splits=["train", "val_ood"])
    limit_cache(0)
    streamed = load_study_data(config, 32, "bicubic", "shortest", tmp_path / "cache", splits=["train", "val_ood"])
    for one, other in ((streamed.train, kept.train), (streamed.val_ood, kept.val_ood)):
        assert len(one) == 9 and one.skipped == other.skipped != ()
        assert (one.content_hash, one.example_hashes) == (other.content_hash, other.example_hashes)
        assert np.array_equal(one.images[:], other.images)
        assert np.array_equal(torch.cat(list(DeviceImages(one, CPU).batches(4))), other.images)


def test_a_bad_image_is_told_before_any_work(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "set", {"ant": 2, "bee": 2})
    (source / "bee" / "01.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"data\.train: bee/01\.png is not an image"):
        streamed_set(source, tmp_path / "cache")


@pytest.mark.parametrize(("change", "message"), [(None, "cannot read image bee/00.png: No such file"), (b"", "has changed since"), (encoded(picture(1)), "has changed since")])
def test_a_file_that_vanishes_or_changes_is_named(tmp_path: Path, change: bytes | None, message: str) -> None:
    source = write_folder(tmp_path / "set", {"ant": 6, "bee": 6})
    images = streamed_set(source, tmp_path / "cache")
    stream, order = Stream(images, CPU), torch.arange(12).split(2)
    file = source / "bee" / "00.png"
    with pytest.raises(DataError, match=message) as raised, stream.foresee(order, 2):
        file.unlink()
        if change is not None:
            file.write_bytes(change)
        for examples in order:
            stream.take(examples)
    assert "Traceback" not in str(raised.value) and classify_failure(raised.value) == FailureKind.CODE
    with pytest.raises(DataError, match=message):
        stream.take(torch.tensor([6]))


def test_a_process_that_is_killed_is_told_and_the_trial_runs_again(tmp_path: Path) -> None:
    images = streamed_set(write_folder(tmp_path / "set", {"ant": 30, "bee": 30}), tmp_path / "cache")
    stream, order = Stream(images, CPU), torch.arange(60).split(4)
    with pytest.raises(RuntimeError, match=r"DataLoader worker \(pid") as raised, stream.foresee(order, 4):
        for child in multiprocessing.active_children():
            assert child.pid is not None
            os.kill(child.pid, signal.SIGKILL)
        for examples in order:
            stream.take(examples)
    assert classify_failure(raised.value) == FailureKind.INFRASTRUCTURE
    assert classify_failure(StreamLost("gone")) == FailureKind.INFRASTRUCTURE
    assert len(stream.take(torch.arange(3))) == 3


def test_breaking_off_ends_the_processes(both: tuple[Workspace, Workspace]) -> None:
    _, streamed = both
    steps = finetune(streamed, Recipe(hyperparameters=hyperparameters(), steps=50, batch_size=12))
    next(steps)
    assert multiprocessing.active_children()
    steps.close()
    assert not multiprocessing.active_children()
    scoring = streamed.images("val_ood").batches(5)
    next(scoring)
    assert multiprocessing.active_children()
    del scoring
    assert not multiprocessing.active_children()


TRAINING = """
import sys
from pathlib import Path
from autoft.config import load_config
from autoft.data.room import limit_cache
from autoft.finetune import Recipe, finetune
from autoft.workspace import Workspace
from tests.runs import hyperparameters
import multiprocessing, signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs do not begin with
limit_cache(0)
workspace = Workspace.load(load_config(sys.argv[1]), "cpu", Path(sys.argv[2]))
for step in finetune(workspace, Recipe(hyperparameters=hyperparameters(), steps=3000, batch_size=12)):
    if step.number == 2:
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    time.sleep(0.01)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_the_one_that_trains(tmp_path: Path, tiny_vit: Path, number: int) -> None:
    """Ctrl-C goes to the whole group, as from a terminal; a kill to one process."""
    path = write_study(tmp_path, tiny_vit)
    command = [sys.executable, "-c", TRAINING, str(path), str(tmp_path / "cache")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True) as trains:
        assert trains.stdout is not None and trains.stderr is not None
        children = [int(pid) for pid in trains.stdout.readline().split()]
        assert children
        if number == signal.SIGINT:
            os.killpg(trains.pid, number)
        else:
            trains.kill()
        said = trains.stderr.read()
    deadline = time.monotonic() + 30
    while any(_lives(pid) for pid in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_lives(pid) for pid in children)
    assert said.count("KeyboardInterrupt") == (1 if number == signal.SIGINT else 0), said


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
