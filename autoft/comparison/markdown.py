"""A comparison as Markdown tables, for docs/results."""

from collections.abc import Sequence

from autoft.comparison.analysis import Analysis, Entry, analyse
from autoft.comparison.captions import cost_caption, differences_caption, scores_caption, tuning_caption
from autoft.comparison.names import (
    chosen_text,
    interval,
    knobs_text,
    memory_text,
    p_text,
    plus_minus,
    seconds_text,
    signed,
)
from autoft.comparison.records import Comparison
from autoft.comparison.statistics import Difference
from autoft.comparison.table import seeds_text
from autoft.comparison.verdict import verdict
from autoft.report.metrics import MISSING, format_value


def markdown(comparison: Comparison) -> str:
    """The verdict, then tables: scores, paired differences with their tests, tuning, cost. Ends with a line break."""
    found = analyse(comparison)
    parts = [
        f"# {_text(comparison.study)}: methods compared",
        _about(comparison),
        *(_text(sentence) for sentence in verdict(comparison)),
        "## Scores",
        _text(scores_caption(found)),
        _scores(found),
        "## Paired differences in average OOD",
        _text(differences_caption(found)),
        _differences(found),
        "## Tuning",
        _text(tuning_caption(comparison)),
        _tuning(found),
        "## Cost",
        _text(cost_caption(found)),
        _cost(found),
        *(["## Notes", "\n".join(f"- {_text(note)}" for note in comparison.notes)] if comparison.notes else []),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _about(comparison: Comparison) -> str:
    sets = ", ".join(f"{name} {size:,}" for name, size in comparison.data.items())
    versions = ", ".join(f"{name} {version}" for name, version in comparison.versions.items())
    classes = f"{comparison.n_classes} classes" if comparison.n_classes else ""
    about = [comparison.model, classes, f"images: {sets}" if sets else "", comparison.hardware, versions]
    return _text("; ".join(item for item in about if item)) + "."


def _scores(found: Analysis) -> str:
    metric, columns = found.comparison.metric, [*found.of_split("test_ood"), *found.of_split("test_id")]
    head = ["Method", "Seeds", "Average OOD", "Average ID", *(f"{c.dataset} ({c.split.removeprefix('test_').upper()})" for c in columns)]
    head += ["Effective robustness"] if found.robust else []
    rows = [
        [
            _name(entry),
            seeds_text(entry),
            *(plus_minus(mean, metric) for mean in (entry.ood, entry.id, *map(entry.scores.get, columns))),
            *([plus_minus(entry.robustness, metric, sign=True)] if found.robust else []),
        ]
        for entry in found.entries
    ]
    return _table(head, rows)


def _differences(found: Analysis) -> str:
    ranked = found.ranked
    tests = ["p (t, Holm)", *(["p (Wilcoxon, Holm)"] if ranked else [])]
    head = ["Method", "n", "To fine-tuning", "95 %", *tests, "To best baseline", "95 %", *tests]
    rows = []
    for entry in found.entries:
        both = (entry.to_finetune, entry.to_baseline)
        n = max((item.mean.n for item in both if item), default=0)
        rows.append([_name(entry), str(n) if n else "", *(cell for item in both for cell in _difference(found, item, ranked))])
    return _table(head, rows)


def _difference(found: Analysis, item: Difference | None, ranked: bool) -> list[str]:
    if item is None:
        return [""] * (4 if ranked else 3)
    metric = found.comparison.metric
    tests = [p_text(item.p_holm), *([p_text(item.wilcoxon_holm)] if ranked else [])]
    return [signed(item.mean.value, metric), interval(item.mean, metric) or MISSING, *tests]


def _tuning(found: Analysis) -> str:
    metric = found.comparison.metric
    rows = []
    for entry in found.entries:
        rows.append(
            [
                _name(entry),
                str(entry.method.tuning_evaluations),
                knobs_text(entry.method.knobs) or "none",
                chosen_text(entry.method.chosen) or MISSING,
                format_value(found.best_tuning(entry), metric),
                format_value(entry.val_ood.value, metric) if entry.val_ood else MISSING,
                f"{entry.method.source}{' (reconstructed where it is silent)' if entry.method.reconstructed else ''}",
            ]
        )
    return _table(["Method", "Evaluations", "Tuned over", "Chosen", "Best tuning score", "VAL_OOD", "Source"], rows, left=(2, 3, 6))


def _cost(found: Analysis) -> str:
    rows = [
        [
            _name(entry),
            *(seconds_text(seconds) for seconds in (entry.train_seconds, entry.tune_seconds, entry.seconds)),
            memory_text(entry.peak_memory_bytes),
            entry.peak_memory_kind or MISSING,
        ]
        for entry in found.entries
    ]
    return _table(["Method", "Train, s", "Tune, s", "Sum, s", "Peak memory, MB", "of"], rows)


def _name(entry: Entry) -> str:
    return f"{entry.title}{' *' if entry.problems else ''}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = ()) -> str:
    rule = ["---" if index == 0 or index in left else "--:" for index in range(len(head))]
    lines = [[_text(cell) for cell in head], rule, *([_text(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(text: str) -> str:
    """A text that stays in its cell and is no markup, whatever a user called something."""
    line = " ".join(text.split())
    for character in "\\|*`":
        line = line.replace(character, f"\\{character}")
    return line.replace("](", "]\\(").replace("&", "&amp;").replace("<", "&lt;")
