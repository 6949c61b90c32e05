"""The coordinator before 1 to 4,096 workers and histories of 100 to 10,000 trials: `make bench-scale`, or `python -m benches.scale`.

The real coordinator, against a real Postgres (the embedded one, in a folder of its own), gives trials to workers that are simulated, on a clock that is
simulated too; what the coordinator does between two polls advances that clock by the wall time it took. A history is built once and cloned as a
template database for each case; each case runs in a process of its own. It begins as a restarted coordinator does in the middle of a study: every
worker has a trial, each as far as chance has it. Figures of a case:

    idle_share                          worker-seconds without a trial over worker-seconds, until the last of the case's trials is handed out
    coordinator_share                   how much of the time the coordinator is busy to keep up; above 1 it cannot, and workers wait for it
    ask, report, tell _seconds          latency: median and 95th percentile; ask with the suggestions, report with the pruner's decision
    coordinator_[cpu_]seconds_per_trial everything between two polls, and the process's CPU time
    database_rows, _bytes, _connections of the case's database at its end
    memory_mib                          of the coordinator at the end; memory_of_history_mib: what was added since before the study was opened
    start_seconds                       from opening the study to the first poll: history read, running trials adopted

The study is TPE with Hyperband and four reports a trial, over the paper's space of nine loss weights, rate, decay and seed.
"""

import argparse
import json
import multiprocessing
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy

from autoft.config import StudyConfig
from autoft.config.reading import parse_config
from autoft.pipeline import package_versions
from benches.figures import HERE, hardware, write
from benches.scale.measure import Case, ask_report_tell, fill, run_case
from storage import StorageURL, embedded_url, leave_embedded
from storage.tables import engine_of

IDLE = Case(512, 60.0, 3000, 640)
LONGEST = Case(64, 60.0, 10_000, 200)
CASES = [
    IDLE,
    LONGEST,
    *(Case(workers, 60.0, 3000, 150) for workers in (1, 8, 64)),
    Case(4096, 60.0, 3000, 300),
    *(Case(workers, 1.0, 1000, 150) for workers in (1, 8, 64)),
    Case(512, 600.0, 3000, 150),
    Case(4096, 600.0, 3000, 300),
    *(Case(64, 60.0, history, 200) for history in (100, 1000)),
]
SMALL = [Case(2, 1.0, 30, 6), Case(4, 60.0, 30, 8)]
STUDY_FILE: dict[str, Any] = {
    "study": "scale",
    "model": {"name": "ViT-B-16"},
    "data": {name: {"layout": "folder", "path": name} for name in ("train", "val_id", "val_ood")}
    | {"classnames": ["a", "b"], "test_id": {"a": {"layout": "folder", "path": "test_a"}}, "test_ood": {"b": {"layout": "folder", "path": "test_b"}}},
    "search_space": {"preset": "paper", "base_lr": 1e-4},
    "search": {"n_trials": 1, "sampler": "tpe", "pruner": "hyperband", "seed": 0},
    "trial": {"steps": 16, "batch_size": 64},
    "final": {"epochs": 1, "batch_size": 64},
}


def main() -> None:
    """Run the cases and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="WORKERS,SECONDS,FINISHED", help="these cases; the record keeps the others")
    parser.add_argument("--note", default="", help="what else is to be known of this run, kept in the record")
    parser.add_argument("--dry-run", action="store_true", help="small cases, printed; nothing is written")
    args = parser.parse_args()
    cases = SMALL if args.dry_run else [case for case in CASES if not args.only or _key(case) in args.only]
    record: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "hardware": hardware(), "versions": package_versions(), "note": args.note, "figures": {}}
    folder = Path(tempfile.mkdtemp(prefix="autoft-scale-"))
    folder.chmod(0o755)  # the database's user passes through
    try:
        for case, figure in measure(cases, folder):
            record["figures"][case.name] = figure
            print(case.name, json.dumps(figure, indent=1), flush=True)
            if not args.dry_run:
                write(record, "scale", named(record["figures"]))
    finally:
        leave_embedded(folder / "home")
        shutil.rmtree(folder, ignore_errors=True)
    print(table(record["figures"]))


def measure(cases: list[Case], folder: Path) -> Any:
    """Yield every case with its figures."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    config = study_config()
    url = embedded_url(folder / "home")
    for number, case in enumerate(cases):
        template, name = f"history_{case.history}", f"case_{number}"
        if not _has_database(url, template):
            _execute(url, f"CREATE DATABASE {template}")
            _apart(fill, _database(url, template), config, case.history)
        _execute(url, f"CREATE DATABASE {name} TEMPLATE {template}")
        yield case, _apart(run_case, case, _database(url, name), config, folder / name)
        _execute(url, f"DROP DATABASE {name} WITH (FORCE)")


def study_config() -> StudyConfig:
    """The study that is simulated; its data need not be there."""
    return parse_config(STUDY_FILE, base=HERE, source="benches/scale")


def table(figures: dict[str, dict[str, Any]]) -> str:
    """The figures as a Markdown table; times in milliseconds, median / 95th percentile."""
    lines = ["| case | idle | coordinator busy | ask | report | tell | CPU a trial | statements | memory |", "|---|---|---|---|---|---|---|---|---|"]
    for name, figure in figures.items():
        times = [f"{1000 * figure[f'{kind}_seconds']['median']:.0f} / {1000 * figure[f'{kind}_seconds']['p95']:.0f}" for kind in ("ask", "report", "tell")]
        cells = [f"{figure['idle_share']:.2%}", f"{figure['coordinator_share']:.2f}", *times, f"{1000 * figure['coordinator_cpu_seconds_per_trial']:.0f}"]
        lines.append(f"| {name} | {' | '.join(cells)} | {figure['statements_per_trial']:.0f} | {figure['memory_mib']:.0f} MiB |")
    return "\n".join(lines)


def named(figures: dict[str, dict[str, Any]]) -> dict[str, float]:
    """The figures of latest.json among those measured."""
    found: dict[str, float] = {}
    if IDLE.name in figures:
        found["idle_512_workers"] = round(figures[IDLE.name]["idle_share"], 4)
    if LONGEST.name in figures:
        found["ask_tell_seconds_10000"] = round(ask_report_tell(figures[LONGEST.name]), 4)
    return found


def _key(case: Case) -> str:
    return f"{case.workers},{case.trial_seconds:g},{case.history}"


def _apart(call: Any, *args: Any) -> Any:
    """Call in a process of its own, forked so that it starts at once."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def work() -> None:
        sender.send(call(*args))

    process = context.Process(target=work)
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        raise SystemExit(f"{call.__name__} failed in its process; its error is above") from None
    finally:
        process.join()


def _database(url: StorageURL, name: str) -> StorageURL:
    return StorageURL(url.sqlalchemy.set(database=name))


def _execute(url: StorageURL, statement: str) -> None:
    with engine_of(url) as engine, engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sqlalchemy.text(statement))


def _has_database(url: StorageURL, name: str) -> bool:
    with engine_of(url) as engine, engine.connect() as connection:
        return bool(connection.scalar(sqlalchemy.text("SELECT count(*) FROM pg_database WHERE datname = :name"), {"name": name}))


if __name__ == "__main__":
    main()
