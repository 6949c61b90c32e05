"""Loading models, with messages a person can act on; the zero-shot head; states matched by name; interpolation; texts."""

import json
import os
import pickle
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from autoft.config import ModelConfig
from autoft.errors import ModelError
from autoft.models import (
    LoadedModel,
    TextBank,
    ZeroShotState,
    build_classifier,
    copy_state,
    interpolate,
    load_model,
    state_digest,
    zero_shot_head,
)
from tests.runs import one_thread
from tests.studies import CLASSES, TINY_VIT

WEIGHTS = "open_clip_model.safetensors"
NAMES = ["red", "dark green", "blue"]
TEMPLATES = ["a {} square.", "something {}."]


@pytest.fixture(scope="module", autouse=True)
def _threads() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def architecture(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny ViT as an architecture that open_clip knows by name."""
    folder = tmp_path_factory.mktemp("architectures")
    (folder / "tiny-vit-for-tests.json").write_text(json.dumps(TINY_VIT))
    open_clip.add_model_config(folder)
    return "tiny-vit-for-tests"


@pytest.fixture
def copy_of(tmp_path: Path, tiny_vit: Path) -> Callable[..., Path]:
    """A copy of the tiny ViT's folder with a changed state dict, as safetensors or as a torch file."""

    def make(change: Callable[[dict[str, Any]], dict[str, Any]], torch_file: bool = False) -> Path:
        folder = tmp_path / "copy"
        folder.mkdir()
        (folder / "open_clip_config.json").write_bytes((tiny_vit / "open_clip_config.json").read_bytes())
        state = change(dict(load_file(tiny_vit / WEIGHTS)))
        if torch_file:
            torch.save(state, folder / "open_clip_pytorch_model.bin")
        else:
            save_file(state, folder / WEIGHTS)
        return folder

    return make


def local(folder: Path) -> ModelConfig:
    return ModelConfig(name=f"local-dir:{folder}")


def message(config: ModelConfig) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- names and tags


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"name": "ViT-B-61"}, "model.name = 'ViT-B-61' is no open_clip model; did you mean ViT-B-16"),
        ({"name": "resnet-9000-zzz"}, "model.name = 'resnet-9000-zzz' is no open_clip model"),
        ({"name": "ViT-B-16"}, "model.pretrained is missing: a tag of ViT-B-16 .*laion2b_s34b_b88k.* or the path of a weights file"),
        ({"name": "ViT-B-16", "pretrained": "opena"}, "model.pretrained = 'opena': neither a file nor a tag.*openai"),
        ({"name": "s3:bucket/model"}, "the part before ':' must be local-dir or hf-hub"),
        ({"name": "local-dir:/nowhere/at/all"}, "there is no open_clip_config.json in /nowhere/at/all"),
        ({"name": "local-dir:/nowhere", "pretrained": "openai"}, "model.pretrained = 'openai' has no effect with model.name = 'local-dir:"),
    ],
)
def test_a_wrong_name_or_tag_is_named(config: dict[str, Any], expected: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ModelError, match=expected):
        load_model(ModelConfig(**config))
    assert caplog.records == [], "the error is the message; libraries add nothing to it"


def _wrong_activations() -> list[tuple[str, str]]:
    """Every published pair of an architecture with GELU and weights that were trained with QuickGELU."""
    pairs = []
    for name, tag in open_clip.list_pretrained():
        trained_with = open_clip.get_pretrained_cfg(name, tag).get("quick_gelu", False)
        if trained_with and not open_clip.get_model_config(name).get("quick_gelu", False):
            pairs.append((name, tag))
    return pairs


def test_weights_of_another_activation_are_refused_before_the_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("open_clip.factory.download_pretrained", lambda *_, **__: pytest.fail("downloaded"))
    monkeypatch.setattr("autoft.models.load._hub_answers", lambda: True)
    pairs = _wrong_activations()
    assert ("ViT-B-32", "openai") in pairs
    for name, tag in pairs:
        assert message(ModelConfig(name=name, pretrained=tag)).endswith(f"use {name}-quickgelu")
        assert tag in open_clip.list_pretrained_tags_by_model(f"{name}-quickgelu"), "the advice works"


@pytest.mark.parametrize(("name", "tag"), [("ViT-B-32-quickgelu", "openai"), ("ViT-B-32", "laion2b_s34b_b79k")])
def test_weights_of_the_same_activation_are_downloaded(name: str, tag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: Any, **__: Any) -> str:
        raise OSError("reached the download")

    monkeypatch.setattr("open_clip.factory.download_pretrained", download)
    assert "reached the download" in message(ModelConfig(name=name, pretrained=tag))


# --- the hub without a network


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No hub answers; its cache is the returned, empty folder."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.mark.parametrize("config", [{"name": "hf-hub:nobody/nothing"}, {"name": "ViT-B-16-quickgelu", "pretrained": "openai"}])
def test_without_a_network_one_line_says_so_at_once(config: dict[str, Any], no_hub: Path, caplog: pytest.LogCaptureFixture) -> None:
    began = time.perf_counter()
    text = message(ModelConfig(**config))
    assert time.perf_counter() - began < 10  # its retries alone take 23 seconds
    assert text.startswith(f"model.name = '{config['name']}'")
    assert "the Hugging Face Hub cannot be reached" in text
    assert caplog.records == []
    assert not huggingface_hub.constants.HF_HUB_OFFLINE, "the setting is put back"


def test_without_a_network_the_hubs_cache_still_serves(no_hub: Path, tiny_vit: Path) -> None:
    snapshot = no_hub / "models--org--tiny" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (no_hub / "models--org--tiny" / "refs").mkdir()
    (no_hub / "models--org--tiny" / "refs" / "main").write_text("0" * 40)
    (snapshot / "open_clip_config.json").write_bytes((tiny_vit / "open_clip_config.json").read_bytes())
    (snapshot / WEIGHTS).write_bytes((tiny_vit / WEIGHTS).read_bytes())
    cached = load_model(ModelConfig(name="hf-hub:org/tiny"))
    assert state_digest(cached.clip.state_dict()) == state_digest(load_model(local(tiny_vit)).clip.state_dict())


# --- folders and weights files


def test_a_folder_without_weights_says_so(tmp_path: Path, tiny_vit: Path) -> None:
    (tmp_path / "open_clip_config.json").write_bytes((tiny_vit / "open_clip_config.json").read_bytes())
    assert "no weights were found there" in message(local(tmp_path))


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"model_cfg": {"embed_dim": 4}}', '{"model_cfg": {"vision_cfg": 3, "text_cfg": {}}}'])
def test_a_damaged_config_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "open_clip_config.json").write_text(content)
    text = message(local(tmp_path))
    assert text.startswith("model.name = 'local-dir:") and "open_clip_config.json" in text


def test_weights_are_matched_by_name_not_by_position(copy_of: Any, tiny_vit: Path) -> None:
    """The released code paired loss weights and states by position; here no order of a file matters."""
    shuffled = copy_of(lambda state: dict(reversed(state.items())), torch_file=True)
    assert state_digest(load_model(local(shuffled)).clip.state_dict()) == state_digest(load_model(local(tiny_vit)).clip.state_dict())


@pytest.mark.parametrize("torch_file", [False, True])
@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda state: {name: tensor for name, tensor in state.items() if name != "ln_final.weight"}, "ln_final.weight"),
        (lambda state: state | {"stranger.weight": torch.zeros(3)}, "stranger.weight"),
        (lambda state: state | {"ln_final.weight": torch.zeros(3)}, "ln_final.weight"),
    ],
    ids=["missing", "extra", "shape"],
)
def test_weights_that_do_not_fit_are_refused(copy_of: Any, change: Any, named: str, torch_file: bool) -> None:
    text = message(local(copy_of(change, torch_file)))
    assert "do not fit the architecture" in text and named in text


def test_weights_that_are_not_finite_are_refused(copy_of: Any) -> None:
    broken = copy_of(lambda state: state | {"ln_final.weight": torch.full_like(state["ln_final.weight"], torch.nan)})
    assert "NaN or infinite in 1 tensors, the first is ln_final.weight" in message(local(broken))


def test_an_architecture_with_a_weights_file_equals_the_folder(architecture: str, tiny_vit: Path, tmp_path: Path) -> None:
    torch.save(load_file(tiny_vit / WEIGHTS), tmp_path / "weights.pt")
    expected = state_digest(load_model(local(tiny_vit)).clip.state_dict())
    for file in (tiny_vit / WEIGHTS, tmp_path / "weights.pt"):
        assert state_digest(load_model(ModelConfig(name=architecture, pretrained=str(file))).clip.state_dict()) == expected


class _Mischief:
    """Unpickled, it creates a file."""

    def __init__(self, file: Path) -> None:
        self.file = str(file)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.file,)


class _TypeErrorFirst:
    """Unpickled with restrictions it raises TypeError, upon which open_clip tries again in another way."""

    def __reduce__(self) -> Any:
        return OrderedDict, (1, 2, 3)


def _pickled(content: Any, file: Path) -> None:
    file.write_bytes(pickle.dumps(content))


@pytest.mark.parametrize("write", [torch.save, _pickled], ids=["torch", "pickle"])
@pytest.mark.parametrize("disguise", [lambda bad: bad, lambda bad: {"state_dict": bad}, lambda bad: [bad, _TypeErrorFirst()], lambda bad: [_TypeErrorFirst(), bad]])
def test_defect_16_nothing_is_unpickled(
    write: Any, disguise: Any, architecture: str, tmp_path: Path, tiny_vit: Path
) -> None:
    trace = tmp_path / "executed"
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "open_clip_config.json").write_bytes((tiny_vit / "open_clip_config.json").read_bytes())
    file = folder / "open_clip_pytorch_model.bin"
    write(disguise(_Mischief(trace)), file)
    pickle.loads(pickle.dumps(_Mischief(tmp_path / "control")))  # noqa: S301 - the mischief works where nobody is careful
    assert (tmp_path / "control").exists()
    for config in (local(folder), ModelConfig(name=architecture, pretrained=str(file))):
        assert message(config).startswith("model.name = ")
        assert not trace.exists()


def test_defect_16_whole_modules_are_refused_with_advice(architecture: str, tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    text = message(ModelConfig(name=architecture, pretrained=str(tmp_path / "module.pt")))
    assert "pickled objects and are refused; convert them to safetensors" in text


# --- the zero-shot head


@pytest.fixture(scope="module")
def loaded(tiny_vit: Path) -> LoadedModel:
    return load_model(local(tiny_vit))


def test_the_zero_shot_head_is_that_of_open_clip(loaded: LoadedModel, tiny_vit: Path) -> None:
    reference, _ = open_clip.create_model_from_pretrained(f"local-dir:{tiny_vit}")
    reference.eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tiny_vit}")
    templates = [lambda name, template=template: template.replace("{}", name) for template in TEMPLATES]
    expected = open_clip.build_zero_shot_classifier(reference, tokenizer, NAMES, templates, num_classes_per_batch=None)
    head = zero_shot_head(loaded.clip, loaded.tokenizer, NAMES, TEMPLATES)
    torch.testing.assert_close(head.weight, expected.T * reference.logit_scale.exp())
    assert not head.bias.any()
    assert head.weight.requires_grad and head.bias.requires_grad


def test_the_classifier_gives_clips_own_zero_shot_logits(loaded: LoadedModel) -> None:
    """With one template: logits = exp(logit_scale) * cosine similarity, as CLIP itself computes them."""
    model = build_classifier(loaded, NAMES, TEMPLATES[:1])
    images = torch.randn(4, 3, 16, 16)
    tokens = loaded.tokenizer([TEMPLATES[0].replace("{}", name) for name in NAMES])
    with torch.no_grad():
        expected, _ = loaded.clip.get_logits(images, tokens)  # type: ignore[operator]
        torch.testing.assert_close(model(images), expected)


# --- states


def test_alpha_0_and_1_are_the_ends_to_the_bit_and_one_half_is_the_mean() -> None:
    a = {"x": torch.randn(50) * 1e3, "steps": torch.tensor(3), "half": torch.randn(4).bfloat16()}
    b = {"x": torch.randn(50) * 1e-3, "steps": torch.tensor(8), "half": torch.randn(4).bfloat16()}
    shuffled = dict(reversed(b.items()))
    for alpha, end in ((0.0, a), (1.0, b)):
        mixed = interpolate(a, shuffled, alpha)
        assert all(torch.equal(mixed[name], end[name]) for name in a)
        assert all(mixed[name].data_ptr() != end[name].data_ptr() for name in a), "a copy, not an alias"
    mean = interpolate(a, shuffled, 0.5)
    torch.testing.assert_close(mean["x"], (a["x"] + b["x"]) / 2)
    quarter = interpolate(a, shuffled, 0.25)
    torch.testing.assert_close(quarter["x"], 0.75 * a["x"] + 0.25 * b["x"])
    assert (int(mean["steps"]), int(quarter["steps"])) == (8, 3), "integers are not interpolated: they come from the nearer end"
    assert all(mixed[name].dtype == a[name].dtype for name in a)


@pytest.mark.parametrize("change", [lambda state: state.pop("bias"), lambda state: state.update(extra=torch.zeros(1))])
def test_states_with_other_names_do_not_mix(change: Any) -> None:
    model = nn.Linear(2, 2)
    state = ZeroShotState.of(model).tensors
    other = dict(state)
    change(other)
    with pytest.raises(KeyError, match=r"bias|extra"):
        copy_state(model, other)
    for start, end in ((state, other), (other, state)):
        with pytest.raises(KeyError, match=r"bias|extra"):
            interpolate(start, end, 0.5)


def test_copying_goes_by_name_and_leaves_the_tensors_where_they_are() -> None:
    model = nn.BatchNorm1d(3)
    places = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    wanted = {name: torch.full_like(tensor, i + 2) for i, (name, tensor) in enumerate(reversed(model.state_dict().items()))}
    copy_state(model, wanted)
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in model.state_dict().items())
    assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == places


def test_the_digest_sees_names_shapes_types_and_every_bit() -> None:
    state = {"a": torch.zeros(2, 3), "b": torch.tensor(1)}
    assert state_digest(state) == state_digest(dict(reversed(state.items())))
    channels_last = torch.randn(2, 3, 4, 4)
    assert state_digest({"a": channels_last}) == state_digest({"a": channels_last.to(memory_format=torch.channels_last)})
    others = [
        {"a": torch.zeros(3, 2), "b": torch.tensor(1)},
        {"a": torch.zeros(2, 3), "c": torch.tensor(1)},
        {"a": torch.zeros(2, 3).double(), "b": torch.tensor(1)},
        {"a": torch.zeros(2, 3), "b": torch.tensor(2)},
        {"a": -torch.zeros(2, 3), "b": torch.tensor(1)},
    ]
    assert len({state_digest(other) for other in [state, *others]}) == 6


# --- texts


def test_prompts_are_those_of_the_examples_class_and_each_text_comes_once(loaded: LoadedModel) -> None:
    bank = TextBank.of_prompts(loaded.tokenizer, CLASSES, TEMPLATES, torch.device("cpu"))
    labels = torch.tensor([2, 0, 0, 2, 2, 0, 0, 0])
    allowed = {int(label): [tuple(row.tolist()) for row in loaded.tokenizer([t.replace("{}", CLASSES[label]) for t in TEMPLATES])] for label in labels}
    seen: set[tuple[int, ...]] = set()
    rng = torch.Generator().manual_seed(0)
    for _ in range(10):
        tokens, index = bank.pick(torch.arange(8), labels, rng)
        rows = [tuple(row) for row in tokens.tolist()]
        assert len(set(rows)) == len(rows)
        assert all(rows[i] in allowed[int(label)] for i, label in zip(index.tolist(), labels, strict=True))
        seen |= set(rows)
    assert seen == {row for rows in allowed.values() for row in rows}, "every template is used"


def test_captions_are_those_of_the_example(loaded: LoadedModel) -> None:
    captions = ["a cat", "a dog", "a cat", "two birds"]
    bank = TextBank.of_captions(loaded.tokenizer, captions, torch.device("cpu"))
    assert len(bank.tokens) == 3
    examples = torch.tensor([3, 0, 2])
    tokens, index = bank.pick(examples, torch.tensor([0, 0, 0]), torch.Generator())
    assert torch.equal(tokens[index], loaded.tokenizer([captions[i] for i in examples]))
    assert len(tokens) == 2


class CountsCopies(TorchDispatchMode):
    """Counts the tensors that are copied whole."""

    def __init__(self) -> None:
        super().__init__()
        self.copies = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.copies += func is torch.ops.aten.clone.default
        return func(*args, **(kwargs or {}))


def test_activations_copy_nothing_and_come_to_the_same_to_the_bit(tiny_convnet: Path) -> None:
    theirs = open_clip.create_model(f"local-dir:{tiny_convnet}").train()
    ours = load_model(ModelConfig(name=f"local-dir:{tiny_convnet}")).clip.train()
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = []
    for model in (theirs, ours):
        with CountsCopies() as count:
            features = model.encode_image(images)
            features.square().sum().backward()
        found.append((count.copies, features, [parameter.grad for parameter in model.visual.parameters()]))
    (copies, features, gradients), (fewer, same, as_well) = found
    assert copies >= 20  # the model is one that such activations cost something
    assert fewer == 0
    assert torch.equal(features, same)
    assert all(torch.equal(a, b) for a, b in zip(gradients, as_well, strict=True))
