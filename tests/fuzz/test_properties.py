"""Whatever a file says, its reader takes it or raises an AutoFTError that a person can read."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from autoft.config.yaml_text import parse_yaml
from autoft.data.files import Below
from autoft.data.webdataset import MAX_SHARDS, _at_most
from autoft.errors import ConfigError
from autoft.inputs import shown
from tests.fuzz.make_corpus import CORPUS, tar
from tests.fuzz.targets import STUDY, outcome, png

FEW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
MANY = settings(FEW, max_examples=100)

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.dates(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10) | st.integers() | st.booleans(), inner, max_size=4),
    max_leaves=12,
)
FIELDS = [
    *("study", "model", "model.name", "model.pretrained", "data", "data.train", "data.train.layout", "data.train.path", "data.train.slice", "data.classnames"),
    *("data.templates", "data.test_ood", "data.on_bad_image", "data.allow_duplicates", "search_space.base_lr", "search_space.lr_factor", "search_space.loss_weights"),
    *("search_space.knobs", "search_space.fixed", "search.n_trials", "search.enqueue", "search.confirm", "trial.steps", "trial.clip_grad_norm", "wise_ft", "wise_ft.alphas"),
    *("evaluate.baselines", "drm", "metric"),
]


@FEW
@given(st.binary(max_size=300))
@pytest.mark.parametrize("target", ["study_file", "storage_url", "table", "shard", "image", "arrays_npz", "arrays_npy", "journal", "descriptions", "hyperparameters"])
def test_any_bytes(target: str, data: bytes) -> None:
    outcome(target, data)


@MANY
@given(st.sampled_from(FIELDS), plain)
@example("data.train", {"layout": "webdataset", "path": "\0"})
@example("search_space.fixed", {"loss_weights": {"hinge": math.nan}})
def test_any_value_in_any_field_of_a_study(field: str, value: Any) -> None:
    document = json.loads(json.dumps(STUDY))
    node = document
    *parents, leaf = field.split(".")
    for parent in parents:
        node = node.setdefault(parent, {})
    node[leaf] = value
    error = outcome("study_file", yaml.safe_dump(document).encode("utf-8", "surrogatepass"))
    assert error is None or (type(error) is ConfigError and len(str(error)) < 5000)


@MANY
@given(plain)
def test_plain_yaml_reads_back_as_it_was_or_is_refused(value: Any) -> None:
    try:
        read = parse_yaml(yaml.safe_dump(value))
    except ValueError:
        return
    assert read == value


@FEW
@given(st.sampled_from(sorted((CORPUS / "image").glob("*"))), st.randoms(use_true_random=False))
def test_damaged_images(path: Path, random: Any) -> None:
    outcome("image", damaged(path.read_bytes(), random))


@FEW
@given(st.sampled_from(sorted((CORPUS / "shard").glob("*.tar"))), st.randoms(use_true_random=False))
def test_damaged_shards(path: Path, random: Any) -> None:
    outcome("shard", damaged(path.read_bytes(), random))


@FEW
@given(st.sampled_from(sorted((CORPUS / "arrays_npz").glob("*.npz"))), st.randoms(use_true_random=False))
def test_damaged_arrays(path: Path, random: Any) -> None:
    outcome("arrays_npz", damaged(path.read_bytes(), random))


@settings(FEW, max_examples=8)
@given(st.sampled_from(["checkpoint_head", "checkpoint_info", "checkpoint_config", "delta"]), st.randoms(use_true_random=False))
def test_damaged_checkpoints(target: str, random: Any) -> None:
    path = random.choice(sorted((CORPUS / target).iterdir()))
    outcome(target, damaged(path.read_bytes(), random))


def damaged(data: bytes, random: Any) -> bytes:
    """Some bytes cut, changed, or put elsewhere."""
    raw = bytearray(data[: random.randrange(len(data) + 1)] if random.random() < 0.3 else data)
    for _ in range(random.randrange(6)):
        if raw:
            at = random.randrange(len(raw))
            raw[at : at + random.choice((0, 1, 1, 4))] = random.choice((b"", b"\0", b"\xff\xff\xff\xff", bytes([random.randrange(256)]), b"-1", b"9" * 20))
    return bytes(raw)


names = st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n"), min_size=1, max_size=30).map(str.strip).filter(bool)


@FEW
@given(st.lists(names, min_size=1, max_size=4))
def test_a_shard_never_writes_whatever_its_members_are_called(members: list[str]) -> None:
    """The target asserts that its folder has the shard alone afterwards."""
    outcome("shard", tar(*((f"{name[:80]}.png", png()) for name in members), form=1))


@MANY
@given(st.lists(st.sampled_from(["..", ".", "a", "link", "up", "/", "images", "b.png", "~"]), min_size=1, max_size=8))
def test_a_path_is_below_its_folder_or_refused(tmp_path_factory: pytest.TempPathFactory, parts: list[str]) -> None:
    """Against what the file system itself says."""
    base = tmp_path_factory.getbasetemp() / "below"
    root = base / "root"
    if not root.exists():
        (root / "images").mkdir(parents=True)
        (root / "link").symlink_to(root / "images")
        (root / "up").symlink_to(base)
        (root / "b.png").write_bytes(b"")
        (root / "images" / "a").symlink_to("/etc")
    written = "/".join(parts)
    found = Below(root).path(written)
    inside = (root / written).resolve().is_relative_to(root.resolve())
    assert found is None or inside
    assert found is not None or not inside or (root / written).resolve() == root.resolve()


@MANY
@given(st.text(st.sampled_from("ab{},.0123456789-\\"), max_size=24))
def test_a_pattern_is_never_counted_too_low(pattern: str) -> None:
    from braceexpand import braceexpand

    if _at_most(pattern) > MAX_SHARDS:
        return
    try:
        expanded = sum(1 for _ in braceexpand(pattern))
    except ValueError:
        return
    assert expanded <= _at_most(pattern)


@MANY
@given(st.text())
def test_what_is_shown_can_be_printed_and_is_short(text: str) -> None:
    clean = shown(text, 50)
    assert len(clean) <= 50 and (clean.isprintable() or not clean)
    clean.encode()


@FEW
@given(st.text(max_size=120))
def test_a_study_name_that_is_taken_is_a_file_name_of_its_own(name: str) -> None:
    document = dict(STUDY) | {"study": name}
    if outcome("study_file", yaml.safe_dump(document).encode("utf-8", "surrogatepass")) is None:
        assert name.isascii() and 0 < len(name) <= 100 and name[0] not in ".-" and not set(name) & set("/\\\0<>\"' \n")
        assert Path("runs", name).parent == Path("runs") and Path("runs", name).name == name


def test_the_suite_notices_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but an AutoFTError is an answer."""
    from tests.fuzz import targets

    def crash(data: bytes, folder: Path) -> object:
        raise KeyError("x")

    monkeypatch.setattr(targets, "TARGETS", {"x": crash})
    with pytest.raises(KeyError):
        outcome("x", b"")
