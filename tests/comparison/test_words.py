"""What a comparison says: the verdict, the terminal's table, Markdown."""

import re

import pytest

from autoft.comparison.analysis import analyse
from autoft.comparison.markdown import markdown
from autoft.comparison.names import p_text, signed, title
from autoft.comparison.records import Comparison
from autoft.comparison.table import format_comparison
from autoft.comparison.verdict import verdict
from tests.comparison.factory import LEVELS, comparison, document, scored


def test_the_first_sentence_names_the_baselines_that_win() -> None:
    said = verdict(scored({"finetune": [0.50, 0.51, 0.49], "autoft": [0.54, 0.55, 0.55], "flyp": [0.55, 0.56, 0.57], "wise_ft": [0.50, 0.58, 0.59]}))
    assert said[0] == (
        "2 of the 3 other methods are ahead of AutoFT on average out of distribution (accuracy 54.7 %): with an interval that includes 0,"
        " FLYP by 1.3 points [−0.1, 2.8], WiSE-FT by 1.0 point [−9.8, 11.8]."
    )
    assert "AutoFT is ahead of 1 method" in said[1] and "plain fine-tuning" in said[1]


def test_an_interval_that_excludes_0_is_told_from_one_that_includes_it() -> None:
    said = verdict(scored({"finetune": [0.4, 0.4, 0.4], "autoft": [0.50, 0.51, 0.52], "flyp": [0.52, 0.532, 0.541], "spd": [0.48, 0.56, 0.52]}))[0]
    assert re.search(r"with an interval that excludes 0, FLYP by 2\.1 points \[1\.9, 2\.3\]; with an interval that includes 0, SPD by 1\.0 point", said)


def test_extended_is_judged_by_itself_and_against_autoft() -> None:
    said = verdict(scored({"flyp": [0.55, 0.56], "autoft": [0.5, 0.51], "autoft_extended": [0.6, 0.612]}))
    assert said[0].startswith("The only other method is ahead of AutoFT on average")
    assert said[1] == "No other method is ahead of AutoFT (extended) on average out of distribution (accuracy 60.6 %)."
    assert any(sentence.startswith("AutoFT (extended) is ahead of AutoFT by 10.1 points") for sentence in said)


def test_where_every_other_method_is_ahead_it_says_all() -> None:
    said = verdict(scored({"autoft": [0.5, 0.5], "flyp": [0.6, 0.6], "spd": [0.55, 0.55]}))
    assert said[0].startswith("All 2 other methods are ahead of AutoFT")
    assert not any("AutoFT is ahead" in sentence for sentence in said)


def test_lower_cross_entropy_is_ahead() -> None:
    said = verdict(scored({"flyp": [1.0, 1.1], "autoft": [1.25, 1.3], "spd": [1.5, 1.6]}, metric="cross_entropy"))
    assert said[0].startswith("1 of the 2 other methods is ahead of AutoFT")
    assert "FLYP by 0.225 nats" in said[0] and "SPD" in said[1]


def test_without_a_better_baseline_it_says_so_first() -> None:
    said = verdict(scored({"finetune": [0.5, 0.52], "autoft": [0.6, 0.61]}))
    assert said[0] == "No other method is ahead of AutoFT on average out of distribution (accuracy 60.5 %)."
    assert any("took AutoFT about as long as plain fine-tuning" in sentence for sentence in said)


@pytest.mark.parametrize(("scores", "begins"), [({"finetune": [0.5]}, "AutoFT is not among"), ({"finetune": [0.5], "autoft": [None]}, "AutoFT has no score")])
def test_without_autoft_it_names_the_best(scores: dict[str, list[float | None]], begins: str) -> None:
    said = verdict(scored(scores))
    assert said[0].startswith(begins) and "plain fine-tuning" in said[0]


def test_one_seed_is_called_one_seed_everywhere() -> None:
    one = comparison(seeds=1)
    assert "One seed: there are no intervals" in verdict(one)[-1]
    assert "one seed" in format_comparison(one).splitlines()[0]
    text = markdown(one)
    assert "one seed, so no intervals" in text and "no intervals and no tests" in text
    for shown in (format_comparison(one), text.partition("## Scores")[2]):
        assert "±" not in shown


def test_failed_runs_are_named_in_every_form() -> None:
    given = scored({"finetune": [0.5, 0.52], "spd": [0.51, None], "autoft": [0.6, 0.62]})
    for shown in (" ".join(verdict(given)), format_comparison(given), markdown(given)):
        assert "seed 1 failed (loss was not finite)" in shown
    assert re.search(r"^SPD \* +1 of 2 ", format_comparison(given), re.MULTILINE)
    assert "| SPD \\* | 1 of 2 |" in markdown(given)


def test_more_tuning_than_the_budget_is_told() -> None:
    given = document(("finetune", "autoft"))
    given["methods"][1]["tuning_evaluations"] = 50
    assert any("more were used by AutoFT 50" in sentence for sentence in verdict(Comparison.from_dict(given)))


def test_a_reader_learns_that_the_best_baseline_was_chosen_on_validation() -> None:
    given = comparison()
    name = title(str(analyse(given).baseline))
    assert any("by mean VAL_OOD score" in sentence and name in sentence for sentence in verdict(given))


@pytest.mark.parametrize("width", [200, 120, 80, 60, 40, 20])
def test_a_table_keeps_to_its_width_and_shows_every_figure(width: int) -> None:
    text = format_comparison(comparison(), width)
    if width >= 40:
        assert max(map(len, text.splitlines())) <= max(width, len(text.splitlines()[0]))
    for name in LEVELS:
        assert title(name) in text
    cells = re.findall(r"[+−]?\d[\d.,]*", re.sub(r"\n\n.*?─\n", "\n", text, flags=re.DOTALL))
    wide = re.findall(r"[+−]?\d[\d.,]*", re.sub(r"\n\n.*?─\n", "\n", format_comparison(comparison(), 500), flags=re.DOTALL))
    assert set(wide) <= set(cells)


def test_rows_are_sorted_by_average_ood() -> None:
    lines = format_comparison(comparison(), 300).splitlines()[5:]
    values = [float(re.split(r" {2,}", line)[2].split()[0]) for line in lines[:20]]
    assert values == sorted(values, reverse=True)


def test_markdown_has_every_method_in_every_table() -> None:
    text = markdown(comparison())
    sections = re.split(r"^## ", text, flags=re.MULTILINE)
    assert [section.splitlines()[0] for section in sections[1:]] == ["Scores", "Paired differences in average OOD", "Tuning", "Cost"]
    for section in sections[1:]:
        rows = [line for line in section.splitlines() if line.startswith("| ")]
        assert len({row.count("|") for row in rows}) == 1
        assert sorted(row.split(" | ")[0][2:] for row in rows[2:]) == sorted(map(title, LEVELS))


def test_markdown_of_six_seeds_has_the_signed_rank_test() -> None:
    assert "p (Wilcoxon, Holm)" in markdown(comparison(("finetune", "flyp", "autoft"), seeds=6))
    assert "p (Wilcoxon, Holm)" not in markdown(comparison(("finetune", "flyp", "autoft"), seeds=5))


def test_names_of_users_stay_text_in_markdown_and_in_the_terminal() -> None:
    given = document(("finetune", "autoft"))
    given["methods"][0]["name"] = "a|b\n<script>`\x1b[31m"
    for run in given["runs"]:
        run["method"] = given["methods"][0]["name"] if run["method"] == "finetune" else run["method"]
    hostile = Comparison.from_dict(given)
    assert "\x1b" not in format_comparison(hostile)
    assert "| a\\|b &lt;script>\\`" in markdown(hostile)


def test_figures_read_well() -> None:
    assert [signed(value, "accuracy") for value in (0.021, -0.004, 0.0, -0.0001)] == ["+2.1", "−0.4", "0.0", "0.0"]
    assert [p_text(p) for p in (0.0004, 0.0131, 1.0, None)] == ["< 0.001", "0.013", "1.000", "–"]
