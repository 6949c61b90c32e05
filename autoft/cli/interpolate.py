"""`autoft interpolate`: models between two checkpoints, each written as a checkpoint (WiSE-FT, Wortsman et al. 2022)."""

import argparse
import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from autoft.cli.runtime import cache_dir
from autoft.config import StudyConfig, load_config
from autoft.errors import ConfigError, ModelError

logger = logging.getLogger(__name__)
Row = dict[str, Any]


def interpolate(args: argparse.Namespace) -> int:
    """Write a checkpoint for each alpha; with a study, score it too."""
    for alpha in args.alpha:
        if not 0 <= alpha <= 1:
            raise ConfigError(f"--alpha {alpha:g}: must lie in [0, 1]; 0 is {args.zero_shot}, 1 is {args.fine_tuned}")
    if args.set and args.study is None:
        raise ConfigError(f"--set {args.set[0]} changes a study file, and there is no --study")
    config = load_config(args.study, args.set) if args.study else None
    folders = {alpha: _folder(args, alpha) for alpha in sorted(set(args.alpha))}
    rows = _as_they_are(args, folders) if config is None else _in_study(args, config, folders)
    metric = config.metric if config else None
    print(json.dumps({"metric": metric, "curve": rows}, indent=1) if args.json else _table(rows, metric))
    return 0


def _folder(args: argparse.Namespace, alpha: float) -> Path:
    """Where the model of an alpha goes. Raises ConfigError if something else is there."""
    folder: Path = args.out / f"alpha-{alpha:.12g}"
    if folder.resolve() in (args.zero_shot.resolve(), args.fine_tuned.resolve()):
        raise ConfigError(f"--out {args.out}: {folder} is one of the two models; choose another folder")
    if folder.exists() and not (folder / "autoft.json").is_file():
        raise ConfigError(f"--out {args.out}: {folder} exists and is no checkpoint of this program; choose another folder")
    return folder


def _as_they_are(args: argparse.Namespace, folders: Mapping[float, Path]) -> list[Row]:
    """Mix two checkpoints; nothing is scored. Raises ModelError if they are not the same model for the same classes."""
    from autoft.models import interpolate as interpolated
    from autoft.models import load_checkpoint

    if (args.zero_shot / "open_clip_config.json").is_file() and not (args.zero_shot / "head.safetensors").is_file():
        raise ModelError(f"{args.zero_shot} has no classifier (head.safetensors); with --study FILE its zero-shot classifier is built")
    start, loaded_start, info_start = load_checkpoint(args.zero_shot.resolve())
    end, loaded, info = load_checkpoint(args.fine_tuned.resolve())
    where = f"{args.zero_shot} and {args.fine_tuned}"
    if (info_start.class_keys, info_start.class_names) != (info.class_keys, info.class_names):
        raise ModelError(f"{where} know different classes: {', '.join(info_start.class_names)}; {', '.join(info.class_names)}")
    _check_same_model(where, loaded_start, loaded)
    _check_same_heads(where, start, end)
    zero_shot, fine_tuned = start.state_dict(), end.state_dict()
    averaged = _averages_statistics(zero_shot, fine_tuned) and any(0 < alpha < 1 for alpha in folders)
    if averaged:
        logger.warning("BatchNorm statistics are averaged, which suits no model between the two; with --study FILE they are computed again")
    made = _provenance(zero_shot, fine_tuned, "uniform", "averaged" if averaged else None)
    for alpha, folder in folders.items():
        _save(folder, interpolated(zero_shot, fine_tuned, alpha), loaded, info, alpha, {}, made)
    return [{"alpha": alpha, "checkpoint": str(folder)} for alpha, folder in folders.items()]


def _in_study(args: argparse.Namespace, config: StudyConfig, folders: Mapping[float, Path]) -> list[Row]:
    """Mix as the study's `wise_ft` section says, and score on its validation sets."""
    from autoft.cli.evaluate import _read_checkpoint
    from autoft.cli.progress import make_view
    from autoft.config.sections import WiseFTConfig
    from autoft.models import load_checkpoint
    from autoft.models.state import snapshot
    from autoft.wise_ft import interpolator
    from autoft.workspace import Workspace

    _, loaded, info = load_checkpoint(args.fine_tuned.resolve())  # its mistakes are told before any image is read
    with make_view(config, as_json=False) as view:
        workspace = Workspace.load(config, args.device, cache_dir(), ["train", "val_id", "val_ood"], view.decoding)
    start, end = (_read_checkpoint(str(path), workspace) for path in (args.zero_shot, args.fine_tuned))
    _check_same_heads(f"{args.zero_shot} and {args.fine_tuned}", start, end)
    zero_shot, fine_tuned = (snapshot(model) for model in (start, end))
    workspace.model = end  # which predicts as it was trained to, with one head or two
    _check_same_preprocessing(f"study {config.study} and {args.fine_tuned}", workspace.loaded, loaded)
    section = config.wise_ft or WiseFTConfig()
    again = section.reestimate_batch_norm and config.model.batch_norm == "train"
    statistics = ("computed again" if again else "averaged") if _averages_statistics(zero_shot, fine_tuned) else None
    made = _provenance(zero_shot, fine_tuned, section.weighting, statistics)
    place = interpolator(workspace, zero_shot, fine_tuned, section)
    rows = []
    for alpha, folder in folders.items():
        place(alpha)
        scores = {name: workspace.score(name) for name in ("val_id", "val_ood")}
        state = snapshot(workspace.model)
        _save(folder, state, loaded, info, alpha, scores, made)
        rows.append({"alpha": alpha, **scores, "checkpoint": str(folder)})
    return rows


def _check_same_model(where: str, first: Any, second: Any) -> None:
    one, two = (loaded.open_clip_config["model_cfg"] for loaded in (first, second))
    differing = [name for name in sorted(one.keys() | two.keys()) if one.get(name) != two.get(name)]
    if differing:
        name = differing[0]
        raise ModelError(f"{where} have different architectures: {name} is {one.get(name)} in one and {two.get(name)} in the other")
    _check_same_preprocessing(where, first, second)


def _check_same_heads(where: str, first: Any, second: Any) -> None:
    if (first.core_head is None) != (second.core_head is None):
        raise ModelError(f"{where}: one has a second head, of descriptions of the classes, and the other has none")


def _check_same_preprocessing(where: str, first: Any, second: Any) -> None:
    if first.preprocess != second.preprocess:
        raise ModelError(f"{where} prepare images differently: {first.preprocess} and {second.preprocess}")


def _averages_statistics(zero_shot: Mapping[str, Any], fine_tuned: Mapping[str, Any]) -> bool:
    """Whether the ends have BatchNorm statistics, and different ones."""
    names = [name for name in zero_shot if name.endswith((".running_mean", ".running_var"))]
    return any(bool((zero_shot[name] != fine_tuned[name]).any()) for name in names)


def _provenance(zero_shot: Mapping[str, Any], fine_tuned: Mapping[str, Any], weighting: str, batch_norm: str | None) -> Row:
    """What an interpolated checkpoint records of its making, beside alpha."""
    from autoft.models import state_digest

    made = {"zero_shot": state_digest(zero_shot), "fine_tuned": state_digest(fine_tuned), "weighting": weighting}
    return made | ({"batch_norm": batch_norm} if batch_norm else {})


def _save(
    folder: Path, state: dict[str, Any], loaded: Any, info: Any, alpha: float, scores: Mapping[str, float], made: Mapping[str, Any]
) -> None:
    from autoft.models import save_checkpoint

    kept = {name: value for name, value in made.items() if name != "batch_norm" or 0 < alpha < 1}  # the ends are as they were
    recorded = {**info.hyperparameters, "interpolation": kept}
    save_checkpoint(folder, state, loaded, replace(info, method="interpolate", alpha=alpha, scores=dict(scores), hyperparameters=recorded))


def _table(rows: list[Row], metric: str | None) -> str:
    """One line an alpha."""
    from autoft.report.metrics import axis_title, format_value

    if metric is None:
        return "\n".join(f"alpha {row['alpha']:<6g} {row['checkpoint']}" for row in rows)
    lines = [f"{axis_title(metric)}", f"{'alpha':<8}{'VAL_ID':<10}{'VAL_OOD':<10}checkpoint"]
    for row in rows:
        scores = "".join(f"{format_value(row[name], metric):<10}" for name in ("val_id", "val_ood"))
        lines.append(f"{row['alpha']:<8g}{scores}{row['checkpoint']}")
    return "\n".join(lines)
