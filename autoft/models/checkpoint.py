"""Checkpoints: folders that `open_clip.create_model_from_pretrained("local-dir:FOLDER")` loads, with our head beside the towers.

    open_clip_model.safetensors, open_clip_config.json   both towers and their preprocessing
    head.safetensors                                     the classifier: weight (classes, dim), bias (classes,); of a study with
                                                         descriptions of its classes also the second head's: core_weight, core_bias
    autoft.json                                          class names, prompts, hyperparameters, scores: a CheckpointInfo
    README.md                                            a model card
    delta.safetensors                                    of a sparse fine-tune (SAFT): what differs from the zero-shot state
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from autoft.config import ModelConfig
from autoft.errors import ModelError
from autoft.files import disk_errors, replace_folder, write_text
from autoft.inputs import read_text_input, shown
from autoft.models.classifier import ClipClassifier
from autoft.models.delta import save_delta
from autoft.models.load import LoadedModel, load_model
from autoft.models.state import State

WEIGHTS = "open_clip_model.safetensors"
HEAD = "head.safetensors"
INFO = "autoft.json"
DELTA = "delta.safetensors"
MAX_INFO_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class CheckpointInfo:
    """What a checkpoint is and how it came to be.

    core_beta: the first head's share in the predicted probabilities, in [0, 1]; None: it predicts alone, whether or not there is a second.
    """

    study: str
    method: str
    class_keys: tuple[str, ...]
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    fingerprint: str
    hyperparameters: Mapping[str, Any]
    alpha: float | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    core_beta: float | None = None


_INFO = TypeAdapter(CheckpointInfo)


def save_checkpoint(folder: Path, state: State, loaded: LoadedModel, info: CheckpointInfo, sparse_against: State | None = None) -> None:
    """Write a `ClipClassifier` state as a checkpoint folder; the folder appears whole or not at all.

    Args:
        sparse_against: a state of which few entries differ from `state`; the difference is written too, as `DELTA` (see `load_delta`).

    Raises:
        OSError: the disk is full or the folder cannot be written; what was there before stays.
    """
    with replace_folder(folder) as partial, disk_errors(partial / WEIGHTS):
        save_file(_part(state, "clip."), partial / WEIGHTS, metadata={"format": "pt"})
        save_file({**_part(state, "head."), **_part(state, "core_head.", "core_")}, partial / HEAD, metadata={"format": "pt"})
        write_text(partial / "open_clip_config.json", json.dumps(loaded.open_clip_config, indent=1))
        write_text(partial / INFO, json.dumps(_document(info), indent=1, sort_keys=True))
        write_text(partial / "README.md", _model_card(info))
        if sparse_against is not None:
            save_delta(partial / DELTA, sparse_against, state, {"study": info.study, "method": info.method})
        if loaded.hf_tokenizer is not None:
            loaded.hf_tokenizer.save_pretrained(str(partial))


def load_checkpoint(folder: Path) -> tuple[ClipClassifier, LoadedModel, CheckpointInfo]:
    """Read a checkpoint folder written by `save_checkpoint`.

    Raises:
        ModelError: the folder is not such a checkpoint, or its parts do not fit each other.
    """
    if not folder.is_dir():
        raise ModelError(f"there is no folder {folder}")
    for name in (WEIGHTS, "open_clip_config.json", HEAD, INFO):
        if not (folder / name).is_file():
            raise ModelError(f"{folder} is not a checkpoint of this program: it has no {name}")
    try:
        info = _read_info(folder / INFO)
        head = load_file(folder / HEAD)
    except Exception as error:
        raise ModelError(f"{folder}: {INFO} or {HEAD} is damaged: {_told(error)}") from None
    loaded = load_model(ModelConfig(name=f"local-dir:{folder}"))
    classes, dim = len(info.class_names), int(loaded.open_clip_config["model_cfg"]["embed_dim"])
    shapes = {"weight": (classes, dim), "bias": (classes,)}
    expected = {prefix + name: shape for prefix in ("", *_core_prefix(head)) for name, shape in shapes.items()}
    if {name: tuple(tensor.shape) for name, tensor in head.items()} != expected:
        raise ModelError(f"{folder}: the head in {HEAD} does not fit {classes} classes of {dim} features")
    if not all(tensor.is_floating_point() and bool(torch.isfinite(tensor).all()) for tensor in head.values()):
        raise ModelError(f"{folder}: the head in {HEAD} has values that are no finite numbers")
    first, *second = (_linear(head, prefix) for prefix in ("", *_core_prefix(head)))
    if info.core_beta is not None and (not second or not isinstance(info.core_beta, float | int) or not 0 <= info.core_beta <= 1):
        raise ModelError(f"{folder}: core_beta = {info.core_beta!r} in {INFO} must lie in [0, 1] and goes with core_weight in {HEAD}")
    model = ClipClassifier(loaded.clip, first, *second).channels_last()
    model.core_beta = info.core_beta
    return model, loaded, info


def read_state(folder: Path, device: torch.device) -> dict[str, Tensor]:
    """The `ClipClassifier` state a checkpoint folder holds, on `device`. Raises ModelError if it cannot be read."""
    try:
        towers, heads = (load_file(folder / file, device=str(device)) for file in (WEIGHTS, HEAD))
    except Exception as error:
        raise ModelError(f"{folder}: {WEIGHTS} or {HEAD} is missing or damaged: {_told(error)}") from None
    state = {f"clip.{name}": tensor for name, tensor in towers.items()}
    for name, tensor in heads.items():
        state[f"core_head.{name.removeprefix('core_')}" if name.startswith("core_") else f"head.{name}"] = tensor
    return state


def _part(state: Mapping[str, Tensor], prefix: str, called: str = "") -> dict[str, Tensor]:
    """The entries of a state below a prefix, on the CPU, which `called` stands for in the file."""
    return {
        called + name.removeprefix(prefix): tensor.detach().cpu().contiguous() for name, tensor in state.items() if name.startswith(prefix)
    }


def _core_prefix(head: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The prefix of the second head's tensors, if there is one."""
    return ("core_",) if any(name.startswith("core_") for name in head) else ()


def _linear(head: Mapping[str, Tensor], prefix: str) -> nn.Linear:
    weight, bias = head[f"{prefix}weight"], head[f"{prefix}bias"]
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    linear.load_state_dict({"weight": weight, "bias": bias})
    return linear


def _document(info: CheckpointInfo) -> dict[str, Any]:
    """What autoft.json holds: without `core_beta` where there is none, as before there was such a thing."""
    return {name: value for name, value in asdict(info).items() if name != "core_beta" or value is not None}


def _read_info(path: Path) -> CheckpointInfo:
    """Read autoft.json. Raises OSError, ValueError."""
    text = read_text_input(path, MAX_INFO_BYTES)
    info: CheckpointInfo = _INFO.validate_json(text, strict=True)
    unknown = sorted(json.loads(text).keys() - {field.name for field in fields(CheckpointInfo)})
    if unknown:
        raise ValueError(f"unknown key {unknown[0]!r}")
    if len(info.class_keys) != len(info.class_names):
        raise ValueError(f"there are {len(info.class_keys)} class_keys for {len(info.class_names)} class_names")
    return info


def _told(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc'])) or 'it'} = {shown(repr(first['input']), 80)}: {first['msg']}"
    return shown(str(error)) or type(error).__name__


def _model_card(info: CheckpointInfo) -> str:
    scores = "\n".join(f"- {name}: {value:.4f}" for name, value in sorted(info.scores.items()))
    alpha = f" with alpha {info.alpha:g}" if info.alpha is not None else ""
    mixed = "" if info.core_beta is None else _MIXED.format(beta=info.core_beta, rest=1 - info.core_beta)
    return f"""---
library_name: open_clip
pipeline_tag: zero-shot-image-classification
---
# {info.study}: {info.method}{alpha}

Fine-tuned with AutoFT (arXiv 2401.10220) on study `{info.study}`, fingerprint `{info.fingerprint}`.
Classes: {", ".join(info.class_names)}.

{scores}

Load the towers with `open_clip.create_model_from_pretrained("local-dir:PATH")`; the classifier is in `{HEAD}`:
logits = normalize(encode_image(x)) @ weight.T + bias.{mixed}
"""


_MIXED = """
Probabilities are those of two heads (DRM-style, reconstructed):
{beta:g} * softmax(logits) + {rest:g} * softmax(normalize(encode_image(x)) @ core_weight.T + core_bias)."""
