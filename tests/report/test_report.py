"""report.html from run folders: whole, small, odd and hostile ones."""

import csv
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from autoft.config import ModelConfig
from autoft.errors import AutoFTError
from autoft.models import build_classifier, load_model
from autoft.models.checkpoint import CheckpointInfo, save_checkpoint
from autoft.report import write_report
from autoft.report.page import duration

from .factory import evaluation, make_summary, make_trials, minimal_summary, minimized, write_run
from .reading import Page, read_page

KEYS = ("model", "dataset", "split", "metric", "value", "ci_low", "ci_high", "n")
HOSTILE = "</text><script>alert('x')</script><img src=//e.org/x>\"' onload=\"y\" $\\frac{$ {{ 7*7 }} & Ω"


def page_of(folder: Path, summary: dict[str, Any], trials: list[dict[str, Any]] | None = None, checkpoints: bool = True) -> Page:
    return read_page(write_report(write_run(folder, summary, trials, checkpoints)))


def evaluations_of(page: Page) -> list[tuple[Any, ...]]:
    rows = [{name.removeprefix("data-").replace("-", "_"): value for name, value in item.items()} for item in page.data if "data-dataset" in item]
    numbers = {"value": float, "ci_low": float, "ci_high": float, "n": int}
    return sorted(tuple(numbers.get(key, str)(row[key]) for key in KEYS) for row in rows)


Whole = tuple[Path, dict[str, Any], Page]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """A whole run's folder, summary and page."""
    folder = tmp_path_factory.mktemp("whole")
    summary = make_summary()
    summary["evaluations"] += [evaluation(m, "photo", "test_id", 0.1 + 0.2, 167, "macro_f1") for m in ("zero_shot", "wise_ft")]
    return folder, summary, page_of(folder, summary, make_trials())


def test_every_evaluation_is_on_the_page_to_the_last_bit(whole: Whole) -> None:
    _, summary, page = whole
    assert evaluations_of(page) == sorted(tuple(item[key] for key in KEYS) for item in summary["evaluations"])
    for model in ("zero_shot", "finetune", "final", "wise_ft"):
        (average,) = page.find(model=model, average="test_ood")
        ood = [item["value"] for item in summary["evaluations"] if item["model"] == model and item["split"] == "test_ood" and item["metric"] == "accuracy"]
        assert float(average["data-value"]) == pytest.approx(sum(ood) / len(ood), abs=1e-15)


def test_configuration_cost_and_counts_are_those_of_the_summary(whole: Whole) -> None:
    _, summary, page = whole
    best = summary["search"]["best_trial"]["hyperparameters"]
    shown = {item["data-loss-weight"]: float(item["data-value"]) for item in page.data if "data-loss-weight" in item}
    assert shown == best["loss_weights"]
    assert {item["data-hyperparameter"]: float(item["data-value"]) for item in page.data if "data-hyperparameter" in item} == {
        "lr": best["lr"],
        "weight_decay": best["weight_decay"],
    }
    cost = {item["data-cost"]: float(item["data-value"]) for item in page.data if "data-cost" in item}
    assert cost == {name: summary["cost"][name] for name in cost}
    assert len(cost) == 6
    counts = {item["data-trials"]: int(item["data-value"]) for item in page.data if "data-trials" in item}
    assert counts == {state: summary["search"][f"n_{state}"] for state in ("complete", "pruned", "failed")}
    assert [item["data-alpha"] for item in page.data if "data-alpha" in item] == ["0.7"]
    top = [float(item["data-value"]) for item in page.data if "data-trial" in item]
    assert top == sorted(top, reverse=True)
    assert top[0] == summary["search"]["best_trial"]["score"]


def test_page_is_self_contained_and_labelled(whole: Whole) -> None:
    folder, _, page = whole
    assert all(address.startswith("#") or address == "data:," for address in page.addresses), page.addresses
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "http://" not in text
    assert "https://" not in text
    assert not re.search(r"url\((?!#)", text)
    assert "@import" not in text
    assert "script" not in page.tags
    assert len(page.labels) == 9
    assert not page.unlabelled
    assert len(page.ids) == len(set(page.ids))
    # Every clip path and marker a figure refers to is in the page: stripping ids must not break the drawing.
    referred = set(re.findall(r"url\(#([^)]+)\)", text)) | {address[1:] for address in page.addresses if address.startswith("#")}
    assert referred
    assert referred <= set(page.ids)
    assert "#1f5fbf" not in text.split("</style>", 1)[1], "a colour was left out of the page's variables"


def test_plots_and_the_csv_behind_them(whole: Whole) -> None:
    folder, summary, _ = whole
    names = {"intervals_ood", "intervals_id", "loss_weights", "history", "intermediate_values", "alpha_curve", "path", "id_ood", "epochs"}
    assert {path.name for path in (folder / "plots").iterdir()} == {f"{name}{ending}" for name in names for ending in (".png", ".csv")}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (folder / "plots").glob("*.png"))
    with (folder / "plots" / "alpha_curve.csv").open(encoding="utf-8") as file:
        assert [{name: float(value) for name, value in line.items()} for line in csv.DictReader(file)] == summary["wise_ft"]["curve"]
    with (folder / "plots" / "history.csv").open(encoding="utf-8") as file:
        best = [float(line["best_so_far"]) for line in csv.DictReader(file) if line["best_so_far"]]
    assert best == sorted(best)
    assert best[-1] == summary["search"]["best_trial"]["score"]


def test_writing_again_gives_the_same_page_and_drops_stale_figures(tmp_path: Path) -> None:
    summary = make_summary()
    page_of(tmp_path, summary, make_trials())
    first = (tmp_path / "report.html").read_bytes()
    assert write_report(tmp_path).read_bytes() == first
    del summary["wise_ft"]
    page_of(tmp_path, summary, make_trials())
    assert not list((tmp_path / "plots").glob("alpha_curve*"))
    assert not [path for path in tmp_path.rglob("*") if "partial" in path.name]


def test_minimized_metric(tmp_path: Path) -> None:
    trials = make_trials()
    summary = minimized(make_summary(), trials)
    page = page_of(tmp_path, summary, trials)
    assert "lower is better" in page.text
    assert "higher is better" not in page.text
    assert "nats lower (better) than zero-shot" in page.text
    assert " % [" not in page.text
    with (tmp_path / "plots" / "history.csv").open(encoding="utf-8") as file:
        best = [float(line["best_so_far"]) for line in csv.DictReader(file) if line["best_so_far"]]
    assert best == sorted(best, reverse=True)
    assert best[-1] == summary["search"]["best_trial"]["score"]
    top = [float(item["data-value"]) for item in page.data if "data-trial" in item]
    assert top == sorted(top)


def test_without_wise_ft(tmp_path: Path) -> None:
    summary = make_summary()
    del summary["wise_ft"]
    summary["evaluations"] = [item for item in summary["evaluations"] if item["model"] != "wise_ft"]
    page = page_of(tmp_path, summary, make_trials())
    assert "has no wise_ft section" in page.text
    assert "checkpoints/final" in page.text
    assert "checkpoints/wise_ft" not in page.text
    assert "AutoFT has an accuracy of" in page.text


def test_without_tests(tmp_path: Path) -> None:
    summary = make_summary()
    summary["evaluations"] = []
    page = page_of(tmp_path, summary, make_trials())
    assert "No test set was evaluated" in page.text
    assert "flatters the checkpoint" in page.text
    assert evaluations_of(page) == []


def test_only_in_distribution_tests(tmp_path: Path) -> None:
    summary = make_summary()
    summary["evaluations"] = [item for item in summary["evaluations"] if item["split"] == "test_id"]
    page = page_of(tmp_path, summary, make_trials())
    assert "does not say how robust" in page.text
    assert not (tmp_path / "plots" / "id_ood.png").exists()


def test_one_trial(tmp_path: Path) -> None:
    trials = make_trials(1)
    summary = make_summary(1)
    page = page_of(tmp_path, summary, trials)
    assert "The only complete trial" in page.text
    assert "1 trial\n" in page.text


def test_all_trials_pruned(tmp_path: Path) -> None:
    summary = make_summary()
    trials = [trial | {"state": "PRUNED"} for trial in make_trials()]
    summary |= {"state": "failed", "evaluations": [], "wise_ft": None, "final": None}
    summary["search"] |= {"best_trial": None, "n_complete": 0, "n_pruned": 24, "n_failed": 0}
    page = page_of(tmp_path, summary, trials, checkpoints=False)
    assert "no checkpoint to judge" in page.text
    assert "all 24 finished trials were stopped early" in page.text
    assert "not complete (state: failed)" in page.text
    assert "Using the checkpoint" not in page.text


def test_fewest_keys_and_no_trials(tmp_path: Path) -> None:
    page = page_of(tmp_path, minimal_summary(), None, checkpoints=False)
    assert "There is no record of trials" in page.text


def test_trials_without_reports(tmp_path: Path) -> None:
    trials = [trial | {"reports": {}} for trial in make_trials()]
    page = page_of(tmp_path, make_summary(), trials)
    assert "Trials reported once" in page.text
    assert not (tmp_path / "plots" / "intermediate_values.png").exists()


def test_a_score_of_one_and_a_weight_of_zero_can_be_drawn(tmp_path: Path) -> None:
    summary = make_summary()
    for item in summary["evaluations"]:
        item.update({"value": 1.0, "ci_low": 0.97, "ci_high": 1.0} if item["split"] == "test_id" else {"value": 0.0, "ci_low": None, "ci_high": None})
    summary["search"]["best_trial"]["hyperparameters"]["loss_weights"] = {"cross_entropy": 1.0, "hinge": 0.0}
    page = page_of(tmp_path, summary, make_trials())
    assert "level with zero-shot" in page.text
    assert "there are no intervals to compare" in page.text


def test_names_with_markup_are_text(tmp_path: Path) -> None:
    summary = make_summary(study=HOSTILE)
    summary["description"] = {"model": HOSTILE, "data": {HOSTILE: 3}, "n_classes": 7}
    summary["versions"] = {HOSTILE: HOSTILE}
    summary |= {"notes": [HOSTILE], "fingerprint": HOSTILE, "state": HOSTILE}
    summary["evaluations"] += [evaluation(HOSTILE, name, split, 0.9, 167) for name, split in (("photo", "test_id"), ("cartoon", "test_ood"))]
    summary["evaluations"] += [evaluation("$\\frac{$", "photo", "test_id", 0.9, 167)]  # no formula, and no error of one
    summary["evaluations"] += [evaluation("final", HOSTILE, "test_ood", 0.5, 167)]
    summary["evaluations"] += [evaluation("final", "photo", "test_id", 0.5, 167, metric=HOSTILE)]
    summary["search"] |= {"sampler": HOSTILE, "pruner": HOSTILE}
    summary["search"]["best_trial"]["hyperparameters"]["loss_weights"][HOSTILE] = 0.5
    trials = [trial | {"failure_kind": HOSTILE} for trial in make_trials()]
    page = page_of(tmp_path, summary, trials)
    assert not {"script", "img"} & set(page.tags)
    assert not [name for name in page.attributes if name.startswith("on")]
    assert all(address.startswith("#") or address == "data:," for address in page.addresses)
    assert page.find(model=HOSTILE, dataset="photo")
    assert page.find(loss_weight=HOSTILE)
    assert "49" not in page.text.split(HOSTILE.split("{{")[0])[1][:20], "a name was evaluated as a template"


def test_several_seeds_are_rows_of_their_own(tmp_path: Path) -> None:
    summary = make_summary()
    summary["evaluations"] += [item | {"seed": 1} for item in summary["evaluations"] if item["model"] == "finetune"]
    page = page_of(tmp_path, summary, make_trials())
    assert "Plain fine-tuning, seed 0" in page.text
    assert "Plain fine-tuning, seed 1" in page.text
    assert len(page.find(model="finetune", dataset="photo")) == 2


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "summary.json").unlink(), "is absent"),
        (lambda folder: (folder / "summary.json").write_text("[1"), "is absent or is not a JSON object"),
        (lambda folder: (folder / "summary.json").write_text("{}"), "does not fit its schema"),
        (lambda folder: (folder / "trials.csv").write_text("number,state,score\nx,COMPLETE,1\n"), "not a table of trials"),
        (lambda folder: (folder / "trials.csv").write_text("a,b\n1,2\n"), "not a table of trials"),
    ],
)
def test_damaged_run_folders_are_named(tmp_path: Path, spoil: Any, message: str) -> None:
    write_run(tmp_path, make_summary(), make_trials(3))
    spoil(tmp_path)
    with pytest.raises(AutoFTError, match=message):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_code_on_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The page's own snippet, run in the run folder against a real checkpoint, prints a class and its probability."""
    model = load_model(ModelConfig(name=f"local-dir:{files('autoft.demo') / 'checkpoint'}"))
    names = ("one", "<two>")
    classifier = build_classifier(model, names, ("a {}",))
    page = page_of(tmp_path, make_summary(), make_trials(1))
    about = {"study": "s", "method": "wise_ft", "class_keys": names, "class_names": names, "templates": ("a {}",), "fingerprint": "f"}
    info = CheckpointInfo(**about, hyperparameters={})  # type: ignore[arg-type]
    save_checkpoint(tmp_path / "checkpoints" / "wise_ft", classifier.state_dict(), model, info)
    Image.new("L", (40, 30), 128).save(tmp_path / "image.jpg")
    monkeypatch.chdir(tmp_path)
    exec(compile(page.code, "report.html", "exec"), {})
    assert re.fullmatch(r"(one|<two>) \d+\.\d%\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(4.24, "4.2 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (187, "3 min 07 s"), (3599.7, "1 h 00 min"), (90061, "1 d 01 h"), (None, "–")],
)
def test_duration(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text
