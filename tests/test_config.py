"""The study file: what is accepted, what is refused and in which words."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from autoft.cli.starter import starter
from autoft.config import DatasetBase, dump_config, load_config
from autoft.errors import ConfigError
from tests.studies import study_document


def write(folder: Path, document: dict[str, Any]) -> Path:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.fixture
def document(tmp_path: Path) -> dict[str, Any]:
    return study_document(tmp_path / "data", tmp_path / "model")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"serch": {}}, ["unknown key serch", "did you mean search?"]),
        ({"trial": {"steps": 4, "batchsize": 8}}, ["trial.batchsize", "did you mean batch_size?"]),
        ({"trial": {"steps": "many"}}, ["trial.steps", "'many'", "integer"]),
        ({"trial": {"steps": 0}}, ["trial.steps = 0", "greater than or equal to 1"]),
        ({"trial": {}}, ["trial.steps is missing"]),
        ({"metric": "acuracy"}, ["metric = 'acuracy'", "'accuracy'"]),
        ({"study": "a/b"}, ["study = 'a/b'"]),
        ({"wise_ft": {"alphas": [0.0, 1.5]}}, ["wise_ft.alphas", "[0, 1]", "1.5"]),
        ({"search_space": {"base_lr": -1.0}}, ["search_space.base_lr = -1.0"]),
        ({"search_space": {"base_lr": 1.0, "terms": ["hing"]}}, ["search_space.terms", "'hing'", "hinge"]),
        ({"search_space": {"base_lr": 1.0, "loss_weight": [0.0, 1.0]}}, ["loss_weight must be", "0.0"]),
    ],
)
def test_a_mistake_names_field_value_and_what_is_valid(
    tmp_path: Path, document: dict[str, Any], change: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(write(tmp_path, document | change))
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("layuot", "folder", ["data.train.layuot", "did you mean layout?"]),
        ("layout", "zip", ["data.train", "'zip'", "webdataset"]),
        ("slice", [5, 5], ["data.train", "slice", "[5, 5]"]),
        ("balanced", True, ["data.train", "balanced needs max_examples"]),
        ("max_examples", 0, ["data.train.max_examples = 0"]),
    ],
)
def test_a_mistake_inside_a_data_set_names_the_set(
    tmp_path: Path, document: dict[str, Any], field: str, value: Any, words: list[str]
) -> None:
    document["data"]["train"][field] = value
    with pytest.raises(ConfigError) as error:
        load_config(write(tmp_path, document))
    for word in words:
        assert word in str(error.value)
    assert "arrays" not in str(error.value).split(":")[1].split("=")[0], "pydantic's union tags are not field names"


def test_a_template_without_a_place_for_the_class_is_refused(tmp_path: Path, document: dict[str, Any]) -> None:
    document["data"]["templates"] = ["a photo"]
    with pytest.raises(ConfigError, match=r"data.templates.*\{\}"):
        load_config(write(tmp_path, document))


def test_one_name_for_two_test_sets_is_refused(tmp_path: Path, document: dict[str, Any]) -> None:
    document["data"]["test_ood"]["a"] = document["data"]["test_ood"].pop("b")
    with pytest.raises(ConfigError, match="both have a"):
        load_config(write(tmp_path, document))


@pytest.mark.parametrize("name", ["val_ood", "train", "a,b", "<b>", ""])
def test_a_test_set_needs_a_name_of_its_own(tmp_path: Path, document: dict[str, Any], name: str) -> None:
    document["data"]["test_ood"] = {name: document["data"]["test_ood"]["b"]}
    with pytest.raises(ConfigError, match=r"data.*test_ood"):
        load_config(write(tmp_path, document))


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "study: [unclosed", "!!python/object/apply:os.system [echo]"])
def test_what_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError):
        load_config(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no study file at"):
        load_config(tmp_path / "absent.yaml")


def test_overrides_are_typed_and_checked(tmp_path: Path, document: dict[str, Any]) -> None:
    path = write(tmp_path, document)
    config = load_config(path, ["search.n_trials=8", "search_space.base_lr=1e-5", "data.val_ood.max_examples=9", "evaluate.batch_size=7"])
    assert (config.search.n_trials, config.search_space.base_lr, config.evaluate.batch_size) == (8, 1e-5, 7)
    assert config.data.val_ood.max_examples == 9
    for wrong in ("search.n_trials=0", "search.n_trails=3", "search.n_trials", "study.x=1"):
        with pytest.raises(ConfigError):
            load_config(path, [wrong])


def test_paths_are_relative_to_the_file_and_the_dump_reads_back_equal(tmp_path: Path, document: dict[str, Any]) -> None:
    document["model"]["name"] = "local-dir:../model"
    document["data"]["train"]["path"] = "train.npz"
    folder = tmp_path / "studies"
    folder.mkdir()
    config = load_config(write(folder, document))
    assert config.model.name == f"local-dir:{tmp_path / 'model'}"
    assert config.data.train.path == folder / "train.npz"  # type: ignore[union-attr]
    again = tmp_path / "elsewhere.yaml"
    again.write_text(dump_config(config))
    assert load_config(again) == config


def test_the_config_is_frozen(tmp_path: Path, document: dict[str, Any]) -> None:
    config = load_config(write(tmp_path, document))
    with pytest.raises(ValueError, match="frozen"):
        config.search.n_trials = 3  # type: ignore[misc]


def test_the_starter_file_is_valid_and_shows_every_field(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(starter())
    config = load_config(path)
    assert config.wise_ft is not None
    uncommented = "\n".join(line.replace("# ", "", 1) if ": " in line and line.lstrip().startswith("# ") else line for line in starter().splitlines())
    for section in (config, config.model, config.search_space, config.search, config.trial, config.final, config.evaluate):
        for name in type(section).model_fields:
            assert f"{name}:" in uncommented


def test_the_examples_are_valid(shared: Path) -> None:
    for name in ("pacs", "digits"):
        config = load_config(shared / "examples" / f"{name}.yaml")
        assert config.study == name
        assert all(isinstance(dataset, DatasetBase) for _, dataset in config.data.datasets())
