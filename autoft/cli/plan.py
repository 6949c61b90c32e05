"""`autoft plan`: check everything that can be checked without training, and say what the study will cost."""

import argparse
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from autoft.cli.budget import budget, compare, expected_sizes
from autoft.cli.progress import make_view, stdout_console
from autoft.cli.runtime import cache_dir, ray_address
from autoft.config import Knob, OfficialDataset, StudyConfig, load_config
from autoft.data.room import readable
from autoft.errors import AutoFTError, DataError, ModelError
from autoft.presets import named_preset

_HOW = {"cached": "read from the image cache", "decoded": "decoded now, into the image cache", "streamed": "streamed from its files"}
_NO_HUB = "cannot be reached"  # what `autoft.models.load_model` says where a download is all that is missing
_NEEDED = ("train", "val_id", "val_ood")  # the sets a budget depends on


@dataclass(frozen=True)
class _Checked:
    """How far a study could be checked.

    missing: paths that are not there, by field. problem: why it is not ready, if it is not. leakage, warnings: images that sets share.
    undecoded: sets whose images have to be decoded first, before it is known whether all can be used and which they share.
    """

    config: StudyConfig
    fingerprint: str | None
    model: dict[str, Any]
    data: list[dict[str, Any]]
    missing: dict[str, str]
    problem: AutoFTError | None = None
    leakage: dict[str, Any] | None = None
    warnings: tuple[str, ...] = ()
    undecoded: tuple[str, ...] = ()

    @property
    def sizes(self) -> dict[str, int]:
        """Examples by set, as far as known."""
        return {row["set"]: row["images"] for row in self.data if row["images"] is not None}


def plan(args: argparse.Namespace) -> int:
    """Validate a study and print its plan; trains nothing, and decodes no image unless told to.

    Raises:
        DataError, ModelError: what is wrong; where data or weights are not on this machine yet, after the plan is printed.
    """
    checked = _check(load_config(args.study, args.set), args.decode)
    config = checked.config
    costs = budget(config, checked.sizes)
    preset = named_preset(args.study.read_text(encoding="utf-8"))
    facts = {
        "study": config.study,
        "ready": checked.problem is None,
        "missing": checked.missing,
        "fingerprint": checked.fingerprint,
        "model": checked.model,
        "data": checked.data,
        "leakage": checked.leakage,
        "warnings": checked.warnings,
        "undecoded": checked.undecoded,
        "search_space": _space(config),
        "search": _search(config),
        "budget": costs,
        "published": compare(preset, config, costs, checked.sizes["train"]) if preset else None,
        "resources": _resources(Path(cache_dir())),
    }
    if args.json:
        print(json.dumps(facts, indent=1))
    else:
        _print(facts)
    if checked.problem is not None:
        raise checked.problem
    return 0


def _check(config: StudyConfig, decode: bool) -> _Checked:
    """Check a study as far as its data and weights are on this machine, and its images in the cache or to be decoded now.

    Raises:
        DataError, ModelError, ConfigError: something is wrong, not only absent.
    """
    from autoft.data.leakage import describe_leakage
    from autoft.models import load_model
    from autoft.pipeline import prepare, with_layers

    missing = _missing_paths(config)
    sizes = expected_sizes(config.data, _count_on_disk(config, missing)) if missing else {}
    if missing and all(sizes[name] is not None for name in _NEEDED):
        absent = "; ".join(f"{field}.path = {path} is not there" for field, path in _once(missing).items())
        return _Checked(config, None, _named_model(config), _rows(sizes), missing, DataError(f"not ready: {absent}"))
    try:
        loaded = load_model(config.model)
    except ModelError as error:
        if _NO_HUB not in str(error):
            raise
        return _Checked(config, None, _named_model(config), _listed(config), {}, ModelError(f"not ready: {error}"))
    model = _named_model(config) | {"parameters": sum(p.numel() for p in loaded.clip.parameters()), "size": loaded.preprocess.size}
    images = _image_plans(config, loaded)
    undecoded = tuple(name for name, image_plan in images.items() if not image_plan["known"])
    if undecoded and not decode:
        _check_descriptions(config, loaded)
        rows = _with_plans(_listed(config), images)
        config = with_layers(config, loaded, len(rows[0]["per_class"]))
        return _Checked(config, None, model, rows, {}, undecoded=undecoded)
    with make_view(config, as_json=False) as view:
        inputs = prepare(config, cache_dir(), view.decoding, view.comparing, loaded)
    rows = _with_plans(_loaded(inputs), _image_plans(config, loaded))
    leakage, warnings = inputs.leakage.to_dict(), tuple(describe_leakage(inputs.leakage))
    return _Checked(inputs.config, inputs.fingerprint, model, rows, {}, leakage=leakage, warnings=warnings)


def _image_plans(config: StudyConfig, loaded: Any) -> dict[str, dict[str, Any]]:
    """Where each set's images will come from, by name."""
    from autoft.data import plan_study_data

    pixels = loaded.preprocess
    plans = plan_study_data(config.data, pixels.size, pixels.interpolation, pixels.resize_mode, cache_dir())
    return {one.name: {"bytes": one.nbytes, "how": one.how, "known": one.known, "why": one.why} for one in plans}


def _with_plans(rows: list[dict[str, Any]], plans: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [row | plans[row["set"]] for row in rows]


def _check_descriptions(config: StudyConfig, loaded: Any) -> None:
    """What a study with descriptions can get wrong. Raises ConfigError, DataError."""
    from autoft.core_features import read_descriptions
    from autoft.data import resolve_classes

    if config.data.descriptions is not None:
        read_descriptions(config.data, resolve_classes(config.data), loaded.tokenizer)


def _missing_paths(config: StudyConfig) -> dict[str, str]:
    """Folders and files that are not there, by field. Shards are a pattern, not a path; they are looked for when they are listed."""
    paths = {field: getattr(dataset, "path", None) for field, dataset in config.data.datasets()}
    return {field: str(path) for field, path in paths.items() if isinstance(path, Path) and not path.exists()}


def _once(missing: Mapping[str, str]) -> dict[str, str]:
    """Every path under the first field that names it."""
    return {field: path for field, path in missing.items() if field == next(name for name, other in missing.items() if other == path)}


def _count_on_disk(config: StudyConfig, missing: Mapping[str, str]) -> dict[str, int]:
    """Examples of the sets that are there and whose size is not published, by name."""
    from autoft.data import open_listing

    return {
        field.split(".", 2)[-1]: len(open_listing(dataset, field))
        for field, dataset in config.data.datasets()
        if field not in missing and not (isinstance(dataset, OfficialDataset) and dataset.check_size)
    }


def _named_model(config: StudyConfig) -> dict[str, Any]:
    return {"name": config.model.name, "pretrained": config.model.pretrained}


def _rows(sizes: Mapping[str, int | None]) -> list[dict[str, Any]]:
    return [{"set": name, "images": size, "per_class": None} for name, size in sizes.items()]


def _listed(config: StudyConfig) -> list[dict[str, Any]]:
    """The sets as they are on disk; nothing is decoded."""
    from autoft.data import check_study_data

    rows = check_study_data(config.data)
    return [{"set": row["field"].split(".", 2)[-1], "images": row["n"], "per_class": row["per_class"]} for row in rows]


def _loaded(inputs: Any) -> list[dict[str, Any]]:
    data = inputs.data
    sets = {"train": data.train, "val_id": data.val_id, "val_ood": data.val_ood, **{name: images for name, (_, images) in data.tests.items()}}
    names = data.classes.names
    return [
        {"set": name, "images": len(images), "per_class": dict(zip(_class_names(images, names), map(int, images.class_counts()), strict=True))}
        for name, images in sets.items()
    ]


def _space(config: StudyConfig) -> dict[str, str]:
    """The prior of every hyperparameter, by its name in the study."""
    space = config.search_space
    low, high = space.lr_factor
    lr = f"log-uniform [{low * space.base_lr:g}, {high * space.base_lr:g}]"
    weight_decay = f"uniform [{space.weight_decay[0]:g}, {space.weight_decay[1]:g}]"
    blocks = (space.layers or ("BLOCK",)) if space.layerwise else ()
    weights = {term: space.loss_weights.get(term, space.loss_weight) for term in space.searched_terms}
    return {
        **({f"layer_lr/{block}": lr for block in blocks} or {"lr": lr}),
        **({f"layer_weight_decay/{block}": weight_decay for block in blocks} or {"weight_decay": weight_decay}),
        f"loss_weight/{space.reference}": "1 (the reference)",
        **{f"loss_weight/{term}": f"log-uniform [{low:g}, {high:g}]" for term, (low, high) in weights.items()},
        "seed": f"integer [{space.seed[0]}, {space.seed[1]}]",
        **{name: f"fixed: {value}" for name, value in space.fixed.items()},
        **{name: _knob(knob) for name, knob in space.knobs.items()},
    }


def _knob(knob: Knob) -> str:
    text = f"one of {', '.join(map(str, knob.choices))}" if knob.choices else f"{'log-uniform' if knob.log else 'uniform'} [{knob.low:g}, {knob.high:g}]"
    return text + "".join(f", where {other} is {value}" for other, value in knob.when.items())


def _search(config: StudyConfig) -> dict[str, Any]:
    """How the space is searched."""
    search, trial, confirm = config.search, config.trial, config.search.confirm
    confirmation = {"top": min(confirm.top, search.n_trials), "repeats": confirm.repeats, "steps": confirm.steps or trial.steps}
    return {
        "trials": {"n_trials": search.n_trials, "steps": trial.steps, "batch_size": trial.batch_size, "repeats": trial.repeats},
        "sampler": search.sampler,
        "pruner": search.pruner,
        "metric": config.metric,
        "objectives": list(search.objectives),
        "reference": config.search_space.reference,
        "layerwise": config.search_space.layerwise,
        "enqueue": list(search.enqueue),
        "warm_start_from": list(search.warm_start_from),
        "warm_start_trials": search.warm_start_trials,
        "confirm": confirmation if confirm.repeats else None,
    }


def _resources(folder: Path) -> dict[str, Any]:
    import torch

    from autoft.data.room import cache_limit, entries

    held = sum(entry.nbytes for entry in entries(folder))
    limit = cache_limit(folder, held)
    while not folder.exists():
        folder = folder.parent
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    return {
        "cpu_cores": len(os.sched_getaffinity(0)),
        "gpus": gpus,
        "free_memory_bytes": memory,
        "free_cache_disk_bytes": shutil.disk_usage(folder).free,
        "cache_bytes": held,
        "cache_limit_bytes": limit,
        "ray": ray_address() or "started on this machine",
    }


def _print(facts: dict[str, Any]) -> None:
    console = stdout_console()
    model, fingerprint = facts["model"], facts["fingerprint"]
    console.print(f"study {facts['study']}" + (f", fingerprint {fingerprint}" if fingerprint else ""), markup=False)
    name = f"model {model['name']}" + (f" ({model['pretrained']})" if model["pretrained"] else "")
    shape = f": {model['parameters']:,} parameters, {model['size']} x {model['size']} pixels" if "size" in model else ", not loaded"
    console.print(name + shape, markup=False)
    console.print(_data_table(facts["data"], facts["missing"]))
    for row in facts["data"]:
        if row.get("how") == "streamed":
            console.print(f"{row['set']} is streamed: {row['why']}", markup=False, highlight=False, soft_wrap=True)
    for warning in facts["warnings"]:
        console.print(f"WARNING: {warning}", markup=False, highlight=False)
    table = Table("hyperparameter", "prior", box=box.SIMPLE_HEAD)
    for parameter, prior in facts["search_space"].items():
        table.add_row(parameter, prior.replace("[", "\\["))
    console.print(table)
    lines = [*_search_lines(facts["search"], facts["search_space"]), *_cost_lines(facts["budget"]), *_published_lines(facts)]
    for line in [*lines, _machine_line(facts["resources"])]:
        console.print(line, markup=False, highlight=False)
    if facts["undecoded"]:
        names = ", ".join(facts["undecoded"])
        console.print(
            f"not decoded yet: {names}. A launch decodes first, and then knows the fingerprint, images that cannot be used and images that sets "
            "share; autoft plan --decode does that now",
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip
    if facts["ready"]:
        console.print("ready; nothing was trained")


def _data_table(rows: list[dict[str, Any]], missing: Mapping[str, str]) -> Table:
    """The sets and their sizes; what is not there is marked, and its size is the published one."""
    absent = {field.split(".", 2)[-1] for field in missing}
    table = Table("set", "images", "classes", "smallest class", "largest class", "decoded", "will be", box=box.SIMPLE_HEAD)
    for row in rows:
        images = "?" if row["images"] is None else f"{row['images']:,}"
        if row["per_class"] is None:
            table.add_row(row["set"], f"{images} (missing)" if row["set"] in absent else images, *[""] * 5)
            continue
        present = {name: count for name, count in row["per_class"].items() if count}
        least, most = min(present, key=present.__getitem__), max(present, key=present.__getitem__)
        place = (readable(row["bytes"]), _HOW[row["how"]]) if "how" in row else ("", "")
        table.add_row(row["set"], images, str(len(present)), f"{least}: {present[least]}", f"{most}: {present[most]}", *place)
    return table


def _search_lines(search: Mapping[str, Any], space: Mapping[str, str]) -> list[str]:
    trials, confirm = search["trials"], search["confirm"]
    repeats = f", {trials['repeats']} fine-tunes each" if trials["repeats"] > 1 else ""
    first = [*search["enqueue"], *(f"the best {search['warm_start_trials']} of {name}" for name in search["warm_start_from"])]
    lines = [
        f"trials: {trials['n_trials']} of {trials['steps']} steps x {trials['batch_size']} images{repeats}; sampler {search['sampler']}, "
        f"pruner {search['pruner']}; scored by {search['metric']} on {' and '.join(search['objectives'])}",
        f"tried first, among them: {', '.join(first) or 'nothing'}",
        f"confirmation: the best {confirm['top']}, {confirm['repeats']} times more, {confirm['steps']} steps each"
        if confirm
        else "confirmation: none; the best trial wins",
    ]
    if "layer_lr/BLOCK" in space:
        lines.append("BLOCK: each block of the model; their names are known once it is loaded")
    return lines


def _cost_lines(cost: Mapping[str, Any]) -> list[str]:
    baselines = f"; baselines: {cost['baseline_samples']:,} samples" if cost["baseline_samples"] else ""
    return [
        f"search: {cost['search_samples']:,} training samples and {cost['search_scored_images']:,} scored images, at most; "
        f"confirmation: {cost['confirm_samples']:,} and {cost['confirm_scored_images']:,}",
        f"final fine-tune: {cost['final_samples']:,} samples{baselines}; search / final = {_ratio(cost['search_over_final'])}",
    ]


def _published_lines(facts: Mapping[str, Any]) -> list[str]:
    """A preset's budget beside what its source says."""
    published = facts["published"]
    if published is None:
        return []
    lines = []
    if published["rows_per_image"] > 1:
        lines.append(
            f"an epoch of the released code is {published['rows_per_image']} caption rows an image: its final fine-tune has "
            f"{published['final_samples_by_rows']:,} samples, and search / final = {_ratio(published['search_over_final_by_rows'])}"
        )
    table, said = published["table"], ", ".join(published["published"])
    if published["setting"] is None:
        return [*lines, f"preset {published['preset']}: trials x steps x batch are none of the published ones ({said})"]
    if table is None:
        return [*lines, f"preset {published['preset']}: as published ({published['setting']}); its cost is not published"]
    by_images = f" ({table['by_images']:.0%} by images)" if "by_images" in table else ""
    verdict = "agrees" if published["agrees"] else "does not agree"
    return [
        *lines,
        f"preset {published['preset']}: as published ({published['setting']}), which is {table['search_samples']:,.0f} search and "
        f"{table['final_samples']:,.0f} final samples, search / final = {_ratio(table['search_over_final'])}{by_images}: {verdict}",
    ]


def _ratio(value: float) -> str:
    return f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


def _machine_line(have: Mapping[str, Any]) -> str:
    gpus = ", ".join(have["gpus"]) or "no GPU"
    return (
        f"this machine: {have['cpu_cores']} cores, {gpus}, {have['free_memory_bytes'] / 2**30:.1f} GiB memory free, "
        f"{have['free_cache_disk_bytes'] / 2**30:.0f} GiB disk free; image cache: {readable(have['cache_bytes'])} of "
        f"{readable(have['cache_limit_bytes'])}; Ray: {have['ray']}"
    )


def _class_names(images: Any, names: Sequence[str]) -> list[str]:
    """The names of a set's classes; of a set with classes of its own, the study's that each pools."""
    if images.projection is None:
        return list(names)
    return [" / ".join(names[row] for row in rows) for rows in images.projection]
