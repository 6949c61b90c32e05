"""The command line as argparse sees it, a function for each group of commands; docs/cli.md is printed from it."""

import argparse
import math
import os
from pathlib import Path

from autoft import __version__
from autoft.presets import preset_names

EXIT_CODES = """exit codes:
  0 done    1 a bug in autoft    2 wrong input (flag, study file, data, model)    3 the database    4 the cluster, or a language model
  5 the study exists and differs, or is owned by another process    6 trials cannot run    7 a file or --artifacts cannot be written (disk full, no rights)
  130 Ctrl-C    143 SIGTERM
"""

DEVICES = ("auto", "cpu", "cuda")


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="autoft",
        description="Learn how to fine-tune a foundation model so that it holds up on data it was not tuned on.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"autoft {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for group in (_add_running, _add_preparing, _add_using, _add_studies, _add_worker, _add_logs, _add_database, _add_dashboard, _add_cache, _add_doctor):
        group(commands)
    return parser


def _add_running(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """What trains."""
    launch = _command(commands, "launch", "run a study: search, final fine-tune, WiSE-FT, evaluation, report")
    _add_study(launch)
    launch.add_argument(
        "--detach", action="store_true", help="run it as a job of the cluster at RAY_ADDRESS and return at once; needs AUTOFT_STORAGE_URL_FILE"
    )
    _add_run(launch)
    _add_final_workers(launch)

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
    _add_artifacts(finetune)
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
    _add_final_workers(demo)


def _add_preparing(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """What comes before."""
    init = _command(commands, "init", "write a commented study file to start from, or the study file of a published study")
    init.add_argument("what", nargs="?", metavar="PRESET", help=f"a published study: {', '.join(preset_names())}")
    init.add_argument("file", nargs="?", type=Path, metavar="FILE", help="where to write it (default: study.yaml or PRESET.yaml)")
    init.add_argument("--data-root", type=Path, metavar="DIR", help="of a preset: where its data lie (default: a folder in ./data)")

    plan = _command(commands, "plan", "check a study without training: data, model, search space, budget, free resources")
    _add_study(plan)
    plan.add_argument("--decode", action="store_true", help="decode images that are not in the image cache yet, so that everything is checked")
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


def _add_using(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """What is done with checkpoints."""
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


def _add_studies(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """What looks at studies, and steers them."""
    listing = _command(commands, "list", "list the studies in the database")
    _add_json(listing)
    show = _command(commands, "show", "show a study: its best configuration and its trials")
    show.add_argument("name", help="name of the study")
    _add_json(show)
    status = _command(commands, "status", "say where a study stands and who is running it")
    status.add_argument("name", help="name of the study")
    _add_json(status)

    for verb, text in (
        ("pause", "start no new trials of a study until it is resumed"),
        ("resume", "take a pause back"),
        ("stop", "let a study's running trials end, then end its run"),
        ("cancel", "give up a study's running trials and end its run"),
    ):
        _command(commands, verb, text).add_argument("name", help="name of the study")


def _add_cache(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    cache = _command(commands, "cache", "list what the image cache holds, or empty it")
    cache.add_argument(
        "action", nargs="?", choices=("list", "clear"), default="list", help="clear: remove everything that no process uses (default: list)"
    )
    _add_json(cache)


def _add_doctor(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    doctor = _command(commands, "doctor", "look at everything a study needs on this machine, and say what to do about what is wrong")
    doctor.add_argument("--study", type=Path, metavar="FILE", help="study file: look for its model as well")
    doctor.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="where run folders are (default: ./runs)")
    _add_json(doctor)


def _command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, text: str) -> argparse.ArgumentParser:
    return commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")


def _add_study(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", type=Path, metavar="FILE", help="study file (YAML)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a field: --set search.n_trials=8")


def _add_artifacts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--artifacts", metavar="URL", help="copy the run folder there when it is done: a folder, file:///..., s3://BUCKET/PREFIX")


def _add_database(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    database = _command(commands, "db", "make, migrate or check the tables in the database")
    database.add_argument(
        "action",
        choices=("init", "upgrade", "check"),
        help="init: make Optuna's tables and those of recorded runs; upgrade: migrate those of recorded runs; check: say what is there and what is missing",
    )
    _add_json(database)
    runs = _command(commands, "runs", "list the recorded runs: launches, fine-tunes, and the trainings of comparisons")
    runs.add_argument("name", nargs="?", metavar="NAME", help="of this study only")
    _add_json(runs)


def _add_run(parser: argparse.ArgumentParser, json_text: str = "one JSON object per event on stdout") -> None:
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="where run folders are (default: ./runs)")
    _add_artifacts(parser)
    parser.add_argument("--executor", choices=("ray", "in-process"), default="ray", help="where trials run (default: ray)")
    parser.add_argument("--workers", type=_positive, metavar="N", help="trials at once (default: one per GPU, on CPU one per core)")
    parser.add_argument("--gpus-per-worker", type=_gpus, metavar="X", help="share of a GPU each worker gets (default: 1, if there are GPUs)")
    parser.add_argument(
        "--trials-per-worker",
        type=_count_or_auto,
        default=1,
        metavar="N|auto",
        help="trials that a worker runs as one program, for models too small to fill a device; auto: as many as are fastest there, which is "
        "measured first (default: 1)",
    )
    parser.add_argument("--threads-per-worker", type=_positive, metavar="N", help="CPU threads of a worker (default: cores / workers)")
    parser.add_argument("--device", choices=DEVICES, default="auto", help="where to compute (default: auto, a GPU if there is one)")
    parser.add_argument("--trial-timeout", type=_seconds, metavar="SECONDS", help="give a trial up that takes longer; it runs once more (default: no limit)")
    _add_json(parser, json_text)


def _add_final_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--final-workers",
        type=_positive,
        metavar="N",
        help="workers that share each batch of the final fine-tune, with --threads-per-worker threads each (default: one per GPU, on CPU one with all cores)",
    )
    parser.add_argument(
        "--final-sharded",
        action="store_true",
        help="have those workers share out the model's weights, gradients and optimizer state too (FSDP), for models that do not fit one; "
        "needs at least two of them",
    )


def _add_worker(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    worker = _command(commands, "worker", "offer this machine's cores and GPUs to a Ray cluster, or start one, until a signal comes")
    worker.add_argument("--address", metavar="HOST:PORT", help="head of the cluster to join (default: RAY_ADDRESS)")
    worker.add_argument("--head", action="store_true", help="start a cluster, guarded by a token")
    worker.add_argument("--cpus", type=_count, metavar="N", help="CPU cores to offer (default: all)")
    worker.add_argument("--gpus", type=_count, metavar="N", help="GPUs to offer (default: all that torch sees)")
    worker.add_argument(
        "--token-file", type=Path, metavar="FILE", help="the cluster's token (default: RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token); --head writes a missing one"
    )
    worker.add_argument("--drain", type=_seconds, default=20.0, metavar="SECONDS", help="after a signal, let running trials end for so long (default: 20)")
    worker.add_argument("--port", type=_count, default=6379, metavar="N", help="of a head: where nodes and studies find it; 0: a free one (default: 6379)")
    worker.add_argument(
        "--job-server", default="127.0.0.1:8265", metavar="HOST:PORT", help="of a head: where detached launches are taken (default: 127.0.0.1:8265)"
    )


def _add_logs(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    logs = _command(commands, "logs", "print what a detached launch (launch --detach) has said")
    logs.add_argument("name", help="name of the study")
    logs.add_argument("--follow", action="store_true", help="go on until the launch ends; its exit code becomes this command's")


def _add_json(parser: argparse.ArgumentParser, text: str = "JSON on stdout") -> None:
    parser.add_argument("--json", action="store_true", help=text)


def _add_dashboard(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    dashboard = _command(commands, "dashboard", "serve optuna-dashboard, guarded and read-only, for the studies in the database")
    dashboard.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine only; others need a sign-in)")
    dashboard.add_argument("--port", type=int, default=8080, help="port to listen on (default: 8080)")
    dashboard.add_argument("--allow-edit", action="store_true", help="let visitors change and delete studies (default: read-only)")
    dashboard.add_argument("--require-sign-in", action="store_true", help="ask for a sign-in on this machine too")
    dashboard.add_argument("--allowed-host", action="append", default=[], metavar="NAME", help="a name visitors reach it by, beside this machine's; repeatable")
    dashboard.add_argument("--password-file", type=Path, metavar="FILE", help="users that may sign in: USER:HASH lines, which --make-password writes")
    dashboard.add_argument(
        "--make-password", metavar="USER", help="ask for a password, or read it from stdin, print USER:HASH or set it in --password-file, and end"
    )
    dashboard.add_argument("--proxy", action="append", default=[], metavar="ADDRESS", help="address or network of a reverse proxy to trust; repeatable")
    dashboard.add_argument("--trust-proxy-header", metavar="HEADER", help="header in which --proxy names the user it has signed in: X-Forwarded-User")
    dashboard.add_argument("--artifacts", type=Path, metavar="DIR", help="serve artifacts of studies from this folder, as downloads only")
    dashboard.add_argument("--access-log", action="store_true", help="one line a request on stderr, without query strings")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def _count_or_auto(text: str) -> int | str:
    if text != "auto" and (not text.isdecimal() or int(text) < 1):
        raise argparse.ArgumentTypeError(f"must be auto or a whole number of at least 1, got {text!r}")
    return text if text == "auto" else int(text)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    seconds = float(text)
    if not (seconds > 0 and math.isfinite(seconds)):
        raise argparse.ArgumentTypeError(f"must be more than 0 seconds, got {text}")
    return seconds


def _share(text: str) -> float:
    share = float(text)
    if not (share >= 0 and math.isfinite(share)):
        raise argparse.ArgumentTypeError(f"must be at least 0, got {text}")
    return share


def _gpus(text: str) -> float:
    share = _share(text)
    if share > 1 and not share.is_integer():
        raise argparse.ArgumentTypeError(f"must be a share of one GPU or a whole number of them, got {text}")
    return share
