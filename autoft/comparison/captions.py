"""What stands above the tables, in Markdown and on the page alike."""

from autoft.comparison.analysis import Analysis
from autoft.comparison.names import title_in_text, unit_of_difference
from autoft.comparison.records import Comparison
from autoft.comparison.statistics import WILCOXON_FROM
from autoft.report.metrics import axis_title


def scores_caption(found: Analysis) -> str:
    """Metric, unit, what ± is, order."""
    spread = "one seed, so no intervals" if found.seeds < 2 else f"± half a 95 % interval over {found.seeds} seeds"
    better = "higher" if found.comparison.direction == "maximize" else "lower"
    text = f"{axis_title(found.comparison.metric)}, {spread}; {better} is better. Best average OOD first."
    return f"{text} {robustness_caption(found)}".strip()


def robustness_caption(found: Analysis) -> str:
    """How effective robustness was computed; empty where it was not."""
    if not found.robust or found.reference is None:
        return ""
    text = (
        "Effective robustness: average OOD above the line through the runs of plain fine-tuning and linear probing on logit axes,"
        " in points. Its intervals take the line as given."
    )
    if not found.reference.slope_fitted:
        text += " No rising line fits them, or their ID accuracies are too alike, so its slope is 1."
    return text


def differences_caption(found: Analysis) -> str:
    """What is subtracted, and which tests."""
    unit = unit_of_difference(found.comparison.metric)
    baseline = f", and less the best baseline, {title_in_text(found.baseline)} (best mean VAL_OOD score)" if found.baseline else ""
    text = f"Average OOD{f' in {unit}' if unit else ''}, paired by seed: the method less plain fine-tuning{baseline}."
    if found.seeds < 2:
        return f"{text} One seed: no intervals and no tests."
    tests = " p: paired t-test, with Holm's correction over the methods of its column."
    if found.ranked:
        return f"{text}{tests} Wilcoxon: the signed-rank test, corrected likewise."
    return f"{text}{tests} Below {WILCOXON_FROM} seeds there is no signed-rank test."


def tuning_caption(comparison: Comparison) -> str:
    """The budget and the rule."""
    budget = comparison.budget
    what = f", each a fine-tune of {budget.steps:,} steps scored on VAL_OOD" if budget.steps else ""
    evaluations = f"{budget.evaluations} tuning evaluation{'s' if budget.evaluations != 1 else ''}"
    return f"Each method had {evaluations}{what}. {budget.rule}".strip()


def cost_caption(found: Analysis) -> str:
    """What the seconds and bytes are."""
    kinds = {entry.peak_memory_kind for entry in found.entries if entry.peak_memory_kind}
    words = {"cuda": "cuda: held on the GPU", "process": "process: resident memory of the process, data and libraries included"}
    about = "; ".join(words[kind] for kind in sorted(kinds))
    memory = f" Peak memory is the most of any run ({about})." if about else ""
    return f"Training is one run, averaged over seeds; tuning was done once a method.{memory}"
