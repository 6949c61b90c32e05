"""`autoft evaluate` and `autoft predict`."""

import argparse
import csv
import json
import sys
from pathlib import Path
from typing import Any

from autoft.cli.runtime import cache_dir
from autoft.config import load_config
from autoft.data import Split
from autoft.errors import ConfigError, DataError, ModelError


def evaluate(args: argparse.Namespace) -> int:
    """Score a checkpoint on a study's sets."""
    from autoft.cli.progress import make_view
    from autoft.report.table import format_table
    from autoft.stages import all_splits, evaluation_rows
    from autoft.workspace import Workspace

    config = load_config(args.study, args.set)
    known = [name for name in all_splits(config) if name != "train"]
    wanted = args.sets.split(",") if args.sets else known
    unknown = sorted(set(wanted) - set(known))
    if unknown:
        raise ConfigError(f"--sets {','.join(unknown)}: not a set of study {config.study}; its sets are {', '.join(known)}")
    with make_view(config, as_json=False) as view:
        workspace = Workspace.load(config, args.device, cache_dir(), ["train", *wanted], view.decoding)
    workspace.model = _read_checkpoint(args.checkpoint, workspace)
    name = Path(args.checkpoint).name
    splits = {"val_id": Split.VAL_ID, "val_ood": Split.VAL_OOD, **{test: split for test, (split, _) in workspace.data.tests.items()}}
    rows = [row for test in wanted for row in evaluation_rows(workspace, test, splits[test], {"model": name, "seed": 0})]
    found = {"study": config.study, "metric": config.metric, "evaluations": rows}
    print(json.dumps(found, indent=1) if args.json else format_table(found))
    return 0


def _read_checkpoint(checkpoint: str, workspace: Any) -> Any:
    """The classifier a checkpoint argument stands for, on the workspace's device.

    One of our own checkpoints keeps the heads it was saved with and predicts as it did there, whether or not the study has descriptions;
    other weights get the study's heads, and predict by the first.

    Raises:
        ModelError: there is none, or it is for other classes or another architecture.
    """
    from autoft.core_features import read_descriptions
    from autoft.models import build_classifier, load_checkpoint, load_model

    path = Path(checkpoint).resolve()
    data, config = workspace.data, workspace.config
    if (path / "head.safetensors").is_file():
        model, _, info = load_checkpoint(path)
        if info.class_keys != data.classes.keys:
            raise ModelError(
                f"checkpoint {checkpoint} knows the classes {', '.join(info.class_names)}; study {config.study} has {', '.join(data.classes.names)}"
            )
    else:
        if path.is_dir():
            changes: dict[str, str | None] = {"name": f"local-dir:{path}", "pretrained": None}
        elif not path.is_file():
            raise ModelError(f"there is no checkpoint at {checkpoint}")
        elif ":" in config.model.name:
            raise ModelError(f"{checkpoint} is a bare weights file, and model.name = {config.model.name!r} is no architecture; give a folder")
        else:
            changes = {"pretrained": str(path)}
        loaded = load_model(config.model.model_copy(update=changes))
        descriptions = read_descriptions(config.data, data.classes, loaded.tokenizer)
        model = build_classifier(loaded, data.classes.names, config.data.templates, descriptions)
    if _shapes(model) != _shapes(workspace.model):
        raise ModelError(f"checkpoint {checkpoint} has another architecture than model.name = {config.model.name!r}")
    return model.to(workspace.device)


def _shapes(model: Any) -> dict[str, Any]:
    """The shapes of a classifier's weights, but for the head of descriptions, which not every study has."""
    return {name: tensor.shape for name, tensor in model.state_dict().items() if not name.startswith("core_head.")}


def predict(args: argparse.Namespace) -> int:
    """Write class probabilities of images to stdout."""
    import torch

    from autoft.data import PixelSpec, read_image
    from autoft.data.transforms import eval_transform
    from autoft.models import load_checkpoint
    from autoft.models.load import resolve_device

    missing = [str(path) for path in args.images if not path.is_file()]
    if missing:
        raise DataError(f"no image at {', '.join(missing[:5])}")
    device = resolve_device(args.device)
    model, loaded, info = load_checkpoint(args.checkpoint.resolve())
    pixels = loaded.preprocess
    spec = PixelSpec(pixels.size, pixels.interpolation, pixels.resize_mode)
    model.to(device).eval()
    table = csv.writer(sys.stdout, lineterminator="\n")
    if not args.json:
        table.writerow(["image", "prediction", *info.class_names])
    for path in args.images:
        image = torch.from_numpy(read_image(path, spec))[None].to(device)
        with torch.no_grad():
            probabilities = model(eval_transform(image, pixels.mean, pixels.std)).softmax(dim=1)[0].tolist()
        prediction = info.class_names[probabilities.index(max(probabilities))]
        if args.json:
            by_class = dict(zip(info.class_names, probabilities, strict=True))
            print(json.dumps({"image": str(path), "prediction": prediction, "probabilities": by_class}))
        else:
            table.writerow([path, prediction, *(f"{probability:.6f}" for probability in probabilities)])
    return 0
