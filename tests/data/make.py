"""Miniature data sets of every layout."""

import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from autoft.config import ArraysDataset, CsvDataset, DataConfig, FolderDataset, WebDataset


def picture(seed: int, width: int = 12, height: int = 10) -> Image.Image:
    """A smooth random RGB image."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (3, 4, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write_folder(root: Path, counts: Mapping[str, int], seed: int = 0) -> Path:
    """CLASS/NN.png; every picture differs, also between seeds."""
    for c, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            (root / name / f"{i:02d}.png").write_bytes(encoded(picture(seed * 10_000 + c * 100 + i)))
    return root


def write_shard(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def shard_members(labels: Iterable[object], first: int = 0) -> list[tuple[str, bytes]]:
    return [
        member
        for i, label in enumerate(labels, first)
        for member in ((f"{i:04d}.png", encoded(picture(i))), (f"{i:04d}.cls", str(label).encode()))
    ]


def write_table(path: Path, header: str, rows: Iterable[str]) -> Path:
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def write_npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def folder(path: Path, **options: Any) -> FolderDataset:
    return FolderDataset(layout="folder", path=path, **options)


def table(path: Path, **options: Any) -> CsvDataset:
    return CsvDataset(layout="csv", path=path, **options)


def shards(path: Path | str, **options: Any) -> WebDataset:
    return WebDataset(layout="webdataset", path=str(path), **options)


def arrays(path: Path, **options: Any) -> ArraysDataset:
    return ArraysDataset(layout="arrays", path=path, **options)


def study(train: Any, val_id: Any = None, val_ood: Any = None, **options: Any) -> DataConfig:
    """A study's data section; validation sets default to TRAIN."""
    return DataConfig(train=train, val_id=val_id or train, val_ood=val_ood or train, **options)


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()
