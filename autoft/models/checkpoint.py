"""Checkpoints: folders that `open_clip.create_model_from_pretrained("local-dir:FOLDER")` loads, with our head beside the towers.

    open_clip_model.safetensors, open_clip_config.json   both towers and their preprocessing
    head.safetensors                                     the classifier: weight (classes, dim), bias (classes,)
    autoft.json                                          class names, prompts, hyperparameters, scores: a CheckpointInfo
    README.md                                            a model card
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from autoft.config import ModelConfig
from autoft.errors import ModelError
from autoft.files import replace_folder, write_text
from autoft.models.classifier import ClipClassifier
from autoft.models.load import LoadedModel, load_model

WEIGHTS = "open_clip_model.safetensors"
HEAD = "head.safetensors"
INFO = "autoft.json"


@dataclass(frozen=True, kw_only=True)
class CheckpointInfo:
    """What a checkpoint is and how it came to be."""

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


def save_checkpoint(folder: Path, state: Mapping[str, Tensor], loaded: LoadedModel, info: CheckpointInfo) -> None:
    """Write a `ClipClassifier` state as a checkpoint folder; the folder appears whole or not at all.

    Raises:
        OSError: the disk is full or the folder cannot be written; what was there before stays.
    """
    with replace_folder(folder) as partial:
        save_file(_part(state, "clip."), partial / WEIGHTS, metadata={"format": "pt"})
        save_file(_part(state, "head."), partial / HEAD, metadata={"format": "pt"})
        write_text(partial / "open_clip_config.json", json.dumps(loaded.open_clip_config, indent=1))
        write_text(partial / INFO, json.dumps(asdict(info), indent=1, sort_keys=True))
        write_text(partial / "README.md", _model_card(info))
        if loaded.hf_tokenizer is not None:
            loaded.hf_tokenizer.save_pretrained(str(partial))


def load_checkpoint(folder: Path) -> tuple[ClipClassifier, LoadedModel, CheckpointInfo]:
    """Read a checkpoint folder written by `save_checkpoint`.

    Raises:
        ModelError: the folder is not such a checkpoint, or its parts do not fit each other.
    """
    for name in (WEIGHTS, "open_clip_config.json", HEAD, INFO):
        if not (folder / name).is_file():
            raise ModelError(f"{folder} is not a checkpoint of this program: it has no {name}")
    try:
        info = CheckpointInfo(**_tuples(json.loads((folder / INFO).read_text(encoding="utf-8"))))
        head = load_file(folder / HEAD)
    except Exception as error:
        raise ModelError(f"{folder}: {INFO} or {HEAD} is damaged: {error}") from None
    loaded = load_model(ModelConfig(name=f"local-dir:{folder}"))
    classes, dim = len(info.class_names), int(loaded.open_clip_config["model_cfg"]["embed_dim"])
    if {name: tuple(tensor.shape) for name, tensor in head.items()} != {"weight": (classes, dim), "bias": (classes,)}:
        raise ModelError(f"{folder}: the head in {HEAD} does not fit {classes} classes of {dim} features")
    linear = nn.Linear(dim, classes)
    linear.load_state_dict(head)
    return ClipClassifier(loaded.clip, linear).channels_last(), loaded, info


def read_state(folder: Path, device: torch.device) -> dict[str, Tensor]:
    """The `ClipClassifier` state a checkpoint folder holds, on `device`."""
    parts = (("clip.", WEIGHTS), ("head.", HEAD))
    return {prefix + name: tensor for prefix, file in parts for name, tensor in load_file(folder / file, device=str(device)).items()}


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor.detach().cpu().contiguous() for name, tensor in state.items() if name.startswith(prefix)
    }


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def _model_card(info: CheckpointInfo) -> str:
    scores = "\n".join(f"- {name}: {value:.4f}" for name, value in sorted(info.scores.items()))
    alpha = f" with alpha {info.alpha:g}" if info.alpha is not None else ""
    return f"""---
library_name: open_clip
pipeline_tag: zero-shot-image-classification
---
# {info.study}: {info.method}{alpha}

Fine-tuned with AutoFT (arXiv 2401.10220) on study `{info.study}`, fingerprint `{info.fingerprint}`.
Classes: {", ".join(info.class_names)}.

{scores}

Load the towers with `open_clip.create_model_from_pretrained("local-dir:PATH")`; the classifier is in `{HEAD}`:
logits = normalize(encode_image(x)) @ weight.T + bias.
"""


