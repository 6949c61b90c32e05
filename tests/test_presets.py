"""The published studies as study files, and what `autoft plan` says of a study whose data or weights are not here."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from autoft.cli.budget import budget, compare, expected_sizes
from autoft.cli.main import main
from autoft.config import DatasetBase, StudyConfig, load_config
from autoft.errors import ConfigError
from autoft.finetune import final_recipe
from autoft.presets import default_root, named_preset, preset_names, preset_notes, preset_text, preset_title
from autoft.presets.published import PUBLISHED
from autoft.search_space import Hyperparameters
from tests.studies import write_study

NAMES = ("iwildcam", "fmow", "imagenet", "imagenet-fewshot", "cifar10", "sst2", "patchcamelyon", "caltech101", "cars", "flowers")


def read(name: str, folder: Path, *overrides: str, root: str | None = None) -> StudyConfig:
    path = folder / f"{name}.yaml"
    path.write_text(preset_text(name, root), encoding="utf-8")
    return load_config(path, overrides)


def costs(config: StudyConfig) -> dict[str, Any]:
    """The budget from published sizes alone."""
    sizes = {name: size for name, size in expected_sizes(config.data, {}).items() if size is not None}
    return budget(config, sizes) | {"train": sizes["train"]}


# --- the files --------------------------------------------------------------------------------------------------------------------

# From the table of per-dataset settings in the notes on the authors' scripts: VAL_OOD, trials, steps, lr, weight decay, batch, epochs.
SETTINGS = {
    "iwildcam": (1000, 500, 10, 1e-5, 0.2, 256, 20),
    "fmow": (1000, 500, 10, 1e-5, 0.1, 256, 20),
    "imagenet": (1000, 100, 5, 1e-5, 0.1, 512, 10),
    "imagenet-fewshot": (1000, 100, 5, 1e-5, 0.1, 512, 10),
    "cifar10": (100, 100, 10, 1e-5, 0.2, 256, 20),
    "sst2": (8, 50, 10, 1e-5, 0.2, 8, 20),
    "patchcamelyon": (8, 50, 10, 1e-5, 0.1, 8, 20),
    "caltech101": (1000, 100, 10, 1e-5, 0.1, 256, 20),
    "cars": (200, 500, 50, 1e-5, 0.0, 256, 100),
    "flowers": (400, 500, 350, 1e-4, 0.4, 256, 100),
}
METRICS = {"iwildcam": "macro_f1", "fmow": "worst_group_accuracy"} | dict.fromkeys(("sst2", "patchcamelyon", "flowers"), "cross_entropy")


def test_there_is_a_file_a_preset() -> None:
    folder = Path(preset_names.__code__.co_filename).parent
    assert preset_names() == NAMES
    assert sorted(path.stem for path in folder.glob("*.yaml")) == sorted(NAMES) == sorted(PUBLISHED)


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_has_the_published_settings(name: str, tmp_path: Path) -> None:
    config = read(name, tmp_path)
    val_ood, trials, steps, lr, decay, batch, epochs = SETTINGS[name]
    assert config.study == name
    assert (config.model.name, config.model.pretrained, config.model.precision) == ("ViT-B-16-quickgelu", "openai", "fp32")
    assert (config.data.val_ood.max_examples, config.search.n_trials, config.trial.steps) == (val_ood, trials, steps)
    assert (config.search_space.base_lr, config.search_space.base_weight_decay) == (lr, decay)
    assert (config.trial.batch_size, config.final.batch_size, config.final.epochs) == (batch, batch, epochs)
    assert config.metric == METRICS.get(name, "accuracy")
    assert config.search_space.reference == ("contrastive" if name in ("cifar10", "imagenet-fewshot") else "cross_entropy")
    clip = 1.0 if name in ("iwildcam", "fmow", "cars") else None  # --clip_gradient
    assert config.trial.clip_grad_norm == config.final.clip_grad_norm == clip
    assert config.trial.repeats == (5 if name in ("sst2", "patchcamelyon") else 1)
    assert config.data.val_ood.balanced == (name != "flowers")
    assert config.search_space.loss_weight == (1e-4, 10) and config.search_space.weight_decay == (0, 1) and config.search_space.seed == (0, 100)


@pytest.mark.parametrize(("name", "train"), [("iwildcam", 129_809), ("fmow", 76_863), ("imagenet", 1_281_167), ("cifar10", 50_000), ("cars", 6_515)])
def test_warm_up_is_500_steps(name: str, train: int, tmp_path: Path) -> None:
    hyperparameters = Hyperparameters(lr=1.0, weight_decay=0.0, loss_weights={}, seed=0)
    assert final_recipe(read(name, tmp_path).final, hyperparameters, train).warmup_steps == 500


@pytest.mark.parametrize("name", NAMES)
def test_no_test_set_shares_images_with_a_validation_set(name: str, tmp_path: Path) -> None:
    """Sets of one folder and split have different halves; CIFAR-10-C and ImageNet-C are made from test and val images."""
    data = read(name, tmp_path).data
    for test in {**data.test_id, **data.test_ood}.values():
        for validation in (data.val_id, data.val_ood):
            if sources(test) & sources(validation):
                assert {test.half, validation.half} == {"first", "second"}
    assert not sources(data.val_ood) & sources(data.train)


def sources(dataset: DatasetBase) -> set[tuple[str, str]]:
    """The published images a set is made from."""
    layout, split = dataset.layout, getattr(dataset, "split", "")  # type: ignore[attr-defined]
    derived = {"cifar10_c": ("cifar10", "test"), "imagenet_c": ("imagenet", "val"), "folder": ("folder", str(getattr(dataset, "path", "")))}
    return {derived.get(layout, (layout, split))}


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_says_where_it_is_from(name: str) -> None:
    text = preset_text(name)
    assert named_preset(text) == name
    assert preset_title(name).endswith(".")
    for word in ("Source:", "Reconstructed:", "Differs:"):
        assert word in preset_notes(name)
    assert max(map(len, text.splitlines())) <= 140
    for word in ("# In every preset:", "ViT-L-14-quickgelu", "hf-hub:"):
        assert word in text


ROOTS = ["/data sets/here", "../x, y}", "a: b #c", "it's \"quoted\"", "ünïcode", "123", "~/x", "- dash", "[list"]


@pytest.mark.parametrize("root", ROOTS)
def test_data_root_replaces_every_path_whatever_it_is_called(root: str, tmp_path: Path) -> None:
    for name in ("fmow", "imagenet", "sst2"):
        before, after = read(name, tmp_path), read(name, tmp_path, root=root)
        base = (tmp_path / Path(root).expanduser()).resolve()
        old = tmp_path / default_root(name)
        moved = [base / dataset.path.relative_to(old) for _, dataset in before.data.datasets()]  # type: ignore[attr-defined]
        assert [dataset.path for _, dataset in after.data.datasets()] == moved  # type: ignore[attr-defined]
        assert "data/" not in "".join(line for line in preset_text(name, "/elsewhere").splitlines() if "path:" in line)


# --- what they cost ---------------------------------------------------------------------------------------------------------------

AS_README = ("trial.steps=100",)
AS_SCRIPT = ("search.n_trials=500", "trial.steps=100", "final.warmup_fraction=0")
# The published cost table: search and final samples (rows), their ratio in percent, the ratio against images.
TABLE: list[tuple[str, tuple[str, ...], float, float, float, float | None]] = [
    ("iwildcam", (), 1.28e6, 5.19e6, 25, 49),
    ("iwildcam", AS_README, 12.8e6, 5.19e6, 246, None),
    ("fmow", (), 1.28e6, 24.6e6, 5.2, 83),
    ("imagenet", (), 0.256e6, 12.8e6, 2, None),
    ("imagenet", AS_SCRIPT, 25.6e6, 12.8e6, 200, None),
]


@pytest.mark.parametrize(("name", "overrides", "search", "final", "percent", "by_images"), TABLE)
def test_a_budget_is_the_published_one(
    name: str, overrides: tuple[str, ...], search: float, final: float, percent: float, by_images: float | None, tmp_path: Path
) -> None:
    config = read(name, tmp_path, *overrides)
    cost = costs(config)
    beside = compare(name, config, cost, cost["train"])
    assert cost["search_samples"] == search
    assert beside["final_samples_by_rows"] == pytest.approx(final, rel=0.004)
    assert beside["search_over_final_by_rows"] * 100 == pytest.approx(percent, abs=0.7 if percent > 10 else 0.05)
    assert by_images is None or cost["search_over_final"] * 100 == pytest.approx(by_images, abs=0.5)
    assert beside["agrees"] is True


@pytest.mark.parametrize("name", NAMES)
def test_every_preset_is_a_published_setting_and_has_a_budget(name: str, tmp_path: Path) -> None:
    config = read(name, tmp_path)
    cost = costs(config)
    beside = compare(name, config, cost, cost["train"])
    assert beside["setting"] == PUBLISHED[name].settings[0].text
    assert beside["agrees"] is not False
    assert cost["search_samples"] == math.prod(SETTINGS[name][i] for i in (1, 2, 5)) * config.trial.repeats
    assert 0 < cost["final_samples"] <= config.final.epochs * cost["train"]


def test_another_budget_does_not_agree(tmp_path: Path) -> None:
    for override, agrees in (("final.epochs=21", False), ("final.epochs=20", True), ("trial.steps=11", None)):
        config = read("fmow", tmp_path, override)
        assert compare("fmow", config, costs(config), 76_863)["agrees"] is agrees


def test_repeats_confirmation_and_objectives_are_counted(tmp_path: Path) -> None:
    """Against a count by hand: 50 trials of 5 fine-tunes, 10 steps, 8 images; 3 confirmed twice for 7 steps; scored on 8 and 6 images."""
    more = ("search.confirm.steps=7", "search.objectives=[val_ood,val_id]", "data.val_id.max_examples=6")
    cost = costs(read("sst2", tmp_path, *more))
    assert cost["search_samples"] == 50 * 5 * 10 * 8
    assert cost["search_scored_images"] == 50 * 5 * (8 + 6)
    assert cost["confirm_samples"] == 3 * 2 * 5 * 7 * 8
    assert cost["confirm_scored_images"] == 3 * 2 * 5 * (8 + 6)
    assert cost["final_samples"] == 20 * 8
    without = costs(read("sst2", tmp_path, "search.confirm.repeats=0"))
    assert without["confirm_samples"] == without["confirm_scored_images"] == 0
    few = costs(read("sst2", tmp_path, "search.n_trials=2"))
    assert few["confirm_samples"] == 2 * 2 * 5 * 10 * 8, "no more can be confirmed than were run"


@pytest.mark.parametrize(
    ("change", "size"),
    [
        ("{}", 50_000),
        ("{slice: [10, 40]}", 30),
        ("{slice: [49990, 60000]}", 10),
        ("{half: second}", 25_000),
        ("{max_examples: 70}", 70),
        ("{max_examples: 70000}", 50_000),
        ("{max_examples: 60000, balanced: true}", 60_000),
        ("{max_examples: 30, corruptions: {all: true}}", 450),
    ],
)
def test_expected_sizes(change: str, size: int, tmp_path: Path) -> None:
    document = yaml.safe_load(preset_text("cifar10"))
    document["data"]["train"] |= yaml.safe_load(change)
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(document))
    assert expected_sizes(load_config(path).data, {})["train"] == size


def test_sizes_that_nobody_published(tmp_path: Path) -> None:
    data = read("sst2", tmp_path, "data.train.max_examples=null", "data.train.balanced=false").data
    assert expected_sizes(data, {}) == {"train": None, "val_id": 8, "val_ood": 8, "test": None}
    assert expected_sizes(data, {"train": 6_920})["train"] == 6_920
    assert expected_sizes(read("caltech101", tmp_path).data, {}) == {"train": 5_206, "val_id": 867, "val_ood": 1_000, "test": 1_735}


# --- the commands -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def autoft(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command in this process: exit code, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return (code, *capsys.readouterr())

    return run


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def _no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may load or fetch a model."""
    monkeypatch.setattr("autoft.pipeline.load_model", None)


@pytest.mark.usefixtures("_no_model")
@pytest.mark.parametrize("name", NAMES)
def test_init_then_plan_without_data_or_network(name: str, autoft: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = autoft("init", name)
    assert code == 0 and f"wrote {name}.yaml" in out
    config = load_config(tmp_path / f"{name}.yaml")
    code, out, err = autoft("plan", f"{name}.yaml")
    assert code == 2
    assert err.startswith("autoft plan: not ready: data.train.path = ") and str(tmp_path / default_root(name)) in err
    assert len(err.splitlines()) == 1
    assert "ViT-B-16-quickgelu (openai), not loaded" in out
    for words in (f"{costs(config)['search_samples']:,} training samples", "loss_weight/hinge", "tried first", f"preset {name}: as published"):
        assert words in out
    assert "ready; nothing was trained" not in out
    code, out, err = autoft("plan", f"{name}.yaml", "--json")
    facts = json.loads(out)
    assert (code, facts["ready"]) == (2, False)
    assert set(facts["missing"]) == {field for field, _ in config.data.datasets()}
    assert facts["budget"]["search_samples"] == costs(config)["search_samples"]


@pytest.mark.usefixtures("_no_model")
def test_plan_shows_both_ratios_and_whether_they_agree(autoft: Run, tmp_path: Path) -> None:
    read("iwildcam", tmp_path)
    said = autoft("plan", tmp_path / "iwildcam.yaml")[1]
    assert "search / final = 0.49" in said
    assert "2 caption rows an image: its final fine-tune has 5,192,360 samples, and search / final = 0.25" in said
    assert "search / final = 0.25 (49% by images): agrees" in said
    said = autoft("plan", tmp_path / "iwildcam.yaml", "--set", "final.epochs=10")[1]
    assert "does not agree" in said
    said = autoft("plan", tmp_path / "iwildcam.yaml", "--set", "trial.steps=20")[1]
    assert "none of the published ones (script: 500 x 10 x 256, README: 500 x 100 x 256)" in said


@pytest.mark.usefixtures("_no_model")
def test_plan_says_how_the_search_goes(autoft: Run, tmp_path: Path) -> None:
    read("fmow", tmp_path)
    changes = (
        *("search_space.layerwise=true", "search_space.reference=contrastive", "search_space.loss_weights={hinge: [0.001, 1]}"),
        *("search.enqueue=[flyp, published/fmow]", "search.warm_start_from=[old]", "search.objectives=[val_ood, val_id]"),
        *("search.confirm={top: 4, repeats: 3, steps: 90}", "trial.repeats=2", "evaluate.baselines=[flyp]"),
    )
    flags = [part for change in changes for part in ("--set", change)]
    said = autoft("plan", tmp_path / "fmow.yaml", *flags)[1]
    for words in (
        *("layer_lr/BLOCK", "layer_weight_decay/BLOCK", "their names are known once it is loaded"),
        "scored by worst_group_accuracy on val_ood and val_id",
        "tried first, among them: flyp, published/fmow, the best 5 of old",
        "confirmation: the best 4, 3 times more, 90 steps each",
        "256 images, 2 fine-tunes each",
        "baselines: 1,536,000 samples",
    ):
        assert words in said
    facts = json.loads(autoft("plan", tmp_path / "fmow.yaml", *flags, "--json")[1])
    assert facts["search_space"]["loss_weight/contrastive"] == "1 (the reference)"
    assert facts["search_space"]["loss_weight/hinge"] == "log-uniform [0.001, 1]"
    assert facts["search_space"]["loss_weight/cross_entropy"] == "log-uniform [0.0001, 10]"
    said = autoft("plan", tmp_path / "fmow.yaml", "--set", "search.confirm.repeats=0", "--set", "search.enqueue=[]")[1]
    assert "confirmation: none" in said and "tried first, among them: nothing" in said


@pytest.mark.usefixtures("_no_model")
def test_plan_counts_what_is_here(autoft: Run, tmp_path: Path) -> None:
    """Of a study with data of its own, only an official set is missing."""
    study = write_study(tmp_path, tmp_path, data__val_ood={"layout": "cifar10_c", "path": "nowhere", "max_examples": 40})
    code, out, err = autoft("plan", study, "--json")
    facts = json.loads(out)
    assert (code, list(facts["missing"])) == (2, ["data.val_ood"])
    assert {row["set"]: row["images"] for row in facts["data"]} == {"train": 48, "val_id": 24, "val_ood": 40, "a": 30, "b": 30}
    assert facts["published"] is None
    assert "nowhere is not there" in err


@pytest.mark.parametrize("missing", ["train", "val_ood"])
def test_missing_data_of_unknown_size_has_no_budget(missing: str, autoft: Run, tmp_path: Path, tiny_vit: Path) -> None:
    study = write_study(tmp_path, tiny_vit, **{f"data__{missing}": {"layout": "folder", "path": "nowhere"}})
    code, out, err = autoft("plan", study)
    assert (code, out) == (2, "")
    assert f"data.{missing}" in err and "nowhere" in err


def test_an_unreachable_hub_does_not_prevent_the_budget(autoft: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoft.models.load._hub_answers", lambda: False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    study = write_study(tmp_path, tmp_path, model__name="hf-hub:nobody/nothing")
    code, out, err = autoft("plan", study, "--json")
    facts = json.loads(out)
    assert code == 2 and "not ready: model.name = 'hf-hub:nobody/nothing'" in err and "cannot be reached" in err
    assert facts["budget"]["search_samples"] == 6 * 4 * 12
    assert facts["data"][0]["per_class"] == {"red": 16, "green": 16, "blue": 16}
    assert facts["missing"] == {} and facts["ready"] is False
    assert "search / final" in autoft("plan", study)[1]


def test_blocks_have_names_once_the_model_is_loaded(autoft: Run, tmp_path: Path, tiny_vit: Path) -> None:
    study = write_study(tmp_path, tiny_vit, search_space__layerwise=True)
    code, out, _ = autoft("plan", study, "--json")
    facts = json.loads(out)
    rates = [name for name in facts["search_space"] if name.startswith("layer_lr/")]
    assert code == 0 and facts["ready"] is True
    assert len(rates) > 2 and "layer_lr/BLOCK" not in rates


# --- init -------------------------------------------------------------------------------------------------------------------------


def test_init_takes_a_file_a_preset_or_both(autoft: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for arguments, written, study in (
        ((), "study.yaml", "my-study"),
        (("mine.yaml",), "mine.yaml", "my-study"),
        (("folder/mine",), "folder/mine", "my-study"),
        (("fmow",), "fmow.yaml", "fmow"),
        (("fmow", "mine.yml"), "mine.yml", "fmow"),
    ):
        assert autoft("init", *arguments)[0] == 0
        assert load_config(tmp_path / written).study == study


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("fmwo",), ["no preset 'fmwo'", "did you mean fmow?", "flowers", ".yaml"]),
        (("fmwo", "x.yaml"), ["no preset 'fmwo'", "iwildcam"]),
        (("x.yaml", "fmow"), ["a preset comes before the file"]),
        (("--data-root", "x"), ["--data-root goes with a preset", "imagenet-fewshot"]),
        (("fmow", "there.yaml"), ["there.yaml exists already"]),
        (("there.yaml",), ["there.yaml exists already"]),
        (("fmow", "no/where.yaml"), ["cannot write no/where.yaml"]),
    ],
)
def test_what_init_refuses(arguments: tuple[str, ...], words: list[str], autoft: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.yaml").write_text("kept")
    code, out, err = autoft("init", *arguments)
    assert (code, out) == (2, "")
    assert all(word in err for word in words), err
    assert [path.name for path in tmp_path.iterdir()] == ["there.yaml"]
    assert (tmp_path / "there.yaml").read_text() == "kept"


def test_data_root_is_where_one_is_not_where_the_file_is(autoft: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "studies").mkdir()
    monkeypatch.chdir(tmp_path)
    assert autoft("init", "fmow", "studies/one.yaml", "--data-root", "sets/fmow")[0] == 0
    assert autoft("init", "fmow", "studies/two.yaml", "--data-root", tmp_path / "sets" / "fmow")[0] == 0
    for name in ("one", "two"):
        assert load_config(tmp_path / "studies" / f"{name}.yaml").data.train.path == tmp_path / "sets" / "fmow"  # type: ignore[union-attr]


def test_a_section_that_is_commented_out_is_valid_as_it_stands(tmp_path: Path) -> None:
    """Taking the marks off search.confirm in the starter file leaves a study file with the same meaning."""
    from autoft.cli.starter import starter

    lines = starter().splitlines()
    first = lines.index("  # confirm:")
    last = lines.index("", first)
    lines[first:last] = [line.replace("# ", "", 1) for line in lines[first:last]]
    path, changed = tmp_path / "study.yaml", tmp_path / "changed.yaml"
    path.write_text(starter())
    changed.write_text("\n".join(lines))
    assert "confirm" in yaml.safe_load(changed.read_text())["search"]
    assert load_config(changed) == load_config(path)


def test_an_unknown_preset_is_a_mistake_of_the_user() -> None:
    with pytest.raises(ConfigError, match="did you mean imagenet-fewshot"):
        preset_text("imagenet-fewshots")
