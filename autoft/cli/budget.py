"""What a study will cost, from its file and the sizes of its data sets, and how that compares with what was published."""

from collections.abc import Mapping
from typing import Any

from autoft.config import DataConfig, DatasetBase, OfficialDataset, StudyConfig, TransferDataset
from autoft.presets.published import PUBLISHED, Cost, Setting

ROUNDING = 0.02  # published numbers have two or three digits: 25 % is what 24.65 % is printed as
CORRUPTION_COUNT = 15  # of ImageNet-C's test corruptions


def budget(config: StudyConfig, sizes: Mapping[str, int]) -> dict[str, Any]:
    """What a study costs in images.

    Samples are images in a forward and backward pass; scored images in a forward pass only. Pruning makes the search cheaper than
    this, by how much is not known in advance.

    Args:
        sizes: examples of train, val_id and val_ood.
    """
    from autoft.finetune import final_recipe, trial_recipe

    trial, search, hyperparameters = config.trial, config.search, _any_hyperparameters(config)
    step = trial_recipe(trial, hyperparameters, sizes["train"]).batch_size * trial.repeats
    full = final_recipe(config.final, hyperparameters, sizes["train"]).samples
    confirmed = min(search.confirm.top, search.n_trials) * search.confirm.repeats
    searched = search.n_trials * trial.steps * step
    ends = trial.repeats * sum(sizes[name] for name in search.objectives)
    return {
        "search_samples": searched,
        "search_scored_images": search.n_trials * (ends + _reports_before_the_end(config) * sizes[search.objectives[0]]),
        "confirm_samples": confirmed * (search.confirm.steps or trial.steps) * step,
        "confirm_scored_images": confirmed * ends,
        "final_samples": full,
        "baseline_samples": full * len(config.evaluate.baselines),
        "search_over_final": searched / full,
    }


def _any_hyperparameters(config: StudyConfig) -> Any:
    """A recipe wants some; its cost does not depend on them."""
    from autoft.search_space import Hyperparameters

    return Hyperparameters(lr=config.search_space.base_lr, weight_decay=0.0, loss_weights={}, seed=0)


def _reports_before_the_end(config: StudyConfig) -> int:
    """Scores of a trial besides those at the end of its fine-tunes."""
    from autoft.trial import report_steps

    return 0 if config.trial.repeats > 1 else len(report_steps(config)) - 1


def compare(name: str, config: StudyConfig, costs: Mapping[str, Any], train_examples: int) -> dict[str, Any]:
    """A preset's budget beside what its source says and costs.

    Args:
        costs: what `budget` returned.

    Returns:
        rows_per_image, and samples and ratio with the final fine-tune counted in caption rows, as the released code runs it; published: the
        settings there are, in words; setting: which of them the study has, or None; table: its published cost, or None where there is
        none; agrees: whether the budget is that cost, or None.
    """
    published = PUBLISHED[name]
    rows = config.final.epochs * published.rows_per_image * train_examples
    setting = next((setting for setting in published.settings if _is(setting, config)), None)
    cost = setting.cost if setting else None
    by_rows = costs["search_samples"] / rows
    return {
        "preset": name,
        "rows_per_image": published.rows_per_image,
        "final_samples_by_rows": rows,
        "search_over_final_by_rows": by_rows,
        "published": [setting.text for setting in published.settings],
        "setting": setting.text if setting else None,
        "table": None if cost is None else {name: value for name, value in vars(cost).items() if value is not None},
        "agrees": None if cost is None else _agrees(cost, costs, rows, by_rows),
    }


def _is(setting: Setting, config: StudyConfig) -> bool:
    ours = (config.search.n_trials, config.trial.steps, config.trial.batch_size, config.trial.repeats)
    return ours == (setting.n_trials, setting.steps, setting.batch_size, setting.repeats)


def _agrees(cost: Cost, ours: Mapping[str, Any], rows: int, by_rows: float) -> bool:
    return (
        _near(ours["search_samples"], cost.search_samples)
        and _near(rows, cost.final_samples)
        and _near(by_rows, cost.search_over_final)
        and (cost.by_images is None or _near(ours["search_over_final"], cost.by_images))
    )


def _near(ours: float, theirs: float) -> bool:
    return abs(ours - theirs) <= ROUNDING * theirs


def expected_sizes(data: DataConfig, counted: Mapping[str, int]) -> dict[str, int | None]:
    """Examples of every set, by name, without reading one: its published size, as the set's section selects from it.

    None where neither the layout has a published size nor `counted` nor `max_examples` says it. Sets that are cut class by class (halves,
    Caltech-101, Stanford Cars, balanced draws) may differ from this by less than an example a class.

    Args:
        counted: sizes of sets that are on disk, before anything is selected from them, by name.
    """
    sets = {field.split(".", 2)[-1]: dataset for field, dataset in data.datasets()}
    return {name: _selected(dataset, counted.get(name) or _published_size(dataset)) for name, dataset in sets.items()}


def _selected(dataset: DatasetBase, size: int | None) -> int | None:
    """What slice, half, draw and corruptions leave of a set of so many examples."""
    if dataset.slice is not None:
        first, last = dataset.slice
        size = last - first if size is None else max(0, min(last, size) - first)
    if size is not None and dataset.half is not None:
        size = (size + 1) // 2 if dataset.half == "first" else size // 2
    if dataset.max_examples is not None:
        size = dataset.max_examples if size is None or dataset.balanced else min(dataset.max_examples, size)
    everything = dataset.corruptions is not None and dataset.corruptions.all
    return size * CORRUPTION_COUNT if size is not None and everything else size


def _published_size(dataset: DatasetBase) -> int | None:
    """The published size of a set before anything is selected from it."""
    from autoft.data.official import OFFICIAL_SIZES, official_size

    if not isinstance(dataset, OfficialDataset):
        return None
    size = official_size(dataset)
    if size is None and isinstance(dataset, TransferDataset):  # a part, by our own split, of a published whole
        from autoft.data.transfer import CALTECH_SHARES, CARS_SHARES

        shares = {"caltech101": CALTECH_SHARES, "stanford_cars": CARS_SHARES}[dataset.layout]
        size = round(OFFICIAL_SIZES[dataset.layout, "+".join(shares)] * shares[dataset.split] / 100)
    return size
