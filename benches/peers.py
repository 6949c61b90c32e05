"""What the service saves against what people write around Optuna or Ray Tune: `make bench-peers`.

The peers are the programs in ../shared/peers, run unchanged (plain Optuna with two threads; Ray Tune with OptunaSearch and two one-core
trials at a time), each in a process of its own, on the same model, images, steps, batch, search space and evaluation as the service,
which runs on a local Ray with two one-thread workers, once without pruning and once with the pruner of its study file. All of them take
turns on one machine.

    trials_vs_PEER                    trials per hour of the service without pruning / of the peer
    time_to_score_vs_PEER             the peer's seconds / the service's seconds to the same confirmed score, as the study file has it
    time_to_score_unpruned_vs_PEER    the same without pruning

The confirmed score of a configuration is the mean of `CONFIRM` runs with fresh seeds by the peers' own `trial.run`, for everybody; a
system's confirmed score at a moment is that of the trial that leads at this moment. "The same" is what the peer's leader has when the
peer is done. Start-up counts on both sides (imports, a cluster, and of the service the database and decoding). The peers' samplers have
seed 0 whatever the round; the service's seed is the round's.
"""

import argparse
import json
import os
import runpy
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from benches.figures import HERE, hardware, spread, write

SHARED = HERE.parents[1] / "shared"
PEERS = {"optuna": "plain_optuna.py", "ray_tune": "ray_tune.py"}
# The service's names of the peers' parameters.
TERMS = {
    "hinge": "hinge",
    "entropy": "entropy",
    "dcm": "confidence_minimization",
    "flyp": "contrastive",
    "l1zero": "l1_zero",
    "l2zero": "l2_zero",
    "l1init": "l1_init",
    "l2init": "l2_init",
}
CONFIRM = 3
SERVICES = {"service": "none", "service_pruned": "hyperband"}  # the pruner of each; the second is the default


@dataclass(frozen=True)
class Ended:
    """A trial: seconds from the program's start to its end, its score, and its configuration in the peers' names."""

    seconds: float
    score: float
    configuration: Mapping[str, float]


@dataclass(frozen=True)
class Measured:
    """One run of a system: its complete trials in the order in which they ended, seconds in all, peak memory of its processes, and how many trials it ran."""

    trials: Sequence[Ended]
    seconds: float
    memory_bytes: int
    ran: int

    def leaders(self) -> list[Ended]:
        """The trials that led when they ended."""
        found: list[Ended] = []
        for trial in self.trials:
            if not found or trial.score > found[-1].score:
                found.append(trial)
        return found


def main() -> None:
    """Run every system in turn, once a round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="rounds, each with a seed of its own (default: 5)")
    parser.add_argument("--trials", type=int, default=20, help="trials of each system in a round (default: 20)")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--dry-run", action="store_true", help="print the figures and write nothing")
    parser.add_argument("--peer", metavar="NAME", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer is not None:
        return _run_peer(args.peer, args.trials, args.steps)
    confirmed, rounds = Confirmed(args.steps), list[dict[str, Any]]()
    with tempfile.TemporaryDirectory(prefix="autoft-bench-", dir="/tmp") as folder:
        for seed in range(args.rounds):
            rounds.append(_round(Path(folder), seed, args.trials, args.steps, confirmed))
            figures = summarise(rounds)
            if not args.dry_run:
                _write(figures, rounds, args)  # after every round: the whole takes most of an hour
    for name, figure in figures.items():
        print(name, json.dumps(figure, indent=1))


def _write(figures: Mapping[str, Any], rounds: Sequence[Mapping[str, Any]], args: argparse.Namespace) -> None:
    setting = {"trials": args.trials, "steps": args.steps, "batch_size": 64, "confirm_runs": CONFIRM, "data": "PACS: photo to art painting"}
    record = {"date": time.strftime("%Y-%m-%d"), "hardware": hardware(), "versions": versions(), "setting": setting, "figures": figures}
    named = {name: figure["value"] for name, figure in figures.items() if figure["value"] is not None}
    write({**record, "rounds": rounds}, "peers", named)


def versions() -> dict[str, str]:
    """Of the packages that matter here."""
    from autoft.pipeline import package_versions

    return dict(package_versions())


def _round(folder: Path, seed: int, trials: int, steps: int, confirmed: "Confirmed") -> dict[str, Any]:
    """Every system once; its trials and its leaders' confirmed scores."""
    systems: dict[str, Callable[[], Measured]] = {
        **{name: (lambda name=name: measure_service(folder / f"{name}-{seed}", seed, trials, steps, SERVICES[name])) for name in SERVICES},  # type: ignore[misc]
        **{peer: (lambda peer=peer: measure_peer(peer, folder, trials, steps)) for peer in PEERS},  # type: ignore[misc]
    }
    turn = list(systems)[seed % len(systems) :] + list(systems)[: seed % len(systems)]
    measured = {name: systems[name]() for name in turn}
    found = {}
    for name, run in measured.items():
        leaders = [{**asdict(leader), "confirmed": confirmed(leader.configuration)} for leader in run.leaders()]
        found[name] = {"seconds": run.seconds, "memory_bytes": run.memory_bytes, "trials": run.ran, "complete": len(run.trials), "leaders": leaders}
        print(f"round {seed}: {name} {run.seconds:.1f} s, best {leaders[-1]['score']:.3f}, confirmed {leaders[-1]['confirmed']:.3f}", flush=True)
    return found


def measure_peer(peer: str, folder: Path, trials: int, steps: int) -> Measured:
    """Run one of the programs and take its trials from its own study."""
    out = folder / f"{peer}.json"
    command = [sys.executable, "-m", "benches.peers", "--peer", peer, "--trials", str(trials), "--steps", str(steps)]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("AUTOFT_", "RAY_"))}
    started = time.time()
    memory = _run(command, {**clean, "BENCH_OUT": str(out), "PYTHONPATH": str(HERE.parent)})
    seconds = time.time() - started
    rows = json.loads(out.read_text())
    ended = [Ended(row["ended"] - started, row["score"], row["configuration"]) for row in rows]
    return Measured(sorted(ended, key=lambda trial: trial.seconds), seconds, memory, len(ended))


def _run_peer(peer: str, trials: int, steps: int) -> None:
    """In the child: the program as it is, and then what its variables hold."""
    folder = SHARED / "peers"
    sys.path.insert(0, str(folder))
    sys.argv = [PEERS[peer], str(SHARED / "checkpoints" / "mnv2-clip-64"), str(SHARED / "data" / "pacs"), str(trials), str(steps)]
    left = runpy.run_path(str(folder / PEERS[peer]), run_name="__main__")
    if peer == "optuna":
        rows = [{"ended": trial.datetime_complete.timestamp(), "score": trial.value, "configuration": trial.params} for trial in left["study"].trials]
    else:
        rows = [
            {"ended": result.metrics["timestamp"], "score": result.metrics["acc"], "configuration": result.config} for result in left["r"]
        ]
    Path(os.environ["BENCH_OUT"]).write_text(json.dumps(rows))


def measure_service(folder: Path, seed: int, trials: int, steps: int, pruner: str) -> Measured:
    """`autoft launch` on a fresh home and cache, until its last trial has ended; what follows the search is not timed."""
    folder.mkdir()
    changes = {
        "search.n_trials": trials,
        "search.seed": seed,
        "search.pruner": pruner,
        "trial.steps": steps,
        "final.epochs": 1,
        "wise_ft.alphas": "[0.0, 1.0]",
        "data.templates": '["a photo of a {}."]',  # the peers have one prompt
    }
    flags = [text for name, value in changes.items() for text in ("--set", f"{name}={value}")]
    command = [sys.executable, "-m", "autoft.cli.main", "launch", str(SHARED / "examples" / "pacs.yaml"), *flags]
    command += ["--workers", "2", "--threads-per-worker", "1", "--device", "cpu", "--json", "--runs", str(folder / "runs")]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("AUTOFT_", "RAY_"))}
    home = {"AUTOFT_HOME": str(folder / "home"), "AUTOFT_CACHE_DIR": str(folder / "cache"), "PYTHONPATH": str(HERE.parent)}
    started, ended, last = time.time(), list[Ended](), [0.0]

    def heard(line: str) -> bool:
        event = json.loads(line)
        if event["event"] == "trial_ended":
            last[0] = time.time() - started
        if event["event"] == "trial_ended" and event["state"] == "complete":
            ended.append(Ended(last[0], event["score"], {"number": event["trial"]}))
        return event["event"] == "trial_ended" and event["finished"] >= trials

    memory = _run(command, {**clean, **home}, heard)
    configurations = _configurations(folder / "home")
    return Measured([Ended(trial.seconds, trial.score, configurations[int(trial.configuration["number"])]) for trial in ended], last[0], memory, trials)


def _configurations(home: Path) -> dict[int, dict[str, float]]:
    """The configurations of the study's trials in the peers' names."""
    from storage import embedded_url, leave_embedded, load_study_readonly

    trials = load_study_readonly(embedded_url(home), "pacs").get_trials(deepcopy=False)
    leave_embedded(home)
    names = {"lr": "lr", "weight_decay": "wd", "seed": "seed", **{f"loss_weight/{ours}": theirs for theirs, ours in TERMS.items()}}
    return {trial.number: {names[name]: value for name, value in trial.params.items() if name in names} for trial in trials}


def _run(command: list[str], env: dict[str, str], heard: Callable[[str], bool] = lambda line: False) -> int:
    """Run a program to its end, or until `heard` says of a line that it is enough; the peak memory of its family in bytes, shared pages shared out."""
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=HERE.parent, start_new_session=True)
    peak, over, errors = [0], threading.Event(), list[str]()

    def watch() -> None:
        while not over.wait(0.5):
            peak[0] = max(peak[0], _memory(process.pid))

    def drain() -> None:
        assert process.stderr is not None
        errors.extend(process.stderr)

    threads = [threading.Thread(target=watch, daemon=True), threading.Thread(target=drain, daemon=True)]
    for thread in threads:
        thread.start()
    assert process.stdout is not None
    enough = False
    for line in process.stdout:
        if not enough and line.startswith("{") and heard(line):
            enough = True
            process.terminate()
    code = process.wait()
    over.set()
    if code != 0 and not enough:
        raise SystemExit(f"{' '.join(command)} failed:\n{''.join(errors)[-3000:]}")
    return peak[0]


def _memory(pid: int) -> int:
    """Proportional set size of a process and its descendants."""
    total = 0
    try:
        for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
            total += process.memory_full_info().pss
    except psutil.Error:  # one of them has ended meanwhile
        pass
    return total


class Confirmed:
    """The mean score of fresh runs of a configuration by the peers' own program; each configuration is run once, for a run depends on nothing else."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._known: dict[str, float] = {}

    def __call__(self, configuration: Mapping[str, float]) -> float:
        key = json.dumps(dict(configuration), sort_keys=True)
        if key not in self._known:
            self._known[key] = confirm(configuration, self._steps)
        return self._known[key]


def confirm(configuration: Mapping[str, float], steps: int) -> float:
    """The mean score of fresh runs by the peers' own program."""
    code = (
        "import json, sys; sys.path.insert(0, sys.argv[1]); from trial import run; hp = json.loads(sys.argv[2]); "
        "print(json.dumps([run({**hp, 'seed': 1000 + k}, *sys.argv[3:6], int(sys.argv[6]), 64, 2) for k in range(int(sys.argv[7]))]))"
    )
    data = SHARED / "data" / "pacs"
    arguments = [SHARED / "peers", json.dumps(dict(configuration)), SHARED / "checkpoints" / "mnv2-clip-64", data / "photo" / "train"]
    arguments += [data / "art_painting" / "val", steps, CONFIRM]
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], check=True, stdout=subprocess.PIPE, text=True)
    return statistics.fmean(json.loads(done.stdout.splitlines()[-1]))


def summarise(rounds: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The figures over all rounds; a round in which the service does not reach the peer's score counts as no time at all, and is told."""
    figures: dict[str, dict[str, Any]] = {}
    for peer in PEERS:
        per_hour = {name: [found[name]["trials"] / found[name]["seconds"] * 3600 for found in rounds] for name in (*SERVICES, peer)}
        memory = {name: [found[name]["memory_bytes"] for found in rounds] for name in (*SERVICES, peer)}
        ratios = [ours / theirs for ours, theirs in zip(per_hour["service"], per_hour[peer], strict=True)]
        figures[f"trials_vs_{peer}"] = {
            "value": statistics.median(ratios),
            "ratios": spread(ratios),
            "trials_per_hour": {name: spread(values) for name, values in per_hour.items()},
            "peak_memory_bytes": {name: max(values) for name, values in memory.items()},
        }
        for name, system in ((f"time_to_score_vs_{peer}", "service_pruned"), (f"time_to_score_unpruned_vs_{peer}", "service")):
            times = [time_to_score(found[system], found[peer]) for found in rounds]
            reached = [ratio for ratio in times if ratio is not None]
            # A round that never gets there is slower than any that does: the median is taken with its ratio as 0.
            value = statistics.median([ratio or 0.0 for ratio in times])
            figures[name] = {"value": value or None, "reached": len(reached), "rounds": len(times), "ratios": times}
    return figures


def time_to_score(service: Mapping[str, Any], peer: Mapping[str, Any]) -> float | None:
    """The peer's seconds over the service's until a leader has the confirmed score that the peer ends with; None if none has."""
    goal = peer["leaders"][-1]["confirmed"]
    seconds = next((leader["seconds"] for leader in service["leaders"] if leader["confirmed"] >= goal), None)
    theirs = next(leader["seconds"] for leader in peer["leaders"] if leader["confirmed"] >= goal)
    return None if seconds is None else theirs / seconds


if __name__ == "__main__":
    main()
