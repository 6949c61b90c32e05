"""The demo's data are deterministic and disjoint, and its checkpoint scores what docs/demo-model.md says."""

import re
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import safe_open
from sklearn.datasets import load_digits

from autoft.config import load_config
from autoft.demo import CHECKPOINT, write_demo
from autoft.demo.data import FILES, build_demo_data

DOC = Path(__file__).resolve().parent.parent / "docs" / "demo-model.md"
CHECKPOINT_LIMIT_BYTES = 6_000_000
TOLERANCE = 0.01  # other CPUs and library versions round pictures and sums differently


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    assert write_demo(folder) == folder / "study.yaml"
    return folder


def arrays(demo: Path, name: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    with np.load(demo / "data" / f"{name}.npz", allow_pickle=False) as file:
        return file["images"], file["labels"]


def documented_accuracy() -> dict[str, float]:
    """The first figure of each row of the table in the document whose first cell is a file's name."""
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\| *([\d.]+) *\|", DOC.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {name: float(value) for name, value in rows}


def test_the_study_file_is_valid_and_every_path_in_it_exists(demo: Path) -> None:
    config = load_config(demo / "study.yaml")
    assert config.model.name == f"local-dir:{CHECKPOINT}"
    paths = [dataset.path for _, dataset in config.data.datasets()]  # type: ignore[attr-defined]
    assert sorted(path.stem for path in paths) == sorted(FILES)
    assert all(path.is_file() for path in paths)


def test_arrays_have_the_documented_form(demo: Path) -> None:
    for name in FILES:
        images, labels = arrays(demo, name)
        assert images.dtype == np.uint8
        assert images.shape == (len(labels), 32, 32)
        assert labels.dtype == np.int64
        assert set(labels.tolist()) == set(range(10))
    assert np.bincount(arrays(demo, "val_ood")[1]).tolist() == [20] * 10


def test_two_builds_are_equal_byte_for_byte(demo: Path, tmp_path: Path) -> None:
    build_demo_data(tmp_path / "data")
    for path in sorted((demo / "data").iterdir()):
        assert (tmp_path / "data" / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_build_that_is_complete_is_left_alone_and_a_damaged_one_replaced(demo: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(demo / "data", folder)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    build_demo_data(folder)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    (folder / "val_ood.npz").unlink()
    (folder / "stray.npz").touch()
    build_demo_data(folder)
    assert {path.name for path in folder.iterdir()} == set(before)


def test_splits_share_no_picture(demo: Path) -> None:
    seen: dict[bytes, str] = {}
    for name in FILES:
        for image in arrays(demo, name)[0]:
            assert seen.setdefault(image.tobytes(), name) == name
    assert len(seen) == sum(len(arrays(demo, name)[1]) for name in FILES)


def test_validation_and_test_handwriting_come_from_different_originals(demo: Path) -> None:
    """Each picture is traced to the scikit-learn scan it correlates with best, enlarged here by other means."""
    scans = [Image.fromarray((scan * 15.9).astype(np.uint8)).resize((24, 24), Image.Resampling.BICUBIC) for scan in load_digits().images]
    originals = unit(np.stack([np.pad(np.asarray(scan), 4) for scan in scans]))
    validation = (unit(arrays(demo, "val_ood")[0]) @ originals.T).argmax(axis=1)
    test = (unit(arrays(demo, "test_ood_handwriting")[0]) @ originals.T).argmax(axis=1)
    assert len(set(validation.tolist())) == 200
    assert sorted([*validation.tolist(), *test.tolist()]) == list(range(len(originals)))


def test_the_cluttered_set_is_the_test_handwriting_inverted(demo: Path) -> None:
    handwriting, cluttered = arrays(demo, "test_ood_handwriting"), arrays(demo, "test_ood_cluttered")
    assert np.array_equal(handwriting[1], cluttered[1])
    same = (unit(handwriting[0]) * unit(cluttered[0])).sum(axis=1)
    other = (unit(handwriting[0]) * unit(np.roll(cluttered[0], 1, axis=0))).sum(axis=1)
    assert np.median(same) < np.median(other) < 0
    assert (same < other).mean() > 0.85


def unit(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(n, height, width) to (n, pixels) with mean 0 and length 1, so that products are correlations."""
    flat = images.reshape(len(images), -1).astype(np.float64)
    flat -= flat.mean(axis=1, keepdims=True)
    scaled: NDArray[np.float64] = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    return scaled


def test_checkpoint_is_small_and_in_half_precision() -> None:
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) <= CHECKPOINT_LIMIT_BYTES
    with safe_open(CHECKPOINT / "open_clip_model.safetensors", framework="pt") as weights:
        tensors = [weights.get_tensor(name) for name in weights.keys()]  # noqa: SIM118
    assert {tensor.dtype for tensor in tensors} == {torch.float16}
    assert all(tensor.isfinite().all() for tensor in tensors)


def test_zero_shot_accuracy_is_as_documented(demo: Path) -> None:
    """The whole way of a user: open_clip's own loading, preprocessing, tokenizer and zero-shot classifier."""
    config = load_config(demo / "study.yaml")
    model, _, preprocess = open_clip.create_model_and_transforms(config.model.name)
    tokenizer = open_clip.get_tokenizer(config.model.name)
    names = config.data.classnames
    assert isinstance(names, tuple)
    model.eval()
    templates = [lambda name, template=template: template.format(name) for template in config.data.templates]
    classifier = open_clip.build_zero_shot_classifier(model, tokenizer, names, templates)
    documented = documented_accuracy()
    assert sorted(documented) == sorted(set(FILES) - {"train"})
    for name, expected in documented.items():
        images, labels = arrays(demo, name)
        with torch.no_grad():
            pixels = torch.stack([preprocess(Image.fromarray(image)) for image in images])
            predicted = (model.encode_image(pixels, normalize=True) @ classifier).argmax(dim=1).numpy()
        assert float((predicted == labels).mean()) == pytest.approx(expected, abs=TOLERANCE), name
