"""`autoft`: parse the command line, run one command, turn errors into one message and an exit code.

Commands import what they need when they run, so that `autoft --help` is quick.
"""

import argparse
import importlib
import logging
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from autoft import __version__
from autoft.errors import AutoFTError
from autoft.presets import preset_names

EXIT_CODES = """exit codes:
  0 done    1 a bug in autoft    2 wrong input (flag, study file, data, model)    3 the database    4 the cluster, or a language model
  5 the study exists and differs, or is owned by another process    6 trials cannot run    130 Ctrl-C    143 SIGTERM
"""

DEVICES = ("auto", "cpu", "cuda")
COMMANDS = {
    "launch": ("launch", "launch"),
    "demo": ("launch", "demo"),
    "finetune": ("finetune", "finetune"),
    "compare": ("compare", "compare"),
    "init": ("starter", "init"),
    "plan": ("plan", "plan"),
    "describe": ("describe", "describe"),
    "evaluate": ("evaluate", "evaluate"),
    "predict": ("evaluate", "predict"),
    "interpolate": ("interpolate", "interpolate"),
    "list": ("studies", "list_"),
    "show": ("studies", "show"),
    "status": ("studies", "status"),
    "dashboard": ("dashboard", "dashboard"),
}


def build_parser() -> argparse.ArgumentParser:
    """The whole command line; docs/cli.md is printed from it."""
    parser = argparse.ArgumentParser(
        prog="autoft",
        description="Learn how to fine-tune a foundation model so that it holds up on data it was not tuned on.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"autoft {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    launch = _command(commands, "launch", "run a study: search, final fine-tune, WiSE-FT, evaluation, report")
    _add_study(launch)
    _add_run(launch)

    finetune = _command(commands, "finetune", "one full fine-tune with given hyperparameters, WiSE-FT and evaluation; no search")
    _add_study(finetune)
    finetune.add_argument(
        "--hyperparameters",
        required=True,
        metavar="NAME|FILE",
        help="a method (finetune, flyp, l2sp, linear_probe, lp_ft, drm, ftp, tpgm, spd, saft, core_tuning, ldifs, car_ft, lipsum_ft, clipood, "
        "published/iwildcam, published/fmow, published/imagenet); or a JSON file: a run's summary.json, or lr, weight_decay, "
        "loss_weights, seed and what else the method needs",
    )
    finetune.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="where run folders are (default: ./runs)")
    finetune.add_argument("--device", choices=DEVICES, default="auto", help="where to compute (default: auto, a GPU if there is one)")
    finetune.add_argument("--threads", type=_positive, default=_cores(), metavar="N", help="CPU threads (default: all cores)")
    _add_json(finetune, "one JSON object per event on stdout")

    compare = _command(commands, "compare", "tune, train and score many methods on one study, into one table and one page")
    _add_study(compare)
    compare.add_argument(
        "--methods",
        metavar="A,B",
        help="which (default: all): zero_shot, linear_probe, finetune, lp_ft, l2sp, flyp, wise_ft, drm, ftp, tpgm, spd, saft, core_tuning, ldifs, "
        "car_ft, lipsum_ft, clipood, soup, autoft, autoft_extended",
    )
    compare.add_argument("--seeds", type=_positive, default=5, metavar="N", help="full trainings of every method, seeds 0 to N-1 (default: 5)")
    compare.add_argument("--evaluations", type=_positive, default=8, metavar="N", help="validation evaluations each method is tuned with (default: 8)")
    compare.add_argument("--keep-checkpoints", action="store_true", help="keep every training's weights (default: they go once they are scored)")
    _add_run(compare, "a JSON array of every evaluation on stdout, and nothing else")

    demo = _command(commands, "demo", "run the whole thing on a small built-in study, in a few minutes and without a network")
    demo.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a field of the demo's study file")
    _add_run(demo)

    init = _command(commands, "init", "write a commented study file to start from, or the study file of a published study")
    init.add_argument("what", nargs="?", metavar="PRESET", help=f"a published study: {', '.join(preset_names())}")
    init.add_argument("file", nargs="?", type=Path, metavar="FILE", help="where to write it (default: study.yaml or PRESET.yaml)")
    init.add_argument("--data-root", type=Path, metavar="DIR", help="of a preset: where its data lie (default: a folder in ./data)")

    plan = _command(commands, "plan", "check a study without training: data, model, search space, budget, free resources")
    _add_study(plan)
    _add_json(plan)

    describe = _command(commands, "describe", "write descriptions of a study's classes (data.descriptions), with a language model or from a file")
    _add_study(describe)
    describe.add_argument(
        "--out",
        type=Path,
        default=Path("descriptions.json"),
        metavar="FILE",
        help="where to write them (default: ./descriptions.json); a class that is in the file already is not asked for again",
    )
    describe.add_argument(
        "--from", dest="source", type=Path, metavar="FILE", help="take them from this JSON file and check them; no language model is asked"
    )
    describe.add_argument(
        "--model",
        metavar="NAME",
        help="language model at the OpenAI-compatible endpoint OPENAI_BASE_URL, whose key is OPENAI_API_KEY (default: its only model)",
    )
    describe.add_argument("--sentences", type=_positive, metavar="N", help="sentences a class (default: 1)")
    describe.add_argument("--price-in", type=_share, metavar="X", help="price of a million prompt tokens, to show the cost")
    describe.add_argument("--price-out", type=_share, metavar="X", help="price of a million completion tokens")
    _add_json(describe)

    evaluate = _command(commands, "evaluate", "score a checkpoint on a study's sets")
    evaluate.add_argument("checkpoint", help="a checkpoint folder, any open_clip folder, or a weights file of the study's model")
    _add_study(evaluate)
    evaluate.add_argument("--sets", metavar="A,B", help="which sets (default: val_id, val_ood and every test set)")
    evaluate.add_argument("--device", choices=DEVICES, default="auto", help="where to compute (default: auto, a GPU if there is one)")
    _add_json(evaluate)

    predict = _command(commands, "predict", "write class probabilities of images as CSV")
    predict.add_argument("checkpoint", type=Path, help="a checkpoint folder")
    predict.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="image files")
    predict.add_argument("--device", choices=DEVICES, default="auto", help="where to compute (default: auto, a GPU if there is one)")
    _add_json(predict, "one JSON object an image instead of CSV")

    interpolate = _command(commands, "interpolate", "write models between two checkpoints (WiSE-FT), and score them on validation data")
    interpolate.add_argument("zero_shot", type=Path, metavar="A", help="alpha 0: a checkpoint folder; with --study also any open_clip folder")
    interpolate.add_argument("fine_tuned", type=Path, metavar="B", help="alpha 1: a checkpoint folder")
    interpolate.add_argument("--alpha", type=float, nargs="+", default=[0.5], metavar="X", help="mixing coefficients in [0, 1] (default: 0.5)")
    interpolate.add_argument(
        "--study", type=Path, metavar="FILE", help="study file: score on val_id and val_ood, compute BatchNorm statistics again, obey wise_ft"
    )
    interpolate.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a field of the study file")
    interpolate.add_argument(
        "--out", type=Path, default=Path("interpolated"), metavar="FOLDER", help="gets one checkpoint folder an alpha (default: ./interpolated)"
    )
    interpolate.add_argument("--device", choices=DEVICES, default="auto", help="where to compute (default: auto, a GPU if there is one)")
    _add_json(interpolate)

    listing = _command(commands, "list", "list the studies in the database")
    _add_json(listing)
    show = _command(commands, "show", "show a study: its best configuration and its trials")
    show.add_argument("name", help="name of the study")
    _add_json(show)
    status = _command(commands, "status", "say where a study stands and who is running it")
    status.add_argument("name", help="name of the study")
    _add_json(status)

    dashboard = _command(commands, "dashboard", "serve optuna-dashboard for the studies in the database")
    dashboard.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine only)")
    dashboard.add_argument("--port", type=int, default=8080, help="port to listen on (default: 8080)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    args = build_parser().parse_args(argv)
    _configure_logging()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported; see docs/adr/0006-passive-waiting.md
    module, function = COMMANDS[args.command]
    try:
        return int(getattr(importlib.import_module(f"autoft.cli.{module}"), function)(args) or 0)
    except AutoFTError as error:
        print(f"autoft {args.command}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"autoft {args.command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


class _ToStderr(logging.Handler):
    """Prints to whatever stderr is at the time, so that lines go above a live view."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


def _configure_logging() -> None:
    """Warnings of our own on stderr; of other libraries, errors."""
    handler = _ToStderr()
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.ERROR, handlers=[handler])
    for ours in ("autoft", "workers", "storage"):
        logging.getLogger(ours).setLevel(logging.WARNING)
    logging.disable(logging.INFO)  # libraries that set up a logger of their own when they are imported, such as Optuna


def _command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, text: str) -> argparse.ArgumentParser:
    return commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")


def _add_study(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", type=Path, metavar="FILE", help="study file (YAML)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a field: --set search.n_trials=8")


def _add_run(parser: argparse.ArgumentParser, json_text: str = "one JSON object per event on stdout") -> None:
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="where run folders are (default: ./runs)")
    parser.add_argument("--executor", choices=("ray", "in-process"), default="ray", help="where trials run (default: ray)")
    parser.add_argument("--workers", type=_positive, metavar="N", help="trials at once (default: one per GPU, on CPU one per core)")
    parser.add_argument("--gpus-per-worker", type=_share, metavar="X", help="share of a GPU each worker gets (default: 1, if there are GPUs)")
    parser.add_argument("--threads-per-worker", type=_positive, metavar="N", help="CPU threads of a worker (default: cores / workers)")
    parser.add_argument("--device", choices=DEVICES, default="auto", help="where to compute (default: auto, a GPU if there is one)")
    _add_json(parser, json_text)


def _add_json(parser: argparse.ArgumentParser, text: str = "JSON on stdout") -> None:
    parser.add_argument("--json", action="store_true", help=text)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def _share(text: str) -> float:
    share = float(text)
    if not (share >= 0 and math.isfinite(share)):
        raise argparse.ArgumentTypeError(f"must be at least 0, got {text}")
    return share


if __name__ == "__main__":
    sys.exit(main())
