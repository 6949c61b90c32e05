"""A workspace of random weights and random pixels in the true shapes, without a file."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import open_clip
import torch

from autoft.config import StudyConfig
from autoft.data import ClassTable, ImageSet, StudyData
from autoft.data.study import TRAIN_MARGIN
from autoft.losses import LOSS_TERMS
from autoft.models import LoadedModel
from autoft.models.load import Preprocess
from autoft.search_space import Hyperparameters
from autoft.workspace import Workspace

TINY: Mapping[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
MODELS: Mapping[str, str] = {"vit_b_16": "ViT-B-16", "vit_l_14": "ViT-L-14"}  # architectures of open_clip, by the figures' names
NORMS = ("l1_zero", "l2_zero", "l1_init", "l2_init")
TERMS: Mapping[str, Mapping[str, float]] = {
    "cross_entropy": {"cross_entropy": 1.0},
    "all": dict.fromkeys(LOSS_TERMS, 0.1) | {"cross_entropy": 1.0},
}


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How large everything is. batch, steps: of a trial; train, val: images; classes."""

    batch: int
    steps: int
    train: int
    val: int
    classes: int


def model_config(name: str) -> dict[str, Any]:
    """open_clip's description of a model of `MODELS`, or of the tiny one."""
    return dict(TINY) if name == "tiny" else dict(open_clip.get_model_config(MODELS[name]))


def workspace(name: str, sizes: Sizes, device: torch.device, precision: str) -> Workspace:
    """A worker's workspace as `Workspace.load` makes it, of a model with random weights; the same each time."""
    torch.manual_seed(0)
    described = model_config(name)
    clip = open_clip.CLIP(**described)
    size = described["vision_cfg"]["image_size"]
    context = described["text_cfg"]["context_length"]
    preprocess = Preprocess(size=size, mean=open_clip.OPENAI_DATASET_MEAN, std=open_clip.OPENAI_DATASET_STD, interpolation="bicubic", resize_mode="shortest")
    tokenizer = open_clip.SimpleTokenizer(context_length=context)
    loaded = LoadedModel(clip=clip, tokenizer=tokenizer, preprocess=preprocess, open_clip_config={"model_cfg": described}, hf_tokenizer=None)
    return Workspace.of(study(name, sizes, precision), device, loaded, data(sizes, size))


def study(name: str, sizes: Sizes, precision: str) -> StudyConfig:
    """The study file's content; its paths lead nowhere, since nothing is read from them."""
    sets = {split: {"layout": "arrays", "path": f"{split}.npz"} for split in ("train", "val_id", "val_ood")}
    return StudyConfig.model_validate(
        {
            "study": f"gpu-{name}".replace("_", "-"),
            "model": {"name": MODELS.get(name, "ViT-B-16"), "pretrained": "random", "precision": precision},
            "data": {"classnames": class_names(sizes), "templates": ["a photo of a {}.", "a drawing of a {}."], **sets},
            "search_space": {"base_lr": 1e-5},
            "search": {"n_trials": 1},
            "trial": {"steps": sizes.steps, "batch_size": sizes.batch},
        }
    )


def class_names(sizes: Sizes) -> list[str]:
    """As many words."""
    return [f"thing {number}" for number in range(sizes.classes)]


def data(sizes: Sizes, size: int) -> StudyData:
    """Random pixels and labels: TRAIN in squares with room for crops, the validation sets as the model takes them."""
    names = tuple(class_names(sizes))
    train = _images("data.train", sizes.train, math.ceil(TRAIN_MARGIN * size), sizes.classes, seed=0)
    val_id, val_ood = (_images(f"data.{split}", sizes.val, size, sizes.classes, seed) for seed, split in ((1, "val_id"), (2, "val_ood")))
    return StudyData(ClassTable(names, names), train, val_id, val_ood, {})


def _images(field: str, n: int, side: int, classes: int, seed: int) -> ImageSet:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (n, side, side, 3), dtype=np.uint8)
    labels = rng.integers(0, classes, n, dtype=np.int64)
    return ImageSet(field, pixels, labels, classes, None, (), None, content_hash="", example_hashes=())


def hyperparameters(terms: str, seed: int = 0, lr: float = 1e-5) -> Hyperparameters:
    """A configuration with the terms of `TERMS`."""
    return Hyperparameters(lr=lr, weight_decay=0.1, loss_weights=TERMS[terms], seed=seed)
