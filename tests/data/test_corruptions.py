"""The 15 corruptions: the library's own pixels, a function of each image alone, cached, and drawn after the examples are."""

import hashlib
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import imagecorruptions
import numpy as np
import pytest
from PIL import Image

import autoft.data.corruptions as corruptions_module
import autoft.data.files as files_module
from autoft.config import load_config
from autoft.data import ImageSet, PixelSpec, check_study_data, load_image_set, load_study_data, resolve_classes
from autoft.data.corruptions import CORRUPTIONS, chosen_corruption, corrupted
from autoft.data.pixels import decode_image, square
from autoft.errors import DataError
from tests.data.make import encoded, folder, picture, study, table, write_folder, write_table

# Hendrycks and Dietterich 2019, section 4.1, in the paper's order.
PAPER = ["gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression"]
SPEC = PixelSpec(16, "bicubic")
DIGEST = hashlib.sha256(b"an image").digest()


def digest_of(seed: int) -> bytes:
    return hashlib.sha256(bytes([seed])).digest()


def load(source: Path, cache: Path, **options: object) -> ImageSet:
    return load_image_set(folder(source, **options), "data.val_ood", resolve_classes(study(folder(source))), SPEC, cache)


def raw_images(source: Path) -> list[bytes]:
    return [file.read_bytes() for file in sorted(source.rglob("*.png"))]


def expected(raw: bytes, corruption: str, severity: int) -> np.ndarray:
    image = decode_image(raw, "x", "x")
    return square(corrupted(image, hashlib.sha256(raw).digest(), corruption, severity), SPEC)


# One image


def test_the_15_names_are_the_papers_and_the_librarys() -> None:
    assert list(CORRUPTIONS) == PAPER
    assert set(CORRUPTIONS) == set(imagecorruptions.get_corruption_names("common"))


@pytest.mark.parametrize("severity", [1, 3, 5])
@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_pixels_are_the_librarys_own(corruption: str, severity: int) -> None:
    """The library through its front door, with numpy's global state seeded as ours is privately."""
    image = picture(3, 48, 40)
    seed = hashlib.sha256(DIGEST + f"{corruption} {severity}".encode()).digest()
    np.random.seed(np.frombuffer(seed, dtype="<u4"))
    options = {"seed": int.from_bytes(seed[:4], "big")} if corruption in ("glass_blur", "impulse_noise") else {}
    reference = imagecorruptions.corrupt(np.asarray(image), severity, corruption, **options)
    ours = np.asarray(corrupted(image, DIGEST, corruption, severity))
    assert np.array_equal(ours, reference)
    assert not np.array_equal(ours, np.asarray(image))


@pytest.mark.parametrize("side", [32, 96])
@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_severity_5_is_farther_from_the_clean_image_than_severity_1(corruption: str, side: int) -> None:
    def distance(severity: int) -> float:
        clean = [(digest_of(i), picture(i, side, side)) for i in range(24)]
        pairs = [(np.asarray(image, float), np.asarray(corrupted(image, digest, corruption, severity), float)) for digest, image in clean]
        return float(np.mean([((one - other) ** 2).mean() for one, other in pairs]))

    assert distance(5) > 1.15 * distance(1) > 0


def test_no_two_corruptions_severities_or_images_share_their_noise() -> None:
    grey = Image.new("RGB", (40, 40), (128, 128, 128))
    outputs = {
        np.asarray(corrupted(grey, digest, corruption, severity)).tobytes()
        for digest in (digest_of(0), digest_of(1))
        for corruption in ("gaussian_noise", "shot_noise", "impulse_noise", "frost", "fog", "snow")
        for severity in (1, 5)
    }
    assert len(outputs) == 24


def all_pixels(i: int) -> bytes:
    return b"".join(np.asarray(corrupted(picture(i, 36, 34), digest_of(i), name, 4)).tobytes() for name in CORRUPTIONS)


def test_pixels_are_the_same_in_any_order_thread_and_process_and_leave_the_global_state() -> None:
    np.random.seed(11)
    before = np.random.get_state()
    serial = [all_pixels(i) for i in range(12)]
    after = np.random.get_state()
    assert np.array_equal(before[1], after[1])
    assert before[2:] == after[2:]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(all_pixels, reversed(range(12)))) == serial[::-1]
    code = "import hashlib; from tests.data.test_corruptions import all_pixels; print(hashlib.sha256(all_pixels(7)).hexdigest())"
    answer = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == [hashlib.sha256(serial[7]).hexdigest()]


@pytest.mark.parametrize("size", [(28, 28), (5, 7), (1, 40), (33, 31)])
@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_small_images_are_enlarged_first(corruption: str, size: tuple[int, int]) -> None:
    image = corrupted(picture(0, *size), DIGEST, corruption, 5)
    assert image.mode == "RGB"
    assert min(image.size) == 32
    assert abs(image.width / image.height * size[1] / size[0] - 1) < 0.05


def test_library_that_is_missing_or_does_not_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = study(folder(write_folder(tmp_path / "a", {"x": 2, "y": 2})), val_ood=folder(tmp_path / "a", corruptions={}))
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(DataError, match=r"data\.val_ood\.corruptions: imagecorruptions-imaug cannot be loaded: .*cv2"):
        check_study_data(config)
    monkeypatch.setattr(corruptions_module, "_version", lambda name: "")
    with pytest.raises(DataError, match=r"data\.val_ood\.corruptions: needs the package imagecorruptions-imaug.*pip install"):
        check_study_data(config)


# A set


def test_each_image_gets_the_one_corruption_its_content_chooses(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "set", {"ant": 10, "bee": 8})
    images = load(source, tmp_path / "cache", corruptions={"severity": 4})
    for raw, found, short in zip(raw_images(source), images.images, images.example_hashes, strict=True):
        choice = chosen_corruption(hashlib.sha256(raw).digest())
        assert np.array_equal(found, expected(raw, choice, 4))
        assert chosen_corruption(bytes.fromhex(short)) == choice


def test_all_shows_every_image_under_all_15(tmp_path: Path) -> None:
    rows = []
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(encoded(picture(i)))
        rows.append(f"{i}.png,{'ab'[i % 2]},{'xy'[i // 2]},text {i}")
    path = write_table(tmp_path / "t.csv", "filepath,label,site,text", rows)
    clean, every = (table(path, group="site", caption="text", corruptions=c) for c in (None, {"severity": 2, "all": True}))
    classes = resolve_classes(study(clean))
    one, many = (load_image_set(dataset, "data.val_ood", classes, SPEC, tmp_path / "c") for dataset in (clean, every))
    assert many.groups is not None
    assert one.groups is not None
    assert many.labels.tolist() == np.repeat(one.labels, 15).tolist()
    assert many.groups.tolist() == np.repeat(one.groups, 15).tolist()
    assert many.captions == tuple(text for text in one.captions or () for _ in range(15))
    assert many.example_hashes == tuple(value for value in one.example_hashes for _ in range(15))
    for i, raw in enumerate(raw_images(tmp_path)):
        assert all(np.array_equal(many.images[15 * i + k], expected(raw, name, 2)) for k, name in enumerate(CORRUPTIONS))
    assert check_study_data(study(clean, val_ood=every))[2]["n"] == 45


def test_corruptions_are_content_but_not_another_example(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "set", {"ant": 3, "bee": 2})
    options: list[dict[str, object] | None] = [None, {"severity": 5}, {"severity": 1}]
    sets = [load(source, tmp_path / "cache", corruptions=option) for option in options]
    assert len({images.content_hash for images in sets}) == 3
    assert len({images.images.tobytes() for images in sets}) == 3
    assert len({images.example_hashes for images in sets}) == 1
    every = load(source, tmp_path / "cache", corruptions={"severity": 5, "all": True})
    assert every.content_hash not in {images.content_hash for images in sets}
    assert set(every.example_hashes) == set(sets[0].example_hashes)


def test_second_load_corrupts_nothing_until_the_library_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_folder(tmp_path / "set", {"ant": 4, "bee": 3})
    decoded: list[str] = []
    real = files_module.decode_image
    monkeypatch.setattr(files_module, "decode_image", lambda raw, field, name: decoded.append(name) or real(raw, field, name))
    first = load(source, tmp_path / "cache", corruptions={})
    assert len(decoded) == 7
    again = load(source, tmp_path / "cache", corruptions={})
    assert len(decoded) == 7
    assert np.array_equal(first.images, again.images)
    assert first.content_hash == again.content_hash
    for name in ("scikit-image", "imagecorruptions-imaug"):
        with monkeypatch.context() as patch:
            version = corruptions_module._version
            patch.setattr(corruptions_module, "_version", lambda n, name=name, version=version: "9.9" if n == name else version(n))
            before = len(decoded)
            other = load(source, tmp_path / "cache", corruptions={})
            assert len(decoded) == before + 7
            assert (other.content_hash != first.content_hash) == (name == "imagecorruptions-imaug")


def test_the_draw_comes_before_the_corruption(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "set", {"ant": 9, "bee": 7})
    options = {"slice": (2, 15), "half": "second", "max_examples": 4, "balanced": True, "draw_seed": 3}
    clean = load(source, tmp_path / "cache", **options)
    one = load(source, tmp_path / "cache", **options, corruptions={})
    every = load(source, tmp_path / "cache", **options, corruptions={"all": True})
    assert clean.example_hashes == one.example_hashes == every.example_hashes[::15]
    assert clean.class_counts().tolist() == one.class_counts().tolist() == [2, 2]
    assert every.class_counts().tolist() == [30, 30]


def test_defect_7_a_class_balanced_corrupted_draw_has_every_corruption_and_class(tmp_path: Path) -> None:
    """The authors' class-balanced ImageNet-C kept the last corruption only (zoom_blur), 1,000 images instead of 15,000."""
    source = write_folder(tmp_path / "set", {name: 60 for name in ("ant", "bee", "cow", "dog")})
    images = load(source, tmp_path / "cache", max_examples=200, balanced=True, corruptions={"severity": 5})
    raws = {hashlib.sha256(raw).hexdigest()[:16]: raw for raw in raw_images(source)}
    found: Counter[str] = Counter()
    for pixels, short in zip(images.images, images.example_hashes, strict=True):
        found.update([name for name in CORRUPTIONS if np.array_equal(pixels, expected(raws[short], name, 5))])
    assert images.class_counts().tolist() == [50] * 4
    assert sum(found.values()) == 200
    assert set(found) == set(CORRUPTIONS)
    assert max(found.values()) <= 200 / 15 * 2  # 13.3 +- 3.5: four standard deviations
    every = load(source, tmp_path / "cache", max_examples=8, balanced=True, corruptions={"severity": 5, "all": True})
    assert every.class_counts().tolist() == [30] * 4


def test_cifar10_example(shared: Path, tmp_path: Path) -> None:
    """The study whose validation set is a corrupted, class-balanced draw of a slice."""
    config = load_config(shared / "examples" / "cifar10.yaml")
    data = load_study_data(config.data, 32, "bicubic", "shortest", tmp_path, splits=["val_ood"])
    assert data.val_ood.class_counts().tolist() == [20] * 10
    chosen = Counter(chosen_corruption(bytes.fromhex(short)) for short in data.val_ood.example_hashes)
    assert set(chosen) == set(CORRUPTIONS)
    assert max(chosen.values()) <= 27
    indices = data.drawn["data.val_ood"]
    assert len(indices) == 200
    assert all(1000 <= index < 2000 for index in indices)
    facts = {fact["field"]: fact["n"] for fact in check_study_data(config.data)}
    assert facts["data.test_ood.cifar10_c"] == 2000
