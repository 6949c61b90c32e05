"""Made-up comparisons of the size of a real one, from seeded random numbers."""

import random
from typing import Any

from autoft.comparison.records import Comparison

# (ID, OOD average) of each method before noise, and what its training costs relative to plain fine-tuning.
LEVELS: dict[str, tuple[float, float, float]] = {
    "zero_shot": (0.894, 0.446, 0.0),
    "linear_probe": (0.935, 0.452, 0.2),
    "finetune": (0.968, 0.478, 1.0),
    "lp_ft": (0.970, 0.486, 1.2),
    "l2sp": (0.966, 0.484, 1.1),
    "flyp": (0.972, 0.502, 1.9),
    "wise_ft": (0.971, 0.514, 1.0),
    "drm": (0.969, 0.505, 2.0),
    "ftp": (0.967, 0.492, 1.3),
    "tpgm": (0.965, 0.489, 1.6),
    "spd": (0.968, 0.495, 1.05),
    "saft": (0.962, 0.481, 1.4),
    "core_tuning": (0.966, 0.471, 2.2),
    "ldifs": (0.965, 0.490, 1.7),
    "car_ft": (0.970, 0.497, 1.8),
    "lipsum_ft": (0.969, 0.499, 1.9),
    "clipood": (0.970, 0.508, 1.5),
    "soup": (0.972, 0.504, 1.0),
    "autoft": (0.971, 0.511, 1.6),
    "autoft_extended": (0.970, 0.515, 1.7),
}
SETS = (("photo", "test_id", 167, 0.0), ("cartoon", "test_ood", 293, 0.09), ("sketch", "test_ood", 393, -0.06), ("art", "test_ood", 310, -0.03))


def document(methods: tuple[str, ...] = tuple(LEVELS), seeds: int = 5, noise: float = 0.006) -> dict[str, Any]:
    """A comparison as JSON."""
    rng = random.Random(1)
    return {
        "version": 1,
        "study": "digits-0.1",
        "metric": "accuracy",
        "direction": "maximize",
        "model": "ViT-B-32, LAION-2B weights",
        "n_classes": 7,
        "data": {"train": 1336, "val_id": 167, "val_ood": 205, **{name: n for name, _, n, _ in SETS}},
        "versions": {"autoft": "0.4.0", "torch": "2.6.0"},
        "hardware": "one H200, 16 CPU cores",
        "budget": {"evaluations": 20, "steps": 200, "rule": "The configuration with the best score on VAL_OOD is run with every seed."},
        "methods": [_method(name, rng) for name in methods],
        "runs": [_run(name, seed, rng, noise) for name in methods for seed in ([None] if name == "zero_shot" else range(seeds))],
        "notes": [],
    }


def comparison(methods: tuple[str, ...] = tuple(LEVELS), seeds: int = 5, noise: float = 0.006) -> Comparison:
    """A comparison."""
    return Comparison.from_dict(document(methods, seeds, noise))


def scored(scores: dict[str, list[float | None]], metric: str = "accuracy", **changes: Any) -> Comparison:
    """A comparison whose average OOD, VAL_OOD and ID scores are these, one a seed; None: that run failed. zero_shot has one."""
    runs: list[dict[str, Any]] = []
    for name, values in scores.items():
        for seed, value in enumerate(values):
            run: dict[str, Any] = {"method": name, "seed": None if name == "zero_shot" else seed}
            if value is None:
                runs.append(run | {"error": "loss was not finite"})
                continue
            rows = [("photo", "test_id", value), ("cartoon", "test_ood", value), ("sketch", "test_ood", value)]
            found = [_row(dataset, split, metric, x, 1000) for dataset, split, x in rows]
            runs.append(run | {"evaluations": found, "val_ood": value, "val_id": value, "train_seconds": 10.0, "tune_seconds": 100.0})
    methods = [{"name": name, "source": "a paper"} for name in scores]
    direction = "minimize" if metric == "cross_entropy" else "maximize"
    return Comparison.from_dict(document(()) | {"metric": metric, "direction": direction, "methods": methods, "runs": runs} | changes)


def _row(dataset: str, split: str, metric: str, value: float, n: int) -> dict[str, Any]:
    return {"dataset": dataset, "split": split, "metric": metric, "value": value, "ci_low": value - 0.03, "ci_high": value + 0.03, "n": n}


def _method(name: str, rng: random.Random) -> dict[str, Any]:
    level = LEVELS[name][1]
    tuned = name != "zero_shot"
    return {
        "name": name,
        "source": "Radford et al. 2021, arXiv 2103.00020" if not tuned else f"the authors of {name}, 2023, arXiv 2301.00001",
        "knobs": {"lr": "1e-6 to 1e-3 (log)", "strength": "0.01 to 10 (log)"} if tuned else {},
        "chosen": {"lr": 10 ** rng.uniform(-5.5, -4), "strength": rng.random(), "loss_weights": {"cross_entropy": 1.0}} if tuned else {},
        "tuning_scores": [round(level + 0.04 * rng.random(), 4) for _ in range(20)] if tuned else [],
        "tuning_evaluations": 20 if tuned else 0,
        "reconstructed": name in ("drm", "clipood"),
    }


def _run(name: str, seed: int | None, rng: random.Random, noise: float) -> dict[str, Any]:
    id_level, ood_level, cost = LEVELS[name]
    luck = 0.0 if seed is None else rng.gauss(0, noise)
    rows = []
    for dataset, split, n, shift in SETS:
        level = id_level if split == "test_id" else ood_level + shift
        value = round(n * (level + luck * (0.4 if split == "test_id" else 1) + (rng.gauss(0, noise / 3) if luck else 0))) / n
        rows += [_row(dataset, split, "accuracy", value, n), _row(dataset, split, "macro_f1", value - 0.02, n)]
    return {
        "method": name,
        "seed": seed,
        "evaluations": rows,
        "val_id": id_level,
        "val_ood": ood_level + 0.03 + rng.gauss(0, 0.003),
        "train_seconds": 62.0 * cost,
        "tune_seconds": 410.0 * cost,
        "peak_memory_bytes": int(1.9e9 + 4e8 * cost),
        "peak_memory_kind": "cuda",
        "steps": 2000 if cost else 0,
    }
