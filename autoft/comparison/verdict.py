"""What a comparison says in words: first which methods are ahead of AutoFT, then where AutoFT is ahead, its cost, and the limits."""

from collections.abc import Iterable, Sequence

from autoft.comparison.analysis import Analysis, Entry, analyse
from autoft.comparison.names import title_in_text
from autoft.comparison.records import FINETUNE, OURS, Comparison
from autoft.comparison.statistics import Difference
from autoft.report.metrics import format_difference, format_interval, format_value, metric_in_text
from autoft.report.results import Column
from autoft.report.text import duration


def verdict(comparison: Comparison) -> list[str]:
    """Plain sentences; the first says which methods are ahead of AutoFT on average OOD, if any is."""
    found = analyse(comparison)
    ours = [entry for name in OURS if (entry := found.entry(name)) is not None]
    scored = [entry for entry in ours if entry.ood is not None]
    return [
        *(_ahead_of(found, entry) for entry in scored),
        *(sentence for entry in scored for sentence in _wins(found, entry)),
        *_between_ours(found, scored),
        *_without_ours(found, ours, scored),
        *(sentence for entry in ours for sentence in _cost(found, entry)),
        *caveats(found),
    ]


def caveats(found: Analysis) -> list[str]:
    """What did not run, who got more tuning than others, and what the intervals are about."""
    return [*_problems(found), *_budget(found), *_baseline(found), _meaning(found)]


def _ahead_of(found: Analysis, own: Entry) -> str:
    assert own.ood is not None
    gaps = _gaps(found, own)
    ahead = [(entry, gap) for entry, gap in gaps if found.sign * gap.mean.value < 0]
    metric = found.comparison.metric
    score = f"{metric_in_text(metric)} {format_value(own.ood.value, metric)}"
    if not gaps:
        return f"{own.title} was compared with no other method (average out of distribution: {score})."
    if not ahead:
        return f"No other method is ahead of {own.title} on average out of distribution ({score})."
    which = f"{len(ahead)} of the {len(gaps)} other methods {'is' if len(ahead) == 1 else 'are'}"
    if len(ahead) == len(gaps):
        which = f"All {len(gaps)} other methods are" if len(gaps) > 1 else "The only other method is"
    return f"{which} ahead of {own.title} on average out of distribution ({score}): {_listed(found, ahead)}."


def _wins(found: Analysis, own: Entry) -> list[str]:
    """Whom AutoFT is ahead of, by name; the sizes are in the table of differences."""
    behind = [(entry, gap) for entry, gap in _gaps(found, own) if found.sign * gap.mean.value > 0]
    kinds = ((True, "with intervals that exclude 0"), (False, "with intervals that include 0"), (None, "without an interval"))
    named = [(kind, _names(entry for entry, gap in behind if gap.mean.excludes_zero is state)) for state, kind in kinds]
    parts = "; ".join(f"{kind}: {names}" if found.seeds > 1 else names for kind, names in named if names)
    text = [f"{own.title} is ahead of {len(behind)} method{'s' if len(behind) != 1 else ''} ({parts})."] if behind else []
    sets = found.of_split("test_ood")
    if len(sets) > 1:
        firsts = [column.dataset for column in sets if _best_on(found, column) == own.name]
        text += [f"It has the best mean on {len(firsts) or 'none'} of the {len(sets)} out-of-distribution test sets{_bracketed(firsts)}."]
    ranked = sorted((entry for entry in found.entries if entry.id), key=lambda entry: -found.sign * entry.id.value if entry.id else 0.0)
    if own in ranked and own.id is not None and len(ranked) > 1:
        score = format_value(own.id.value, found.comparison.metric)
        text += [f"In distribution {own.title} is number {ranked.index(own) + 1} of {len(ranked)}, with {score}."]
    return [" ".join(text)] if text else []


def _between_ours(found: Analysis, scored: Sequence[Entry]) -> list[str]:
    if len(scored) < 2:
        return []
    first, second = scored
    gap = found.between(second, first)
    if gap is None or gap.mean.value == 0:
        return []
    ahead, other = (second, first) if found.sign * gap.mean.value > 0 else (first, second)
    doubt = "" if gap.mean.low is None else f"; the interval {'excludes' if gap.mean.excludes_zero else 'includes'} 0"
    return [f"{ahead.title} is ahead of {_one(found, other, gap)}{doubt}."]


def _without_ours(found: Analysis, ours: Sequence[Entry], scored: Sequence[Entry]) -> list[str]:
    """Who is best, where AutoFT is not among those that have a score."""
    if scored:
        return []
    who = "AutoFT is not among these methods"
    if ours:
        who = f"{' and '.join(entry.title for entry in ours)} {'has' if len(ours) == 1 else 'have'} no score here"
    best = found.entries[0]
    if best.ood is None:
        return [f"{who}; no method was scored on every out-of-distribution test set."]
    score = format_value(best.ood.value, found.comparison.metric)
    return [f"{who}; the best on average out of distribution is {title_in_text(best.name)} with {score}."]


def _cost(found: Analysis, own: Entry) -> list[str]:
    plain = found.entry(FINETUNE)
    if plain is None or plain is own or not own.seconds or not plain.seconds:
        return []
    parts = (
        f"training {duration(own.train_seconds)} against {duration(plain.train_seconds)}",
        f"tuning {duration(own.tune_seconds)} against {duration(plain.tune_seconds)}",
    )
    ratio = own.seconds / plain.seconds
    times = "about" if 0.95 <= ratio < 1.05 else f"{ratio:.2g} times"
    return [f"Training one model and the tuning before it took {own.title} {times} as long as plain fine-tuning ({', '.join(parts)})."]


def _problems(found: Analysis) -> list[str]:
    bad = [entry for entry in found.entries if entry.problems]
    if not bad:
        return []
    named = "; ".join(f"{entry.title}: {', '.join(entry.problems)}" for entry in bad)
    whose, it = ("this method", "it") if len(bad) == 1 else ("these methods", "them")
    return [f"Not every run has a result: {named}. The means of {whose} are over the seeds that finished, which may flatter {it}."]


def _budget(found: Analysis) -> list[str]:
    limit = found.comparison.budget.evaluations
    over = [entry for entry in found.entries if entry.method.tuning_evaluations > limit]
    if not over:
        return []
    named = ", ".join(f"{entry.title} {entry.method.tuning_evaluations}" for entry in over)
    return [f"The budget was {limit} tuning evaluation{'s' if limit != 1 else ''} a method; more were used by {named}."]


def _baseline(found: Analysis) -> list[str]:
    if found.baseline is None:
        return []
    return [f"The best baseline, by mean VAL_OOD score and so without looking at a test set, is {title_in_text(found.baseline)}."]


def _meaning(found: Analysis) -> str:
    if found.seeds < 2:
        return "One seed: there are no intervals, and any of these differences may be luck."
    return (
        f"Intervals are 95 % and cover the variation over {found.seeds} training seeds of one tuned configuration a method: not what other"
        " test images or another tuning would give. Differences are paired by seed, and each interval stands for itself: of twenty"
        " without a difference, one is expected to exclude 0."
    )


def _gaps(found: Analysis, own: Entry) -> list[tuple[Entry, Difference]]:
    """AutoFT less each method that is not AutoFT, on average OOD; the largest lead of the other first."""
    others = [entry for entry in found.entries if not entry.ours]
    gaps = [(entry, gap) for entry in others if (gap := found.between(own, entry)) is not None]
    return sorted(gaps, key=lambda item: (found.sign * item[1].mean.value, item[0].name))


def _listed(found: Analysis, gaps: Sequence[tuple[Entry, Difference]]) -> str:
    """`with intervals that exclude 0: FLYP by 1.2 points [0.3, 2.1]; with intervals that include 0: ...`"""
    if all(gap.mean.low is None for _, gap in gaps):
        return ", ".join(_one(found, *item) for item in gaps)
    kinds = (
        ("with an interval that excludes 0", [item for item in gaps if item[1].mean.excludes_zero]),
        ("with an interval that includes 0", [item for item in gaps if item[1].mean.excludes_zero is False]),
        ("without an interval", [item for item in gaps if item[1].mean.excludes_zero is None]),
    )
    return "; ".join(f"{kind}, {', '.join(_one(found, *item) for item in items)}" for kind, items in kinds if items)


def _one(found: Analysis, entry: Entry, gap: Difference) -> str:
    """`FLYP by 1.2 points [0.3, 2.1]`: sizes are positive for whoever the sentence says is ahead."""
    mean, metric = gap.mean, found.comparison.metric
    low, high = (mean.low, mean.high) if mean.value > 0 else (_less(mean.high), _less(mean.low))
    return f"{title_in_text(entry.name)} by {_sized(found, gap)} {format_interval(low, high, metric)}".rstrip()


def _less(value: float | None) -> float | None:
    return None if value is None else -value


def _sized(found: Analysis, gap: Difference) -> str:
    text = format_difference(gap.mean.value, found.comparison.metric)
    return f"less than {text.replace('0.0 points', '0.1 points')}" if float(text.split()[0]) == 0 and "0.0 points" in text else text


def _best_on(found: Analysis, column: Column) -> str | None:
    """The method with the best mean on a data set; None where two share it."""
    scored = {entry.name: found.sign * entry.scores[column].value for entry in found.entries if column in entry.scores}
    best = [name for name, value in scored.items() if value == max(scored.values())]
    return best[0] if len(best) == 1 else None


def _names(entries: Iterable[Entry]) -> str:
    return ", ".join(title_in_text(entry.name) for entry in entries)


def _bracketed(names: Sequence[str]) -> str:
    return f" ({', '.join(names)})" if names else ""
