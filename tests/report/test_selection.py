"""What the report says of the choice: margin against noise, optimism, baselines, horizon, Pareto front, shared images."""

import copy
import csv
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from autoft.errors import AutoFTError
from autoft.report import write_report
from autoft.report.enqueued import baseline_sentence, enqueued_of
from autoft.report.horizon import chance, horizon_of, horizon_sentence
from autoft.report.leakage import leakage_caution, leakage_of, leakage_warnings
from autoft.report.results import model_name, name_in_text
from autoft.report.schema import check_summary
from autoft.report.selection import confirmation_of, margin_sentence, noise_sentence, optimism_sentence, overtaken_sentence
from autoft.report.table import selection_line
from autoft.report.trials import Trial, read_trials
from autoft.report.verdict import verdict

from .factory import confirmed, make_summary, make_trials, minimal_summary, minimized, write_run
from .reading import Page, read_page

HOSTILE = "</text><script>alert('x')</script><img src=//e.org/x>\"' onload=\"y\" $\\frac{$ {{ 7*7 }} & Ω"
Run = tuple[dict[str, Any], list[dict[str, Any]]]


def whole(**keys: Any) -> Run:
    trials = make_trials()
    return confirmed(make_summary(), trials, **keys), trials


def page_of(folder: Path, run: Run) -> Page:
    return read_page(write_report(write_run(folder, *run)))


def table_of(folder: Path, run: Run) -> list[Trial]:
    return read_trials(write_run(folder, *run) / "trials.csv")


def of(summary: dict[str, Any]) -> Any:
    """The confirmation of a summary that has one."""
    found = confirmation_of(summary)
    assert found is not None
    return found


def text_of(page: Page) -> str:
    return re.sub(r"\s+", " ", page.text)


@pytest.mark.parametrize(
    ("ratio", "standing", "words", "line"),
    [
        (0.42, "toss", "not distinguishable, and the choice between them is a coin toss", "a coin toss"),
        (0.99, "toss", "a coin toss", "a coin toss"),
        (1.01, "close", "not distinguishable by these runs", "not distinguishable"),
        (1.99, "close", "not distinguishable by these runs", "not distinguishable"),
        (2.01, "ahead", "it is clearly ahead", "clearly ahead"),
    ],
)
@pytest.mark.parametrize("lower", [False, True])
def test_words_switch_at_one_and_two_standard_errors(ratio: float, standing: str, words: str, line: str, lower: bool) -> None:
    trials, noise, repeats = make_trials(), 0.019, 3
    summary = minimized(make_summary(), trials) if lower else make_summary()
    found = confirmed(summary, trials, margin=ratio * noise * math.sqrt(2 / repeats), noise_sd=noise, repeats=repeats)
    assert of(found).standing == standing
    assert (of(found).runner_up.mean < of(found).winner.mean) is not lower
    means = [candidate.mean for candidate in of(found).candidates]
    assert means == sorted(means, reverse=not lower)
    assert words in margin_sentence(of(found))
    assert ("clearly" in margin_sentence(of(found))) is (standing == "ahead")
    said = selection_line(found)
    assert said is not None
    assert said.endswith(line)


def test_margin_sentence_in_full() -> None:
    summary, _ = whole()
    winner, second = (item["number"] for item in (of(summary).candidates[i].__dict__ for i in (0, 1)))
    assert winner == summary["search"]["best_trial"]["number"]
    assert margin_sentence(of(summary)) == (
        f"Trial {winner} leads the runner-up, trial {second}, by 0.8 points; one configuration confirmed twice would differ by 1.9 points"
        " (standard error, 2 runs each): the two are not distinguishable, and the choice between them is a coin toss."
    )
    assert any("a coin toss" in str(statement) for statement in verdict(summary))


def test_a_single_run_or_a_single_candidate_gives_no_verdict_of_the_margin() -> None:
    once, _ = whole(noise_sd=None, repeats=1)
    assert "each ran once, so the noise of a seed is not known" in margin_sentence(of(once))
    assert noise_sentence(of(once)) is None
    assert "noise not measured" in str(selection_line(once))
    alone, _ = whole()
    alone["search"]["confirmation"] |= {"candidates": alone["search"]["confirmation"]["candidates"][1:2], "margin": None, "margin_se": None}
    assert of(alone).standing == "alone"
    assert "only configuration that was confirmed" in margin_sentence(of(alone))
    assert "pooled over 2 runs of 1 configuration)" in str(noise_sentence(of(alone)))
    assert not any("Choice of configuration" in str(statement) for statement in verdict(alone))


def test_level_candidates_do_not_lead() -> None:
    summary, _ = whole(margin=0.0, noise_sd=0.0)
    assert "is level with the runner-up" in margin_sentence(of(summary))
    assert of(summary).standing == "toss"


def test_few_runs_make_the_noise_itself_uncertain() -> None:
    assert "itself uncertain" in str(noise_sentence(of(whole(repeats=2)[0])))  # three degrees of freedom
    assert "itself uncertain" not in str(noise_sentence(of(whole(repeats=3)[0])))  # six


@pytest.mark.parametrize("lower", [False, True])
def test_optimism_respects_direction(lower: bool) -> None:
    trials = make_trials()
    summary = confirmed(minimized(make_summary(), trials) if lower else make_summary(), trials)
    found = of(summary)
    winner = next(item for item in summary["search"]["confirmation"]["candidates"] if item["number"] == found.winner.number)
    for shift, words in ((0.021, "too good"), (-0.021, "which did not flatter it"), (0.0, ": the same.")):
        winner["search_score"] = winner["mean"] + (-shift if lower else shift)
        assert words in str(optimism_sentence(of(summary)))
        assert of(summary).flattery(of(summary).winner) == pytest.approx(shift)


def test_longer_confirmation_runs_are_not_called_optimism() -> None:
    summary, _ = whole()
    summary["search"]["confirmation"]["steps"] = 64
    said = str(optimism_sentence(of(summary)))
    assert "64 steps against 16" in said
    assert "too good" not in said


def test_a_best_search_score_that_did_not_hold_is_named() -> None:
    summary, trials = whole()
    first = max((trial for trial in trials if trial["state"] == "COMPLETE"), key=lambda trial: trial["score"])
    assert f"by trial {first['number']}, did not hold" in str(overtaken_sentence(of(summary)))
    summary["search"]["confirmation"]["winner"] = first["number"]
    assert overtaken_sentence(of(summary)) is None


def test_nothing_is_said_without_a_confirmation() -> None:
    for summary in (make_summary(), minimal_summary()):
        assert confirmation_of(summary) is None
        assert selection_line(summary) is None
        summary["search"]["confirmation"] = None
        assert selection_line(summary) is None


def test_runs_without_a_score_are_left_out(tmp_path: Path) -> None:
    summary, trials = whole(repeats=3)
    for item in summary["search"]["confirmation"]["candidates"]:
        item |= {"scores": [*item["scores"][:1], None, math.nan], "sd": math.nan, "mean": item["mean"]}
    third = summary["search"]["confirmation"]["candidates"][2]
    third |= {"mean": None, "scores": []}
    found = of(summary)
    assert [len(candidate.runs) for candidate in found.candidates] == [1, 1, 0]
    assert found.candidates[2].mean is None
    page_of(tmp_path, (summary, trials))
    for item in summary["search"]["confirmation"]["candidates"]:
        item["mean"] = None
    assert selection_line(summary) is None
    page = page_of(tmp_path, (summary, trials))
    assert "the best score of the search decided, unconfirmed" in text_of(page)
    assert not (tmp_path / "plots" / "candidates.png").exists()


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run, Page]:
    """A whole run's folder, its summary and trials, and its page."""
    folder = tmp_path_factory.mktemp("shown")
    run = whole()
    return folder, run, page_of(folder, run)


def test_page_says_how_it_was_chosen(shown: tuple[Path, Run, Page]) -> None:
    _, (summary, _), page = shown
    text = text_of(page)
    search = summary["search"]
    assert [item["data-standing"] for item in page.data if "data-standing" in item] == ["toss"]
    assert margin_sentence(of(summary)) in text
    means = {int(item["data-candidate"]): float(item["data-value"]) for item in page.data if "data-candidate" in item}
    assert means == {item["number"]: item["mean"] for item in search["confirmation"]["candidates"]}
    optimism = [float(item["data-optimism"]) for item in page.data if "data-optimism" in item]
    assert optimism[0] == pytest.approx(search["confirmation"]["optimism"])
    given = {item["data-enqueued"]: float(item["data-value"]) for item in page.data if "data-enqueued" in item}
    assert given == {item["name"]: item["score"] for item in search["enqueued"]}
    assert "Plain fine-tuning" in text
    assert "Published FMoW configuration" in text
    assert "pacs-small, 12 trials" in text
    cost = {item["data-cost"]: float(item["data-value"]) for item in page.data if "data-cost" in item}
    assert (cost["confirm_samples"], cost["confirm_seconds"]) == (6144, 61.5)
    assert f"{(17408 + 6144) / 4008:.2f} ×" in text
    assert "Spearman's rho" in text
    assert "Caution: sets share images, so scores on them are not all of unseen images: val_ood and sketch (1 exact copy, allowed" in text


def test_figures_of_the_selection_and_the_csv_behind_them(shown: tuple[Path, Run, Page]) -> None:
    folder, (summary, trials), page = shown
    assert {"candidates", "pareto", "horizon"} <= {path.stem for path in (folder / "plots").glob("*.png")}
    assert len(page.labels) == 12

    def lines(name: str) -> list[dict[str, str]]:
        with (folder / "plots" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    runs = [float(line["score"]) for line in lines("candidates")]
    assert sorted(runs) == sorted(score for item in summary["search"]["confirmation"]["candidates"] for score in item["scores"])
    front = {int(line["trial"]) for line in lines("pareto") if line["on_front"] == "1"}
    assert front == {item["number"] for item in summary["search"]["pareto"]}
    assert len(lines("pareto")) == sum(trial["state"] == "COMPLETE" for trial in trials)
    assert {line["name"] for line in lines("history")} == {"", "finetune", "published/fmow"}
    assert [line["label"] for line in lines("horizon")] == [pair["label"] for pair in summary["search"]["horizon"]["pairs"]]


def test_without_data_there_is_neither_figure_nor_section(tmp_path: Path) -> None:
    page = page_of(tmp_path, (make_summary(), make_trials()))
    assert not {"candidates", "pareto", "horizon"} & {path.stem for path in (tmp_path / "plots").iterdir()}
    assert "How it was chosen" not in page.text
    assert "Shared images" not in page.text
    assert "Spearman" not in page.text
    assert "Confirmation" not in page.text


def test_every_new_key_may_be_null(tmp_path: Path) -> None:
    summary, trials = make_summary(), make_trials()
    summary["search"] |= dict.fromkeys(("pareto", "enqueued", "confirmation", "horizon", "transfer"))
    summary["search"]["best_trial"] |= {"name": None, "ci_low": None, "ci_high": None}
    summary["leakage"] = None
    page_of(tmp_path, (summary, trials))


def test_names_with_markup_are_text(tmp_path: Path) -> None:
    summary, trials = whole()
    search = summary["search"]
    for trial in trials[:2]:
        trial["name"] = HOSTILE
    for item in (*search["enqueued"], *search["confirmation"]["candidates"], *search["pareto"], search["best_trial"]):
        item["name"] = HOSTILE
    for pair in search["horizon"]["pairs"]:
        pair["label"] = HOSTILE
    search |= {"transfer": [{"study": HOSTILE, "n_trials": 1}], "preset": HOSTILE, "reference": HOSTILE, "objectives": [HOSTILE], "layerwise": True}
    search["best_trial"]["hyperparameters"] = {**search["best_trial"]["hyperparameters"], "layer_lr": {HOSTILE: 1e-4}}
    for pair in summary["leakage"]["pairs"]:
        pair |= {"a": HOSTILE, "b": HOSTILE, "near": 2}
    page = page_of(tmp_path, (summary, trials))
    assert not {"script", "img"} & set(page.tags)
    assert not [name for name in page.attributes if name.startswith("on")]
    assert all(address.startswith("#") or address == "data:," for address in page.addresses)
    assert page.find(enqueued=HOSTILE)
    assert page.find(layer_lr=HOSTILE)
    assert "{{ 7*7 }}" in page.text
    line = selection_line(summary | {"search": search | {"confirmation": _renamed(search["confirmation"], "a\n\x1b[31mb" + "c" * 99)}})
    assert line is not None
    assert line.isprintable()
    assert len(line) < 220


def _renamed(confirmation: dict[str, Any], name: str) -> dict[str, Any]:
    return confirmation | {"candidates": [item | {"name": name} for item in confirmation["candidates"]]}


def test_layerwise_rates_come_from_the_summary_or_from_the_table(tmp_path: Path) -> None:
    summary, trials = whole()
    folder = write_run(tmp_path, summary, trials)
    lines = list(csv.reader((folder / "trials.csv").open(encoding="utf-8", newline="")))
    header = [*lines[0], "layer_lr/head", "layer_weight_decay/head"]
    with (folder / "trials.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *([*line, "0.003", "0.25"] for line in lines[1:])])
    page = read_page(write_report(folder))
    assert [float(item["data-value"]) for item in page.find(layer_lr="head")] == [0.003]
    assert [float(item["data-value"]) for item in page.find(layer_weight_decay="head")] == [0.25]
    assert not [item for item in page.data if "data-hyperparameter" in item], "a rate that was not used is shown"
    summary["search"]["best_trial"]["hyperparameters"] = {**summary["search"]["best_trial"]["hyperparameters"], "layer_lr": {"head": 0.5}}
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    page = read_page(write_report(folder))
    assert [float(item["data-value"]) for item in page.find(layer_lr="head")] == [0.5]


def test_tables_of_trials_old_and_new(tmp_path: Path) -> None:
    old = table_of(tmp_path / "old", (make_summary(), make_trials()))
    assert {trial.name for trial in old} == {""}
    assert all(trial.interval is None and trial.val_id is None and trial.repeat_sd is None for trial in old)
    _, trials = run = whole()
    trials[0]["repeat_sd"] = 0.011
    run[0]["search"]["reference"] = "contrastive"
    new = table_of(tmp_path / "new", run)
    assert [trial.name for trial in new][:3] == ["finetune", "published/fmow", ""]
    assert new[0].interval == (trials[0]["ci_low"], trials[0]["ci_high"])
    assert (new[0].val_id, new[0].repeat_sd) == (trials[0]["val_id"], 0.011)
    trials[max(range(len(trials)), key=lambda number: trials[number]["score"] or 0)]["repeat_sd"] = 0.013
    page = page_of(tmp_path / "new", run)
    assert [item["data-repeat-sd"] for item in page.data if item.get("data-repeat-sd")] == ["0.013"]
    assert "contrastive, weight 1 (dashed line), is the reference" in text_of(page)


def _baselines(tmp_path: Path, best_searched: float, best_baseline: float, noise: float | None = 0.01, **search: Any) -> str | None:
    """The sentence for a run of two baselines and two searched trials."""
    trials = make_trials(4)
    for trial, score in zip(trials, (best_baseline, 0.1, best_searched, 0.2), strict=True):
        trial |= {"state": "COMPLETE", "score": score}
    summary = confirmed(make_summary(4), trials, noise_sd=noise)
    summary["search"] |= search
    return baseline_sentence(summary, table_of(tmp_path, (summary, trials)))


def test_whether_the_search_beat_its_baselines(tmp_path: Path) -> None:
    error = 0.01 * math.sqrt(2)
    ahead = str(_baselines(tmp_path, 0.5 + 2.01 * error, 0.5))
    assert "2.8 points better than the best of 2 enqueued baselines (trial 0, plain fine-tuning: 50.0 %" in ahead
    assert "more than noise, though" in ahead
    assert "within the noise" in str(_baselines(tmp_path, 0.5 + 1.99 * error, 0.5))
    assert "within the noise" not in str(_baselines(tmp_path, 0.5 + 1.99 * error, 0.5, repeats=4))  # a trial is then a mean of four
    assert "the noise of a trial was not measured" in str(_baselines(tmp_path, 0.7, 0.5, noise=None))
    behind = str(_baselines(tmp_path, 0.45, 0.5))
    assert behind.startswith("The search did not beat its baselines on VAL_OOD: the best of 2 searched trials (trial 2: 45.0 %")
    assert "is 5.0 points behind the best of them" in behind
    assert "is level with the best of them" in str(_baselines(tmp_path, 0.5, 0.5))


def test_a_trial_of_another_study_is_no_baseline(tmp_path: Path) -> None:
    sources = [{"study": "pacs-small", "n_trials": 2}]
    taken = [{"name": f"pacs-small #{number}", "number": number, "score": 0.9, "state": "complete"} for number in (0, 1)]
    assert _baselines(tmp_path, 0.5, 0.4, enqueued=taken, transfer=sources) is None
    assert _baselines(tmp_path, 0.5, 0.4, enqueued=[]) is None
    mixed = [taken[0], {"name": "l2sp", "number": 1, "score": 0.1, "state": "complete"}]
    assert "the best of 3 searched trials (trial 2: 50.0 %" in str(_baselines(tmp_path, 0.5, 0.4, enqueued=mixed, transfer=sources))


def test_a_baseline_without_a_score_and_a_baseline_that_was_chosen(tmp_path: Path) -> None:
    failed = [{"name": "flyp", "number": 0, "score": None, "state": "fail"}]
    assert _baselines(tmp_path, 0.5, 0.4, enqueued=failed) == "No enqueued baseline has a score on VAL_OOD to compare the search with."
    summary, trials = whole()
    summary["search"]["best_trial"]["number"] = 0
    assert str(baseline_sentence(summary, table_of(tmp_path, (summary, trials)))).endswith("is a baseline itself: plain fine-tuning.")
    assert [item.low is not None for item in enqueued_of(summary, table_of(tmp_path, (summary, trials)))] == [True, True]


def test_chance_is_what_unrelated_scores_give() -> None:
    """Simulated: the standard deviation of Spearman's rho over unrelated ranks, against the formula."""
    rng = np.random.default_rng(0)
    for n in (6, 12):
        rhos = [stats.spearmanr(rng.permutation(n), np.arange(n)).statistic for _ in range(3000)]
        assert 2 * float(np.std(rhos)) == pytest.approx(chance(n), rel=0.05)


@pytest.mark.parametrize(
    ("rho", "n", "words"),
    [
        (0.9, 5, "too few to tell from chance"),
        (0.6, 12, "this does not show that short trials rank"),
        (0.61, 12, "short trials say something about long runs"),
        (-0.7, 12, "−0.70 over n = 12 pairs, beyond the ±0.60"),
        (-0.7, 12, "the wrong way round"),
        (None, 2, "With 2 pairs of a short and a long run, no rank correlation"),
    ],
)
def test_words_of_the_horizon(rho: float | None, n: int, words: str) -> None:
    summary, _ = whole()
    summary["search"]["horizon"] |= {"spearman": rho, "n": n}
    found = horizon_of(summary)
    assert found is not None
    assert words in horizon_sentence(found)
    assert ("of differing lengths" in horizon_sentence(found)) is (rho is not None)


def test_horizon_that_was_not_measured() -> None:
    summary, _ = whole()
    summary["search"]["horizon"]["pairs"] = [pair | {"long": None} for pair in summary["search"]["horizon"]["pairs"]]
    assert horizon_of(summary) is None
    assert horizon_of(make_summary()) is None


def test_shared_images() -> None:
    summary, _ = whole()
    assert [(pair.a, pair.b, pair.any) for pair in leakage_of(summary)] == [("val_ood", "sketch", True), ("val_ood", "train", False)]
    assert leakage_warnings(summary) == ["val_ood and sketch share images: 1 exact copy, allowed by the study file and 3 near copies."]
    summary["leakage"]["pairs"] = [{"a": "val_ood", "b": "val_id", "exact": 4, "near": None, "allowed": False}]
    assert leakage_warnings(summary) == []
    assert leakage_caution(summary) is None
    summary["leakage"]["pairs"] = [{"a": "train", "b": f"set_{index}", "exact": 0, "near": 1, "allowed": False} for index in range(5)]
    assert str(leakage_caution(summary)).endswith("train and set_2 (1 near copy); and 2 more pairs.")


def test_shared_images_as_the_data_layer_counts_them(tmp_path: Path) -> None:
    """By side, with examples, as `autoft.data.leakage` writes them."""
    sizes = {"first_size": 205, "second_size": 393, "first_exact": 0, "second_exact": 0, "allowed": False, "exact": [], "near": []}
    pair = {"first": "val_ood", "second": "sketch", "first_near": 3, "second_near": 2, **sizes}
    summary, trials = whole()
    summary["leakage"] = {"pairs": [pair, pair | {"second": "train", "first_near": None, "second_near": None}], "near_duplicates": 4}
    assert leakage_warnings(summary) == ["val_ood and sketch share images: 3 near copies."]
    text = text_of(page_of(tmp_path, (summary, trials)))
    assert "perceptual hashes at most 4 bits apart" in text
    assert "205, 393" in text


def test_names_of_baselines() -> None:
    assert model_name("published/fmow") == model_name("published-fmow") == "Published FMoW configuration"
    assert name_in_text("published/fmow") == "published FMoW configuration"
    assert [name_in_text(name) for name in ("flyp", "l2sp", "zero_shot", "final", "My/Model")] == [
        "FLYP (contrastive)",
        "L2-SP",
        "zero-shot",
        "AutoFT",
        "My/Model",
    ]


def test_schema_takes_old_and_new_summaries() -> None:
    trials = make_trials()
    for summary in (make_summary(), minimal_summary(), whole()[0], confirmed(minimized(make_summary(), trials), trials)):
        check_summary(summary)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("search", "confirmation", "repeats"), -1, "search.confirmation"),
        (("search", "enqueued", 0, "number"), "0", "search.enqueued.0.number: '0' is not of type"),
        (("search", "pareto", 0, "values"), [1], "search.pareto.0.values: [1] is not of type"),
        (("search", "horizon"), {"n": 1}, "search.horizon"),
        (("search", "layerwise"), "yes", "search.layerwise: 'yes' is not of type"),
        (("search", "best_trial", "ci_low"), "0.5", "search.best_trial"),
        (("leakage", "pairs", 0, "exact"), -1, "leakage.pairs.0"),
        (("cost", "confirm_seconds"), -1.0, "cost.confirm_seconds: -1.0 is less than"),
    ],
)
def test_schema_names_the_new_fields(path: tuple[str | int, ...], value: object, message: str) -> None:
    summary = copy.deepcopy(whole()[0])
    place: Any = summary
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    with pytest.raises(AutoFTError) as caught:
        check_summary(summary)
    assert message in str(caught.value)
