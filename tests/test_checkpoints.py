"""Checkpoints: folders that open_clip loads, with the head beside the towers; whole or not at all; never a pickle."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from autoft.config import ModelConfig
from autoft.errors import ModelError
from autoft.models import (
    CheckpointInfo,
    LoadedModel,
    build_classifier,
    load_checkpoint,
    load_model,
    read_state,
    save_checkpoint,
    state_digest,
)
from tests.runs import cloned, one_thread

NAMES = ("red", "dark green", "blue")
INFO = CheckpointInfo(
    study="tiny",
    method="final",
    class_keys=("0", "1", "2"),
    class_names=NAMES,
    templates=("a {}.", "some {}."),
    fingerprint="0123456789abcdef",
    hyperparameters={"lr": 1e-3, "weight_decay": 0.1, "loss_weights": {"cross_entropy": 1.0}, "seed": 3},
    alpha=0.5,
    scores={"val_id": 0.75},
    versions={"torch": "2"},
)


@pytest.fixture(scope="module", autouse=True)
def _threads() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module", params=["vit", "convnet"])
def tuned(request: pytest.FixtureRequest, tiny_vit: Path, tiny_convnet: Path) -> tuple[LoadedModel, dict[str, torch.Tensor]]:
    """A loaded model and a classifier state that differs from it in every tensor."""
    loaded = load_model(ModelConfig(name=f"local-dir:{tiny_vit if request.param == 'vit' else tiny_convnet}"))
    model = build_classifier(loaded, NAMES, INFO.templates)
    generator = torch.Generator().manual_seed(0)
    state = cloned(model.state_dict())
    for tensor in state.values():
        if tensor.is_floating_point():
            tensor += 0.01 * torch.rand(tensor.shape, generator=generator)
        else:
            tensor += 7
    return loaded, state


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_checkpoint_comes_back_as_it_was(tuned: Any, tmp_path: Path) -> None:
    loaded, state = tuned
    save_checkpoint(tmp_path / "c", state, loaded, INFO)
    model, again, info = load_checkpoint(tmp_path / "c")
    assert state_digest(model.state_dict()) == state_digest(state)
    assert state_digest(read_state(tmp_path / "c", torch.device("cpu"))) == state_digest(state)
    assert info == INFO
    assert again.preprocess == loaded.preprocess
    assert not model.training


def test_open_clip_loads_it_and_the_card_says_how_to_classify(tuned: Any, tmp_path: Path) -> None:
    loaded, state = tuned
    save_checkpoint(tmp_path / "c", state, loaded, INFO)
    ours, _, _ = load_checkpoint(tmp_path / "c")
    theirs, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path / 'c'}")
    theirs.eval()
    size = loaded.preprocess.size
    images = torch.randn(5, 3, size, size)
    with torch.no_grad():
        features = theirs.encode_image(images, normalize=True)
        torch.testing.assert_close(ours.image_features(images), features, rtol=1e-4, atol=1e-5)
        head = load_file(tmp_path / "c" / "head.safetensors")
        torch.testing.assert_close(ours(images), features @ head["weight"].T + head["bias"], rtol=1e-4, atol=1e-4)
    assert [preprocess.transforms[-1].mean, preprocess.transforms[-1].std] == [list(loaded.preprocess.mean), list(loaded.preprocess.std)]
    assert preprocess(Image.new("RGB", (50, 40))).shape == (3, size, size)
    card = (tmp_path / "c" / "README.md").read_text()
    assert all(text in card for text in ("tiny: final with alpha 0.5", "val_id: 0.7500", *NAMES, "head.safetensors"))


SENTENCES = (("warm tone",), ("leaf tone", "like grass"), ("sky tone",))


@pytest.fixture
def two_heads(tiny_vit: Path, tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """A checkpoint with a head of descriptions, and the state it was made from."""
    loaded = load_model(ModelConfig(name=f"local-dir:{tiny_vit}"))
    state = cloned(build_classifier(loaded, NAMES, INFO.templates, SENTENCES).state_dict())
    state["core_head.bias"] += torch.tensor([0.5, -1.0, 2.0])
    save_checkpoint(tmp_path / "two", state, loaded, replace(INFO, core_beta=0.25))
    return tmp_path / "two", state


def test_a_checkpoint_with_two_heads_comes_back_and_predicts_their_mixture(two_heads: Any, tiny_vit: Path) -> None:
    folder, state = two_heads
    model, loaded, info = load_checkpoint(folder)
    assert state_digest(model.state_dict()) == state_digest(state) == state_digest(read_state(folder, torch.device("cpu")))
    assert info == replace(INFO, core_beta=0.25) and model.core_beta == 0.25 and not model.training
    theirs, _ = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    head = load_file(folder / "head.safetensors")
    images = torch.randn(5, 3, loaded.preprocess.size, loaded.preprocess.size)
    with torch.no_grad():
        features = theirs.eval().encode_image(images, normalize=True)
        first, second = (features @ head[f"{name}weight"].T + head[f"{name}bias"] for name in ("", "core_"))
        mixed = 0.25 * first.softmax(dim=1) + 0.75 * second.softmax(dim=1)
        torch.testing.assert_close(model(images).softmax(dim=1), mixed, rtol=1e-4, atol=1e-6)
    card = (folder / "README.md").read_text()
    assert "0.25 * softmax(logits) + 0.75 * softmax(" in card and "DRM-style, reconstructed" in card


def test_a_second_head_that_was_not_used_is_kept_and_not_mixed_in(two_heads: Any, tmp_path: Path) -> None:
    folder, state = two_heads
    _, loaded, _ = load_checkpoint(folder)
    save_checkpoint(tmp_path / "one", state, loaded, INFO)
    model, _, info = load_checkpoint(tmp_path / "one")
    assert state_digest(model.state_dict()) == state_digest(state) and model.core_beta is info.core_beta is None
    assert "core_beta" not in json.loads((tmp_path / "one" / "autoft.json").read_text()), "as checkpoints were before"


@pytest.mark.parametrize(
    ("drop", "beta", "expected"),
    [
        (("core_bias",), 0.25, "does not fit 3 classes of 16 features"),
        (("core_weight", "core_bias"), 0.25, "core_beta = 0.25.*core_weight"),
        ((), 1.5, "core_beta = 1.5"),
        ((), "half", "core_beta = 'half'"),
    ],
)
def test_two_heads_that_do_not_fit_are_refused(two_heads: Any, drop: tuple[str, ...], beta: Any, expected: str) -> None:
    folder, _ = two_heads
    head = load_file(folder / "head.safetensors")
    save_file({name: tensor.clone() for name, tensor in head.items() if name not in drop}, folder / "head.safetensors")
    (folder / "autoft.json").write_text(json.dumps(json.loads((folder / "autoft.json").read_text()) | {"core_beta": beta}))
    with pytest.raises(ModelError, match=expected):
        load_checkpoint(folder)


def test_a_fault_in_the_middle_leaves_the_old_folder(tuned: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, state = tuned
    save_checkpoint(tmp_path / "c", state, loaded, INFO)
    before = content(tmp_path / "c")
    for fault in ("safetensors", "text"):
        with monkeypatch.context() as broken:
            if fault == "safetensors":  # the towers are written, the head is not

                def save(tensors: Any, path: Path, **options: Any) -> None:
                    if path.name == "head.safetensors":
                        raise OSError("No space left on device")
                    save_file(tensors, path, **options)

                broken.setattr("autoft.models.checkpoint.save_file", save)
            else:

                def write(path: Path, text: str) -> None:
                    raise OSError("No space left on device")

                broken.setattr("autoft.models.checkpoint.write_text", write)
            with pytest.raises(OSError, match="No space left"):
                save_checkpoint(tmp_path / "c", {name: tensor * 2 for name, tensor in state.items()}, loaded, INFO)
        assert content(tmp_path / "c") == before
        assert [path.name for path in tmp_path.iterdir()] == ["c"], "nothing half-written stays beside it"


def test_a_later_checkpoint_replaces_an_earlier_one_and_leaves_nothing_of_it(tuned: Any, tmp_path: Path) -> None:
    loaded, state = tuned
    save_checkpoint(tmp_path / "c", state, loaded, INFO)
    (tmp_path / "c" / "left-over.txt").write_text("old")
    moved = {name: tensor + 1 for name, tensor in state.items()}
    save_checkpoint(tmp_path / "c", moved, loaded, INFO)
    assert state_digest(read_state(tmp_path / "c", torch.device("cpu"))) == state_digest(moved)
    assert not (tmp_path / "c" / "left-over.txt").exists()


def test_no_file_of_a_checkpoint_is_a_pickle(tuned: Any, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c", tuned[1], tuned[0], INFO)
    assert sorted(content(tmp_path / "c")) == [
        "README.md",
        "autoft.json",
        "head.safetensors",
        "open_clip_config.json",
        "open_clip_model.safetensors",
    ]
    assert json.loads((tmp_path / "c" / "autoft.json").read_text())["fingerprint"] == INFO.fingerprint


def _damage_info(folder: Path) -> None:
    (folder / "autoft.json").write_text("{")


def _strange_info(folder: Path) -> None:
    (folder / "autoft.json").write_text('{"study": "x"}')


def _damage_head(folder: Path) -> None:
    file = folder / "head.safetensors"
    file.write_bytes(file.read_bytes()[:-3])


def _other_classes(folder: Path) -> None:
    save_file({"weight": torch.zeros(2, 16), "bias": torch.zeros(2)}, folder / "head.safetensors")


def _head_without_bias(folder: Path) -> None:
    save_file({"weight": torch.zeros(3, 16)}, folder / "head.safetensors")


def _other_towers(folder: Path) -> None:
    state = load_file(folder / "open_clip_model.safetensors")
    state.pop("ln_final.bias")
    save_file(state, folder / "open_clip_model.safetensors")


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda folder: (folder / "autoft.json").unlink(), "not a checkpoint of this program: it has no autoft.json"),
        (lambda folder: (folder / "head.safetensors").unlink(), "has no head.safetensors"),
        (lambda folder: (folder / "open_clip_model.safetensors").unlink(), "has no open_clip_model.safetensors"),
        (_damage_info, "damaged"),
        (_strange_info, "damaged"),
        (_damage_head, "damaged"),
        (_other_classes, "does not fit 3 classes of 16 features"),
        (_head_without_bias, "does not fit 3 classes of 16 features"),
        (_other_towers, "do not fit the architecture.*ln_final.bias"),
    ],
)
def test_a_damaged_checkpoint_is_refused_by_name(damage: Any, expected: str, tmp_path: Path, tiny_vit: Path) -> None:
    loaded = load_model(ModelConfig(name=f"local-dir:{tiny_vit}"))
    save_checkpoint(tmp_path / "c", build_classifier(loaded, NAMES, INFO.templates).state_dict(), loaded, INFO)
    damage(tmp_path / "c")
    with pytest.raises(ModelError, match=expected) as caught:
        load_checkpoint(tmp_path / "c")
    assert str(tmp_path / "c") in str(caught.value)
