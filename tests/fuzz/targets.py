"""Every place where AutoFT reads what somebody else wrote, as a function of bytes: it may raise AutoFTError, and nothing else.

The corpus, hypothesis and atheris all call these.
"""

import functools
import io
import json
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from autoft.cli.finetune import _named_or_read
from autoft.comparison.records import read_comparison
from autoft.config import ArraysDataset, CsvDataset, FolderDataset, WebDataset, WildsDataset, load_config
from autoft.data import ClassTable, Listing, PixelSpec, open_listing
from autoft.data.classes import class_table
from autoft.data.descriptions import load_descriptions
from autoft.data.pixels import decode_image, square
from autoft.errors import AutoFTError
from autoft.files import read_json
from autoft.journal import Journal
from autoft.report.page import render
from autoft.report.schema import check_summary
from autoft.report.trials import read_trials
from storage.urls import parse_storage_url
from tests.data.make import study

SPEC = PixelSpec(16, "bicubic")
CLASSES = ClassTable(("cat", "dog", "wild boar"), ("cat", "dog", "wild boar"))
STUDY_ID = "7d0c6d4e"
STUDY: Mapping[str, Any] = {
    "study": "s",
    "model": {"name": "ViT-B-32", "pretrained": "openai"},
    "data": {name: {"layout": "folder", "path": name} for name in ("train", "val_id", "val_ood")},
    "search_space": {"base_lr": 1e-5},
    "search": {"n_trials": 1},
    "trial": {"steps": 1},
}
Target = Callable[[bytes, Path], object]


def png() -> bytes:
    """A small whole image."""
    buffer = io.BytesIO()
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(buffer, "PNG")
    return buffer.getvalue()


def study_file(data: bytes, folder: Path) -> object:
    """A whole study file."""
    return load_config(_write(folder / "study.yaml", data))


def study_fields(data: bytes, folder: Path) -> object:
    """A good study file with what the bytes say put over it, section by section: gets farther in than `study_file`."""
    base = "\n".join(f"{name}: {json.dumps(value)}" for name, value in STUDY.items() if f"\n{name}:".encode() not in b"\n" + data)
    return load_config(_write(folder / "study.yaml", base.encode() + b"\n" + data))


def override(data: bytes, folder: Path) -> object:
    """What follows --set."""
    return load_config(_write(folder / "study.yaml", yaml.safe_dump(dict(STUDY)).encode()), [_text(data)])


def storage_url(data: bytes, folder: Path) -> object:
    """A storage URL, and what is shown of it."""
    url = parse_storage_url(_text(data), "AUTOFT_STORAGE_URL")
    assert url.is_postgres or url.path
    return url.safe, repr(url)


def table(data: bytes, folder: Path) -> object:
    """A CSV beside two images."""
    for name in ("a.png", "b.png"):
        _write(folder / "images" / name, png())
    return _read_all(open_listing(CsvDataset(layout="csv", path=_write(folder / "images" / "t.csv", data), caption=None), "data.train"))


def wilds_table(data: bytes, folder: Path) -> object:
    """iWildCam's metadata.csv."""
    _write(folder / "train" / "a.png", png())
    _write(folder / "metadata.csv", data)
    return _read_all(open_listing(WildsDataset(layout="iwildcam", path=folder, split="train", check_size=False), "data.train"))


def shard(data: bytes, folder: Path) -> object:
    """A tar shard."""
    found = _read_all(open_listing(WebDataset(layout="webdataset", path=str(_write(folder / "s.tar", data))), "data.train"))
    assert sorted(path.name for path in folder.iterdir()) == ["s.tar"], "a member was extracted"
    return found


def pattern(data: bytes, folder: Path) -> object:
    """A brace pattern of shards, of which none exists."""
    return open_listing(WebDataset(layout="webdataset", path=f"{folder}/{_text(data)}"), "data.train")


def image(data: bytes, folder: Path) -> object:
    """An encoded image, up to the model's pixels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return square(decode_image(data, "data.train", "x.jpg"), SPEC)


def arrays_npz(data: bytes, folder: Path) -> object:
    """An .npz of images and labels."""
    return _read_all(open_listing(ArraysDataset(layout="arrays", path=_write(folder / "a.npz", data)), "data.train"))


def arrays_npy(data: bytes, folder: Path) -> object:
    """An .npy of images, with good labels."""
    np.save(folder / "labels.npy", np.zeros(2, dtype=np.int64))
    dataset = ArraysDataset(layout="arrays", path=_write(folder / "a.npy", data), labels=str(folder / "labels.npy"))
    return _read_all(open_listing(dataset, "data.train"))


def class_names(data: bytes, folder: Path) -> object:
    """A file of class names."""
    for name in ("cat", "dog"):
        _write(folder / "train" / name / "1.png", b"")
    data_section = study(FolderDataset(layout="folder", path=folder / "train"), classnames=_write(folder / "names.txt", data))
    return class_table(data_section, open_listing(data_section.train, "data.train"))


def descriptions(data: bytes, folder: Path) -> object:
    """A file of descriptions of three classes."""
    return load_descriptions(_write(folder / "d.json", data), CLASSES)


def journal(data: bytes, folder: Path) -> object:
    """A study's journal."""
    return list(Journal(_write(folder / "journal.jsonl", data), STUDY_ID).entries())


def hyperparameters(data: bytes, folder: Path) -> object:
    """What `autoft finetune --hyperparameters` reads."""
    found = _named_or_read(str(_write(folder / "hp.json", data)))[1]
    return found and found.digest()


def trials_table(data: bytes, folder: Path) -> object:
    """trials.csv as the report reads it."""
    return read_trials(_write(folder / "trials.csv", data))


def summary(data: bytes, folder: Path) -> object:
    """summary.json as the report checks it, and the page without figures."""
    document = read_json(_write(folder / "summary.json", data))
    if not isinstance(document, dict):
        raise AutoFTError("no JSON object")
    check_summary(document)
    return render(document, [], {}, [])


def comparison(data: bytes, folder: Path) -> object:
    """comparison.json."""
    return read_comparison(_write(folder / "c.json", data))


def _checkpoint_with(name: str) -> Target:
    """A good checkpoint folder of which one file is the bytes."""

    def read(data: bytes, folder: Path) -> object:
        from autoft.models.checkpoint import load_checkpoint

        shutil.copytree(checkpoint(), folder / "c")
        _write(folder / "c" / name, data)
        return load_checkpoint(folder / "c")

    return read


def delta(data: bytes, folder: Path) -> object:
    """A delta checkpoint against three small tensors."""
    import torch

    from autoft.models.delta import load_delta

    return load_delta(_write(folder / "delta.safetensors", data), {name: torch.zeros(4, 4) for name in "abc"})


@functools.cache
def checkpoint() -> Path:
    """A checkpoint folder of a tiny model, made once."""
    from autoft.config import ModelConfig
    from autoft.models import build_classifier, load_model
    from autoft.models.checkpoint import CheckpointInfo, save_checkpoint
    from tests.studies import write_model

    folder = Path(tempfile.mkdtemp(prefix="autoft-fuzz-"))
    loaded = load_model(ModelConfig(name=f"local-dir:{write_model(folder / 'model', SMALLEST)}"))
    model = build_classifier(loaded, ("cat", "dog"), ("a {}",))
    info = CheckpointInfo(
        study="s", method="final", class_keys=("cat", "dog"), class_names=("cat", "dog"), templates=("a {}",), fingerprint="f", hyperparameters={}
    )
    save_checkpoint(folder / "checkpoint", model.state_dict(), loaded, info)
    return folder / "checkpoint"


# Small enough that its files can be copied and read some hundred times a second.
SMALLEST = {
    "embed_dim": 4,
    "vision_cfg": {"image_size": 8, "layers": 1, "width": 8, "head_width": 4, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 4, "heads": 1, "layers": 1},
}

TARGETS: Mapping[str, Target] = {
    "study_file": study_file,
    "study_fields": study_fields,
    "override": override,
    "storage_url": storage_url,
    "table": table,
    "wilds_table": wilds_table,
    "shard": shard,
    "pattern": pattern,
    "image": image,
    "arrays_npz": arrays_npz,
    "arrays_npy": arrays_npy,
    "class_names": class_names,
    "descriptions": descriptions,
    "journal": journal,
    "hyperparameters": hyperparameters,
    "trials_table": trials_table,
    "summary": summary,
    "comparison": comparison,
    "checkpoint_info": _checkpoint_with("autoft.json"),
    "checkpoint_head": _checkpoint_with("head.safetensors"),
    "checkpoint_weights": _checkpoint_with("open_clip_model.safetensors"),
    "checkpoint_config": _checkpoint_with("open_clip_config.json"),
    "delta": delta,
}


def outcome(name: str, data: bytes) -> AutoFTError | None:
    """What a target makes of some bytes in a folder of its own: None if it takes them. Whatever else it raises is our bug."""
    with tempfile.TemporaryDirectory(prefix="autoft-fuzz-") as folder:
        try:
            TARGETS[name](data, Path(folder))
        except AutoFTError as error:
            return error
    return None


def _read_all(listing: Listing) -> int:
    pixels = [square(listing.decode(index), SPEC) for index in range(min(len(listing), 50))]
    assert listing.labels is None or len(listing.labels) == len(listing)
    return len(pixels)


def _write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")
