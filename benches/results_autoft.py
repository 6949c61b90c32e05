"""AutoFT against its baselines on three shifts, several seeds: `make results-autoft`, which writes docs/results/autoft.md and .json.

A grid of cells (data set, seed, method), each a run of the command line in its own run folder. A cell that is done is never run again, and
one that was interrupted goes on, so the command can be stopped and started. Test sets are scored at the end of a cell, after everything
that is chosen has been chosen on validation sets; no cell is left out of the page.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy import stats

from autoft.pipeline import package_versions
from autoft.report.results import results

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "results" / "autoft.md"
DATASETS = ("pacs", "digits", "cifar10")
# Methods of a cell. rate_only: the same search over learning rate, weight decay and seed alone, with cross-entropy: what is left of AutoFT
# without its losses. transfer: starts from the best trials of digits' TPE study of the same seed, and is run on pacs only.
METHODS = ("finetune", "flyp", "random", "tpe", "rate_only", "transfer")
LAST = ("rate_only", "transfer")  # run after everything else
# Rows of the tables: a method's model before and after WiSE-FT.
ROWS = {
    ("finetune", "zero_shot"): "Zero-shot",
    ("finetune", "final"): "Plain fine-tuning",
    ("finetune", "wise_ft"): "Plain fine-tuning + WiSE-FT",
    ("flyp", "final"): "FLYP",
    ("flyp", "wise_ft"): "FLYP + WiSE-FT",
    ("random", "final"): "AutoFT, random search",
    ("random", "wise_ft"): "AutoFT, random search + WiSE-FT",
    ("tpe", "final"): "AutoFT, TPE",
    ("tpe", "wise_ft"): "AutoFT, TPE + WiSE-FT",
    ("rate_only", "final"): "TPE over rate and decay alone",
    ("rate_only", "wise_ft"): "TPE over rate and decay alone + WiSE-FT",
    ("transfer", "final"): "AutoFT, TPE from digits",
    ("transfer", "wise_ft"): "AutoFT, TPE from digits + WiSE-FT",
}


@dataclass(frozen=True)
class Cell:
    """One run."""

    dataset: str
    seed: int
    method: str

    @property
    def study(self) -> str:
        """The run's study name."""
        return f"{self.dataset}-{self.method}-{self.seed}"

    @property
    def needs(self) -> "Cell | None":
        """The cell whose study this one starts from."""
        return Cell("digits", self.seed, "tpe") if self.method == "transfer" else None

    def command(self, examples: Path, runs: Path) -> list[str]:
        """The command line of the run; everything it does not set is as the example's study file says."""
        program = [sys.executable, "-m", "autoft.cli.main"]
        common = [str(examples / f"{self.dataset}.yaml"), "--runs", str(runs), "--set", f"study={self.study}", "--set", f"search.seed={self.seed}"]
        if self.method in ("finetune", "flyp"):
            return [*program, "finetune", *common, "--hyperparameters", self.method, "--threads", "1"]
        changes = [f"search.sampler={'random' if self.method == 'random' else 'tpe'}"]
        if self.method == "rate_only":
            changes += ["search_space.terms=[]", "search.enqueue=[finetune]"]
        if self.needs is not None:
            changes.append(f"search.warm_start_from=[{self.needs.study}]")
        settings = [part for change in changes for part in ("--set", change)]
        return [*program, "launch", *common, *settings, "--executor", "in-process", "--threads-per-worker", "1"]

    def summary(self, runs: Path) -> dict[str, Any] | None:
        """What the run left, or None if it is not complete."""
        folder = runs / (f"{self.study}-{self.method}" if self.method in ("finetune", "flyp") else self.study)
        try:
            found: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return found


def main() -> int:
    """Run the cells that are missing, then write the page from all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=Path, default=ROOT.parent / "shared" / "examples", help="folder of the study files")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "results-autoft", help="where the cells' run folders are")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, default=list(DATASETS))
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="cells at a time, one thread each (default: one per core)")
    parser.add_argument("--page-only", action="store_true", help="run nothing; write the page from what is there")
    args = parser.parse_args()
    cells = _cells(args.datasets, args.seeds)
    failed = [] if args.page_only else _run(cells, args.examples.resolve(), args.runs.resolve(), args.jobs)
    done = {cell: summary for cell in cells if (summary := cell.summary(args.runs)) is not None}
    write_page(done, len(cells))
    for cell in failed:
        print(f"failed: {cell.study}; see {args.runs / cell.study}.log", file=sys.stderr)
    print(f"{len(done)} of {len(cells)} cells; wrote {PAGE}")
    return 1 if failed or len(done) < len(cells) else 0


def _cells(datasets: Iterable[str], seeds: Iterable[int]) -> list[Cell]:
    """Every cell, all of one seed before the next, so that a run that is stopped has whole seeds."""
    return [
        Cell(dataset, seed, method)
        for seed in seeds
        for dataset in sorted(datasets, key=["digits", "pacs", "cifar10"].index)
        for method in METHODS
        if method != "transfer" or (dataset == "pacs" and "digits" in datasets)
    ]


def _run(cells: Sequence[Cell], examples: Path, runs: Path, jobs: int) -> list[Cell]:
    """Run what is missing, `jobs` cells at a time; the cells that failed."""
    runs.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "AUTOFT_HOME": str(runs / "home")}
    subprocess.run([sys.executable, "-m", "autoft.cli.main", "list"], check=True, env=environment, stdout=subprocess.DEVNULL)

    def work(cell: Cell) -> bool:
        if cell.summary(runs) is not None:
            return True
        print(f"{cell.study} ...", flush=True)
        with (runs / f"{cell.study}.log").open("a", encoding="utf-8") as log:
            return subprocess.run(cell.command(examples, runs), env=environment, stdout=log, stderr=log).returncode == 0

    failed: list[Cell] = []
    for batch in ([cell for cell in cells if cell.method not in LAST], [cell for cell in cells if cell.method in LAST]):
        with ThreadPoolExecutor(jobs) as pool:
            failed += [cell for cell, fine in zip(batch, pool.map(work, batch), strict=True) if not fine]
    return failed


Score = dict[str, float]  # by column


def _scores(summary: dict[str, Any], model: str) -> Score:
    """A model's test scores in percent, and their averages, by column name."""
    grid = results(summary)
    row = grid.model(model)[0]
    found = {f"{column.dataset} ({'ID' if column.split == 'test_id' else 'OOD'})": 100 * row.scores[column].value for column in grid.columns}
    average = grid.average(row, "test_ood")
    return found | ({"average OOD": 100 * average.value} if average is not None and len(grid.of_split("test_ood")) > 1 else {})


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half width of its 95 % interval over seeds (Student's t; with three seeds 4.3 standard errors wide on each side)."""
    if len(values) < 2:
        return values[0], float("nan")
    return statistics.fmean(values), float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5


def _shown(values: Sequence[float]) -> str:
    mean, half = interval(values)
    return f"{mean:.1f} ± {half:.1f}" if len(values) > 1 else f"{mean:.1f}"


def write_page(done: dict[Cell, dict[str, Any]], expected: int) -> None:
    """docs/results/autoft.md and autoft.json from the cells that are done. The text between the markers in the page is kept."""
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    kept = _kept_text()
    parts = [_head(done, expected), kept]
    for dataset in DATASETS:
        cells = {cell: summary for cell, summary in done.items() if cell.dataset == dataset}
        if cells:
            parts += [f"## {dataset}", _accuracy_table(cells), _difference_table(cells), _search_table(cells)]
    PAGE.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    record = [{"dataset": c.dataset, "seed": c.seed, "method": c.method, **_recorded(summary)} for c, summary in done.items()]
    PAGE.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


START, END = "<!-- what the figures say -->", "<!-- end of what the figures say -->"


def _kept_text() -> str:
    text = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
    inside = text.partition(START)[2].partition(END)[0].strip()
    return f"{START}\n{inside}\n{END}"


def _head(done: dict[Cell, dict[str, Any]], expected: int) -> str:
    seeds = sorted({cell.seed for cell in done})
    versions = ", ".join(f"{name} {version}" for name, version in package_versions().items())
    return (
        "# AutoFT and its baselines on three shifts\n\n"
        f"Made by `make results-autoft`: {len(done)} of {expected} cells, seeds {', '.join(map(str, seeds))}, one CPU thread a cell. {versions}. "
        "Every figure is in [autoft.json](autoft.json).\n\n"
        "Accuracy in percent, mean over seeds ± half of its 95 % interval (Student's t). A seed sets the search, the batches and the "
        "augmentation; test images are the same, so the interval is about training again, not about other test images. Studies are "
        "the example files as they stand (learning rate of the baselines 1e-4, the same epochs and schedule for every method, 24 "
        "trials, three of them the enqueued baselines); WiSE-FT's alpha and the winning configuration are chosen on VAL_OOD, epochs on VAL_ID."
    )


def _accuracy_table(cells: dict[Cell, dict[str, Any]]) -> str:
    rows: list[str] = []
    columns: list[str] = []
    for (method, model), label in ROWS.items():
        scores = [_scores(summary, model) for cell, summary in sorted(cells.items(), key=_by_seed) if cell.method == method]
        if scores:
            columns = columns or list(scores[0])
            rows.append(f"| {label} | " + " | ".join(_shown([score[column] for score in scores]) for column in columns) + " |")
    return "\n".join([f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|", *rows])


def _difference_table(cells: dict[Cell, dict[str, Any]]) -> str:
    """Paired by seed against plain fine-tuning with the same post-processing."""
    plain = {(cell.seed, model): _scores(s, model) for cell, s in cells.items() if cell.method == "finetune" for model in ("final", "wise_ft")}
    rows, columns = [], list[str]()
    for (method, model), label in ROWS.items():
        pairs = [
            (_scores(summary, model), plain[cell.seed, model])
            for cell, summary in sorted(cells.items(), key=_by_seed)
            if cell.method == method and method != "finetune" and (cell.seed, model) in plain
        ]
        if pairs:
            columns = columns or list(pairs[0][0])
            rows.append(f"| {label} | " + " | ".join(_shown([one[c] - other[c] for one, other in pairs]) for c in columns) + " |")
    if not rows:
        return ""
    title = "Difference to plain fine-tuning, with WiSE-FT to plain fine-tuning with WiSE-FT, paired by seed:"
    return "\n".join([title, "", f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|", *rows])


def _search_table(cells: dict[Cell, dict[str, Any]]) -> str:
    """What each search found on validation data, and what it cost."""
    head = "| search | seed | winner | VAL_OOD in search | confirmed | margin | noise of margin | alpha | search / final samples | trials s | final s | lr | weight decay | largest loss weights |"
    rows = []
    for cell, summary in sorted(cells.items(), key=lambda item: (METHODS.index(item[0].method), item[0].seed)):
        search = summary.get("search")
        if search is None:
            continue
        best, again, cost = search["best_trial"], search["confirmation"], summary["cost"]
        chosen = next(c for c in again["candidates"] if c["number"] == best["number"])
        hp = best["hyperparameters"]
        weights = sorted(((w, name) for name, w in hp["loss_weights"].items()), reverse=True)[:4]
        cells_of_row = [
            cell.method,
            cell.seed,
            best["name"] or f"trial {best['number']}",
            f"{100 * best['score']:.1f}",
            _percent(chosen["mean"]),
            _percent(again["margin"]),
            _percent(again["margin_se"]),
            summary["wise_ft"]["alpha"],
            f"{cost['search_over_final']:.2f}",
            f"{cost['search_seconds']:.0f}",
            f"{cost['final_seconds']:.0f}",
            f"{hp['lr']:.2g}",
            f"{hp['weight_decay']:.2g}",
            ", ".join(f"{name} {weight:.2g}" for weight, name in weights),
        ]
        rows.append("| " + " | ".join(map(str, cells_of_row)) + " |")
    return "\n".join(["Searches:", "", head, "|---" * 14 + "|", *rows]) if rows else ""


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _by_seed(item: tuple[Cell, dict[str, Any]]) -> int:
    return item[0].seed


def _recorded(summary: dict[str, Any]) -> dict[str, Any]:
    """The part of a summary that the page is made of."""
    names = ("fingerprint", "versions", "search", "wise_ft", "evaluations", "cost", "final")
    return {name: summary[name] for name in names if name in summary}


if __name__ == "__main__":
    sys.exit(main())
