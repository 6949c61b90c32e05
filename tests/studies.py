"""Small real studies for tests: a tiny open_clip ViT with random weights, and images whose class is a colour."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import yaml
from safetensors.torch import save_file

CLASSES = ("red", "green", "blue")
COLOURS = np.array([[200, 60, 60], [60, 200, 60], [60, 60, 200]])
TINY_VIT = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
TINY_CONVNET = {
    **TINY_VIT,
    "vision_cfg": {
        "timm_model_name": "mobilenetv2_035",
        "timm_model_pretrained": False,
        "timm_pool": "avg",
        "timm_proj": "linear",
        "image_size": 32,
    },
}
PIXELS = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic", "resize_mode": "shortest"}


def write_model(folder: Path, model_cfg: dict[str, Any] = TINY_VIT, seed: int = 0) -> Path:
    """A `local-dir:` folder with random weights."""
    folder.mkdir(parents=True, exist_ok=True)
    size = model_cfg["vision_cfg"]["image_size"]
    torch.manual_seed(seed)
    kind = open_clip.CLIP
    model = kind(**json.loads(json.dumps(model_cfg)))
    config = {"model_cfg": model_cfg, "preprocess_cfg": {**PIXELS, "size": [3, size, size], "mode": "RGB"}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    return folder


def write_images(path: Path, n: int, seed: int, noise: float, size: int = 20) -> Path:
    """An .npz of `n` noisy one-colour images, classes in turn."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % len(CLASSES)
    images = COLOURS[labels][:, None, None, :] + rng.normal(0, noise, (n, size, size, 3))
    np.savez(path, images=images.clip(0, 255).astype(np.uint8), labels=labels)
    return path


def study_document(folder: Path, model: Path, **changes: Any) -> dict[str, Any]:
    """A study file's content over data written to `folder`; `changes` are `section__field=value`."""
    folder.mkdir(parents=True, exist_ok=True)
    sets = {"train": (48, 20), "val_id": (24, 20), "val_ood": (24, 70), "test_a": (30, 20), "test_b": (30, 80)}
    for seed, (name, (n, noise)) in enumerate(sets.items()):
        write_images(folder / f"{name}.npz", n, seed, noise)
    document: dict[str, Any] = {
        "study": "tiny",
        "model": {"name": f"local-dir:{model}"},
        "data": {
            "classnames": list(CLASSES),
            "templates": ["a {} square.", "something {}."],
            **{name: {"layout": "arrays", "path": str(folder / f"{name}.npz")} for name in ("train", "val_id", "val_ood")},
            "test_id": {"a": {"layout": "arrays", "path": str(folder / "test_a.npz")}},
            "test_ood": {"b": {"layout": "arrays", "path": str(folder / "test_b.npz")}},
        },
        "search_space": {"base_lr": 1e-3},
        "search": {"n_trials": 6, "sampler": "random", "seed": 3, "enqueue": [], "confirm": {"repeats": 0}},
        "trial": {"steps": 4, "batch_size": 12},
        "final": {"epochs": 2, "batch_size": 12},
        "wise_ft": {"alphas": [0.0, 0.5, 1.0]},
    }
    for key, value in changes.items():
        *parents, leaf = key.split("__")
        node = document
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return document


def write_study(folder: Path, model: Path, **changes: Any) -> Path:
    """Write a small study file with its data; returns its path."""
    document = study_document(folder / "data", model, **changes)
    path = folder / f"{document['study']}.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path
