"""`autoft plan`: check everything that can be checked without training, and say what the study will cost."""

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from autoft.cli.progress import make_view, stdout_console
from autoft.cli.runtime import cache_dir, ray_address
from autoft.config import StudyConfig, load_config


def plan(args: argparse.Namespace) -> int:
    """Validate a study and print its plan; trains nothing."""
    from autoft.pipeline import prepare

    config = load_config(args.study, args.set)
    with make_view(config, as_json=False) as view:
        inputs = prepare(config, cache_dir(), view.decoding)
    facts = {
        "study": config.study,
        "fingerprint": inputs.fingerprint,
        "model": {"name": config.model.name, "parameters": sum(p.numel() for p in inputs.loaded.clip.parameters()), "size": inputs.loaded.preprocess.size},
        "data": _data(inputs),
        "search_space": _space(config),
        "budget": budget(config, len(inputs.data.train), len(inputs.data.val_ood)),
        "resources": _resources(Path(cache_dir())),
    }
    if args.json:
        print(json.dumps(facts, indent=1))
    else:
        _print(facts)
    return 0


def budget(config: StudyConfig, train_examples: int, val_ood_examples: int) -> dict[str, Any]:
    """What a study costs in images.

    Samples are images in a forward and backward pass; scored images in a forward pass only. Pruning makes the search cheaper than
    this, by how much is not known in advance.
    """
    from autoft.trial import report_steps

    trial, final = config.trial, config.final
    batch = min(final.batch_size, train_examples)
    search = config.search.n_trials * trial.steps * min(trial.batch_size, train_examples)
    full = final.epochs * (train_examples // batch) * batch
    return {
        "search_samples": search,
        "search_scored_images": config.search.n_trials * len(report_steps(config)) * val_ood_examples,
        "final_samples": full,
        "baseline_samples": full * len(config.evaluate.baselines),
        "search_over_final": search / full,
    }


def _data(inputs: Any) -> list[dict[str, Any]]:
    data = inputs.data
    sets = {"train": data.train, "val_id": data.val_id, "val_ood": data.val_ood, **{name: images for name, (_, images) in data.tests.items()}}
    names = data.classes.names
    return [
        {"set": name, "images": len(images), "per_class": dict(zip(names, map(int, images.class_counts()), strict=True))}
        for name, images in sets.items()
    ]


def _space(config: StudyConfig) -> dict[str, str]:
    space = config.search_space
    low, high = space.lr_factor
    return {
        "lr": f"log-uniform [{low * space.base_lr:g}, {high * space.base_lr:g}]",
        "weight_decay": f"uniform [{space.weight_decay[0]:g}, {space.weight_decay[1]:g}]",
        **{f"loss_weight/{term}": f"log-uniform [{space.loss_weight[0]:g}, {space.loss_weight[1]:g}]" for term in space.terms},
        "seed": f"integer [{space.seed[0]}, {space.seed[1]}]",
    }


def _resources(folder: Path) -> dict[str, Any]:
    import torch

    while not folder.exists():
        folder = folder.parent
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    return {
        "cpu_cores": len(os.sched_getaffinity(0)),
        "gpus": gpus,
        "free_memory_bytes": memory,
        "free_cache_disk_bytes": shutil.disk_usage(folder).free,
        "ray": ray_address() or "started on this machine",
    }


def _print(facts: dict[str, Any]) -> None:
    console = stdout_console()
    model, cost, have = facts["model"], facts["budget"], facts["resources"]
    console.print(f"study {facts['study']}, fingerprint {facts['fingerprint']}", markup=False)
    console.print(f"model {model['name']}: {model['parameters']:,} parameters, {model['size']} x {model['size']} pixels", markup=False)
    table = Table("set", "images", "classes", "smallest class", "largest class", box=box.SIMPLE_HEAD)
    for row in facts["data"]:
        present = {name: count for name, count in row["per_class"].items() if count}
        least, most = min(present, key=present.__getitem__), max(present, key=present.__getitem__)
        table.add_row(row["set"], f"{row['images']:,}", str(len(present)), f"{least}: {present[least]}", f"{most}: {present[most]}")
    console.print(table)
    table = Table("hyperparameter", "prior", box=box.SIMPLE_HEAD)
    for name, prior in facts["search_space"].items():
        table.add_row(name, prior.replace("[", "\\["))
    console.print(table)
    console.print(
        f"search: {cost['search_samples']:,} training samples and {cost['search_scored_images']:,} scored images, at most; "
        f"final fine-tune: {cost['final_samples']:,} samples; search / final = {cost['search_over_final']:.2f}"
    )
    gpus = ", ".join(have["gpus"]) or "no GPU"
    console.print(
        f"this machine: {have['cpu_cores']} cores, {gpus}, {have['free_memory_bytes'] / 2**30:.1f} GiB memory free, "
        f"{have['free_cache_disk_bytes'] / 2**30:.0f} GiB disk free for the image cache; Ray: {have['ray']}"
    )
    console.print("ready; nothing was trained")
