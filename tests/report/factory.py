"""Run folders as a finished run leaves them, made from seeded random numbers."""

import csv
import json
import random
from pathlib import Path
from typing import Any

STEPS = (4, 8, 12, 16)
TERMS = ("hinge", "entropy", "confidence_minimization", "contrastive", "l1_zero", "l2_zero", "l1_init", "l2_init")
EXTRA = ("name", "ci_low", "ci_high", "val_id", "repeat_sd")  # columns that older tables of trials lack
# Accuracy of each model on photo (ID), cartoon and sketch (OOD).
ACCURACY = {
    "zero_shot": (0.894611, 0.533276, 0.357851),
    "finetune": (0.971257, 0.561433, 0.401120),
    "final": (0.967664, 0.588737, 0.439552),
    "wise_ft": (0.970060, 0.601536, 0.452608),
}
SETS = (("photo", "test_id", 167), ("cartoon", "test_ood", 293), ("sketch", "test_ood", 393))


def hyperparameters(rng: random.Random) -> dict[str, Any]:
    """A draw from something like the paper's space."""
    weights = {"cross_entropy": 1.0} | {term: 10 ** rng.uniform(-4, 1) for term in TERMS}
    return {"lr": 10 ** rng.uniform(-6, -2), "weight_decay": rng.random(), "loss_weights": weights, "seed": rng.randint(0, 100)}


def evaluation(model: str, dataset: str, split: str, value: float, n: int, metric: str = "accuracy", seed: int = 0) -> dict[str, Any]:
    """One evaluation with an interval of about the width a test set of n images gives."""
    half = 1.96 * (max(value * (1 - value), 0.01) / n) ** 0.5 if metric != "cross_entropy" else 0.1
    return {
        "model": model,
        "seed": seed,
        "dataset": dataset,
        "split": split,
        "metric": metric,
        "value": value,
        "ci_low": value - half * 1.1,
        "ci_high": value + half * 0.9,
        "n": n,
    }


def minimal_summary() -> dict[str, Any]:
    """The fewest keys the contract allows."""
    search = {"n_complete": 0, "n_pruned": 0, "n_failed": 0, "best_trial": None}
    cost = {"search_samples": 0, "final_samples": 0, "search_seconds": 0.0, "final_seconds": 0.0, "search_over_final": None}
    return {"study": "s", "state": "running", "versions": {}, "fingerprint": "", "search": search, "evaluations": [], "cost": cost}


def minimized(summary: dict[str, Any], trials: list[dict[str, Any]]) -> dict[str, Any]:
    """The same run scored by a cross-entropy, where the lowest score is best."""
    best = min((trial for trial in trials if trial["state"] == "COMPLETE"), key=lambda trial: trial["score"])
    found = {"number": best["number"], "score": best["score"], "hyperparameters": best["hyperparameters"]}
    evaluations = [
        item | {"metric": "cross_entropy", "value": 2 - 2 * item["value"], "ci_low": 2 - 2 * item["ci_high"], "ci_high": 2 - 2 * item["ci_low"]}
        for item in summary["evaluations"]
    ]
    search = summary["search"] | {"best_trial": found}
    return summary | {"metric": "cross_entropy", "direction": "minimize", "search": search, "evaluations": evaluations}


def make_summary(n_trials: int = 24, study: str = "pacs") -> dict[str, Any]:
    """The summary of a whole run with one baseline, WiSE-FT and three test sets."""
    trials = make_trials(n_trials)
    complete = [trial for trial in trials if trial["state"] == "COMPLETE"]
    best = max(complete, key=lambda trial: trial["score"])
    found = best["hyperparameters"]
    alphas = [index / 10 for index in range(11)]
    evaluations = [
        evaluation(model, dataset, split, value, n)
        for model, values in ACCURACY.items()
        for (dataset, split, n), value in zip(SETS, values, strict=True)
    ]
    return {
        "study": study,
        "state": "complete",
        "metric": "accuracy",
        "direction": "maximize",
        "versions": {"autoft": "0.1.0", "torch": "2.15.0", "open_clip": "3.3.0", "optuna": "5.0.0", "ray": "2.60.0", "python": "3.11.2"},
        "fingerprint": "9f2c41d07b3e5a68",
        "description": {
            "model": "local-dir:mnv2-clip-64",
            "data": {"train": 1336, "val_id": 167, "val_ood": 205, "photo": 167, "cartoon": 293, "sketch": 393},
            "n_classes": 7,
        },
        "search": {
            "n_complete": len(complete),
            "n_pruned": sum(trial["state"] == "PRUNED" for trial in trials),
            "n_failed": sum(trial["state"] == "FAIL" for trial in trials),
            "best_trial": {"number": best["number"], "score": best["score"], "hyperparameters": found},
            "sampler": "tpe",
            "pruner": "hyperband",
            "seed": 0,
            "steps": 16,
            "batch_size": 64,
        },
        "final": {
            "epochs": [
                {"epoch": 1, "val_id": 0.934132, "train_loss": 2.41},
                {"epoch": 2, "val_id": 0.964072, "train_loss": 1.32},
                {"epoch": 3, "val_id": 0.958084, "train_loss": 1.07},
            ],
            "best_epoch": 2,
            "hyperparameters": found,
        },
        "wise_ft": {
            "alpha": 0.7,
            "select_on": "val_ood",
            "curve": [
                {"alpha": a, "val_id": 0.89 + 0.09 * a - 0.02 * a * a, "val_ood": 0.55 + 0.21 * a - 0.15 * a * a} for a in alphas
            ],
        },
        "evaluations": evaluations,
        "cost": {
            "search_samples": 17408,
            "final_samples": 4008,
            "search_seconds": 187.4,
            "final_seconds": 41.2,
            "search_over_final": 17408 / 4008,
            "workers": 2,
            "baseline_samples": 4008,
            "search_eval_samples": 12300,
        },
        "notes": ["2 near-duplicates between val_ood and cartoon were found; they are listed in the run folder."],
    }


def make_trials(n_trials: int = 24, seed: int = 1) -> list[dict[str, Any]]:
    """Trials of all three states; the first is always complete."""
    rng = random.Random(seed)
    trials = []
    for number in range(n_trials):
        level = 0.35 + 0.25 * rng.random() * (0.6 + 0.4 * number / max(n_trials, 1))
        scores = [level * (0.7 + 0.3 * step / STEPS[-1]) + rng.gauss(0, 0.01) for step in STEPS]
        state = "COMPLETE" if number == 0 else rng.choices(("COMPLETE", "PRUNED", "FAIL"), (14, 8, 2))[0]
        reported = {"COMPLETE": 4, "PRUNED": rng.randint(0, 3), "FAIL": 0}[state]
        trials.append(
            {
                "number": number,
                "state": state,
                "score": scores[-1] if state == "COMPLETE" else None,
                "reports": dict(zip(STEPS, scores[:reported], strict=False)),
                "hyperparameters": hyperparameters(rng),
                "failure_kind": "infrastructure" if state == "FAIL" else "" if reported else "diverged",
            }
        )
    return trials


def confirmed(
    summary: dict[str, Any], trials: list[dict[str, Any]], margin: float = 0.008, noise_sd: float | None = 0.019, repeats: int = 2
) -> dict[str, Any]:
    """The same run with every later part of the contract: names, intervals, objectives, confirmation, horizon, warm start, leakage.

    The winner leads the runner-up by `margin` (times the direction); changes the trials too: the first two become enqueued ones.
    """
    maximize = summary["direction"] == "maximize"
    sign = 1 if maximize else -1
    for trial, name in zip(trials, ("finetune", "published/fmow"), strict=False):
        trial.update(name=name, state="COMPLETE", score=trial["score"] or 0.4)
    for trial in trials:
        scored = trial["score"] is not None
        trial |= {"ci_low": trial["score"] - 0.06, "ci_high": trial["score"] + 0.06, "val_id": 0.9 + trial["number"] * 7 % 24 / 400} if scored else {}
    complete = sorted((trial for trial in trials if trial["state"] == "COMPLETE"), key=lambda trial: -sign * trial["score"])
    front = [t for t in complete if not any(sign * o["score"] > sign * t["score"] and sign * o["val_id"] > sign * t["val_id"] for o in complete)]
    second, winner, third = complete[:3]  # the best search score loses
    means = {winner["number"]: 0.55, second["number"]: 0.55 - sign * margin, third["number"]: 0.55 - sign * (margin + 0.02)}
    candidates = [
        {
            "number": trial["number"],
            "name": trial.get("name"),
            "search_score": trial["score"],
            "scores": [means[trial["number"]] + 0.01 * (index - (repeats - 1) / 2) for index in range(repeats)],
            "mean": means[trial["number"]],
            "sd": noise_sd,
        }
        for trial in (second, winner, third)
    ]
    best = {key: winner.get(key) for key in ("number", "score", "hyperparameters", "name", "ci_low", "ci_high")}
    search = summary["search"] | {
        "best_trial": best,
        "objectives": ["val_ood", "val_id"],
        "pareto": [{"number": t["number"], "name": t.get("name"), "values": {"val_ood": t["score"], "val_id": t["val_id"]}} for t in front],
        "reference": "cross_entropy",
        "preset": "paper",
        "layerwise": False,
        "enqueued": [{"name": t["name"], "number": t["number"], "score": t["score"], "state": t["state"]} for t in trials if t.get("name")],
        "confirmation": {
            "steps": summary["search"]["steps"],
            "repeats": repeats,
            "candidates": candidates,
            "winner": winner["number"],
            "margin": margin,
            "noise_sd": noise_sd,
            "margin_se": noise_sd * (2 / repeats) ** 0.5 if noise_sd is not None else None,
            "optimism": sign * (winner["score"] - 0.55),
        },
        "horizon": {
            "short_steps": 16,
            "pairs": [
                {"label": name, "short": 0.4 + 0.02 * index, "long": 0.5 + 0.01 * ((index * 2) % 5), "long_steps": 64 if index % 2 else 256}
                for index, name in enumerate(("finetune", "published/fmow", "trial 17", "trial 4", "trial 9"))
            ],
            "spearman": 0.5,
            "n": 5,
        },
        "transfer": [{"study": "pacs-small", "n_trials": 12}],
    }
    leakage = {
        "pairs": [
            {"a": "val_ood", "b": "train", "exact": 0, "near": 0, "n_a": 205, "n_b": 1336, "allowed": False},
            {"a": "val_ood", "b": "sketch", "exact": 1, "near": 3, "n_a": 205, "n_b": 393, "allowed": True},
        ],
        "max_distance": 4,
    }
    cost = summary["cost"] | {"confirm_samples": 6144, "confirm_seconds": 61.5}
    final = summary["final"] | {"hyperparameters": winner["hyperparameters"]}
    return summary | {"search": search, "final": final, "leakage": leakage, "cost": cost}


def write_run(folder: Path, summary: dict[str, Any], trials: list[dict[str, Any]] | None = None, checkpoints: bool = True) -> Path:
    """A run folder on disk; trials None leaves trials.csv away."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    if trials is not None:
        _write_trials(folder / "trials.csv", trials)
    if checkpoints:
        for name in ("final", "wise_ft") if summary.get("wise_ft") else ("final",):
            (folder / "checkpoints" / name).mkdir(parents=True, exist_ok=True)
    return folder


def _write_trials(path: Path, trials: list[dict[str, Any]]) -> None:
    terms = dict.fromkeys(term for trial in trials for term in trial["hyperparameters"]["loss_weights"])
    steps = sorted({step for trial in trials for step in trial["reports"]})
    about = ["number", "state", "score", "duration_seconds", "started_at", "finished_at", "worker", "failure_kind"]
    extra = [key for key in EXTRA if any(key in trial for trial in trials)]  # older tables have none of these
    about += extra
    header = [*about, "lr", "weight_decay", "seed", *(f"loss_weight/{term}" for term in terms), *(f"report/{step}" for step in steps)]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for trial in trials:
            found = trial["hyperparameters"]
            number = trial["number"]
            times = (7.5, f"2025-11-21T10:{number % 60:02d}:00+00:00", f"2025-11-21T10:{number % 60:02d}:07+00:00")
            row = [number, trial["state"], trial["score"], *times, f"worker-{number % 2}", trial["failure_kind"]]
            row += [trial.get(key) for key in extra]
            row += [found["lr"], found["weight_decay"], found["seed"], *(found["loss_weights"].get(term) for term in terms)]
            writer.writerow(["" if value is None else value for value in [*row, *(trial["reports"].get(step) for step in steps)]])
