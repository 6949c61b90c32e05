"""The demo's data: print to fine-tune on, handwriting to hold up on.

In distribution are digits rendered with fonts. Out of distribution is real handwriting: scikit-learn's copy of the test part of the
UCI "Optical Recognition of Handwritten Digits" set (Alpaydin and Kaynak 1998), 1,797 pictures of 8×8 pixels by 13 people.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional

from autoft.demo.render import FACES, IMAGE_SIZE, Style, draw_glyphs, draw_pictures, to_bytes
from autoft.files import read_json, replace_folder

GENERATOR_VERSION = 1  # raise it whenever a byte of the data would change
STAMP = "stamp.json"
CLASSNAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
FILES = ("train", "val_id", "val_ood", "test_id", "test_ood_handwriting", "test_ood_cluttered")

SEED = 20240118
TRAIN_PER_CLASS, VAL_ID_PER_CLASS, TEST_ID_PER_CLASS, VAL_OOD_PER_CLASS = 300, 100, 200, 20
HANDWRITING_PIXELS = 24  # side of the enlarged 8×8 picture; the rest of the picture is margin

UNSEEN_FACES = ("DejaVuSans-BoldOblique", "DejaVuSerif-Italic", "DejaVuSansMono-Bold", "STIXGeneralBolIta", "cmti10", "cmtt10")
TRAIN_FACES = tuple(face for face in FACES if face not in UNSEEN_FACES)

PRINT = Style(
    rotation_degrees=(-12, 12),
    height=(14, 26),
    aspect=(0.8, 1.2),
    shear=(-0.15, 0.15),
    shift=(-3, 3),
    thickness=(-0.5, 1),
    wear=(0.0, 0.3),
    blur=(0, 1),
    noise=(0.02, 0.1),
    background=(0.0, 0.4),
    contrast=(0.35, 0.6),
    inverted=0.9,
)
SCAN = Style(blur=(0, 0), noise=(0, 0.02), background=(0.0, 0.05), contrast=(0.85, 0.95))
CLUTTERED = Style(blur=(0, 0.5), noise=(0, 0.05), background=(0.1, 0.4), contrast=(0.4, 0.6), clutter=(0.1, 0.3), inverted=1.0)

Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]


def build_demo_data(folder: Path) -> None:
    """Write the demo's .npz files, each with `images` uint8 (n, 32, 32) and `labels` int64 (n,), into `folder`.

    Does nothing if this version's files are there already; otherwise the whole folder is replaced at once. The content is the
    same every time on the same library versions.
    """
    stamp = {"generator_version": GENERATOR_VERSION}
    if read_json(folder / STAMP) == stamp and all((folder / f"{name}.npz").is_file() for name in FILES):
        return
    with replace_folder(folder) as partial:
        for name, (images, labels) in demo_arrays().items():
            np.savez(partial / f"{name}.npz", images=images, labels=labels)
        (partial / STAMP).write_text(json.dumps(stamp) + "\n", encoding="utf-8")


def demo_arrays() -> Mapping[str, Arrays]:
    """Every split by its file's name."""
    half_unseen = TRAIN_FACES + UNSEEN_FACES * 2  # 15 faces of the training set and 6 others, twice
    validation, test = _handwriting_positions()
    return {
        "train": _printed(TRAIN_FACES, TRAIN_PER_CLASS, "train"),
        "val_id": _printed(half_unseen, VAL_ID_PER_CLASS, "val_id"),
        "test_id": _printed(half_unseen, TEST_ID_PER_CLASS, "test_id"),
        "val_ood": _handwritten(validation, SCAN, "val_ood"),
        "test_ood_handwriting": _handwritten(test, SCAN, "test_ood_handwriting"),
        "test_ood_cluttered": _handwritten(test, CLUTTERED, "test_ood_cluttered"),
    }


def _rng(name: str) -> np.random.Generator:
    """Each split's own stream, so that a change of one leaves the others as they are."""
    return np.random.default_rng([SEED, *name.encode()])


def _printed(faces: Sequence[str], per_class: int, name: str) -> Arrays:
    rng = _rng(name)
    labels = rng.permutation(np.repeat(np.arange(10, dtype=np.int64), per_class))
    pictures = draw_glyphs(rng.choice(faces, len(labels)).tolist(), [str(label) for label in labels], PRINT, rng)
    return to_bytes(pictures), labels


def _handwritten(positions: NDArray[np.int64], style: Style, name: str) -> Arrays:
    digits = load_digits()
    ink = _enlarge(torch.from_numpy(digits.images[positions]).float() / 16)
    return to_bytes(draw_pictures(ink, style, _rng(name))), digits.target[positions].astype(np.int64)


def _enlarge(pictures: Tensor) -> Tensor:
    """(n, 8, 8) in [0, 1] to (n, IMAGE_SIZE, IMAGE_SIZE) with an empty margin."""
    size, margin = HANDWRITING_PIXELS, (IMAGE_SIZE - HANDWRITING_PIXELS) // 2
    large = functional.interpolate(pictures[:, None], size=(size, size), mode="bicubic", align_corners=False).clamp(0, 1)
    return functional.pad(large, (margin,) * 4)[:, 0]


def _handwriting_positions() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions in scikit-learn's set for VAL_OOD (balanced, drawn from all of it) and, the rest, for TEST_OOD; both sorted."""
    rng, target = _rng("handwriting"), load_digits().target
    drawn = [rng.choice(np.flatnonzero(target == label), VAL_OOD_PER_CLASS, replace=False) for label in range(10)]
    validation = np.sort(np.concatenate(drawn)).astype(np.int64)
    return validation, np.setdiff1d(np.arange(len(target), dtype=np.int64), validation)
