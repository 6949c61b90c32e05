"""docs/results/methods.md: every method on PACS with five seeds, the strongest on digits with three, by `autoft compare`.

    python -m benches.results_methods [--runs DIR]

Resumable: what is recorded in DIR is not computed again. The text between the markers in the page is a person's and is kept. Needs ../shared.
"""

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

from autoft.compare import FINETUNE, SEARCHES, ZERO_SHOT
from autoft.comparison.markdown import markdown
from autoft.comparison.records import Comparison, read_comparison, save_comparison
from autoft.comparison.verdict import verdict

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT.parent / "shared" / "examples"
PAGE = ROOT / "docs" / "results" / "methods.md"
DESCRIPTIONS = ROOT / "docs" / "results" / "descriptions"
SEEDS = {"pacs": 5, "digits": 3}
STRONGEST = 6
START, END = "<!-- what the figures say -->", "<!-- end of what the figures say -->"


def main() -> int:
    """Run both comparisons and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "results-methods", help="where records are kept")
    parser.add_argument("--workers", type=int, default=None, help="workers at once (default: as autoft compare)")
    args = parser.parse_args()
    if not EXAMPLES.is_dir():
        print(f"{EXAMPLES} is not there: this bench runs on the example studies", file=sys.stderr)
        return 1
    pacs = compare("pacs", None, args)
    digits = compare("digits", strongest(pacs), args)
    write_page({"pacs": pacs, "digits": digits})
    return 0


def compare(study: str, methods: tuple[str, ...] | None, args: argparse.Namespace) -> Comparison:
    """Run `autoft compare` on an example study, or go on with it."""
    command = [sys.executable, "-m", "autoft.cli.main", "compare", str(EXAMPLES / f"{study}.yaml"), "--seeds", str(SEEDS[study])]
    command += ["--runs", str(args.runs), "--set", f"data.descriptions={DESCRIPTIONS / study}.json"]
    command += ["--methods", ",".join(methods)] if methods else []
    command += ["--workers", str(args.workers)] if args.workers else []
    subprocess.run(command, check=True, env={**os.environ, "AUTOFT_HOME": str(args.runs / "home")}, stdout=subprocess.DEVNULL)
    return read_comparison(args.runs / f"{study}-compare" / "comparison.json")


def strongest(comparison: Comparison) -> tuple[str, ...]:
    """The methods for the second study: the six best by VAL_OOD over seeds, and those every reader looks for."""
    sign = 1 if comparison.direction == "maximize" else -1
    means = {
        method.name: statistics.fmean(scores)
        for method in comparison.methods
        if method.name != ZERO_SHOT and (scores := [run.val_ood for run in comparison.runs_of(method.name) if run.val_ood is not None])
    }
    best = sorted(means, key=lambda name: -sign * means[name])[:STRONGEST]
    return tuple(dict.fromkeys([ZERO_SHOT, FINETUNE, *best, *SEARCHES]))


def write_page(comparisons: dict[str, Comparison]) -> None:
    """docs/results/methods.md, and each comparison's records beside it."""
    text = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
    kept = text.partition(START)[2].partition(END)[0].strip()
    first = [f"**{study}**: {verdict(comparison)[0]}" for study, comparison in comparisons.items()]
    head = [
        "# Methods compared",
        *first,
        "Made by `make results-methods`, which is two calls of `autoft compare` and resumes where it was stopped. PACS: all methods. Digits: the "
        f"{STRONGEST} with the best VAL_OOD on PACS, and the zero-shot model, plain fine-tuning and both searches in any case. Records: "
        + ", ".join(f"[{study}](methods-{study}.json)" for study in comparisons)
        + ".",
        f"{START}\n{kept}\n{END}",
    ]
    for study, comparison in comparisons.items():
        save_comparison(comparison, PAGE.parent / f"methods-{study}.json")
    bodies = [markdown(comparison).replace("\n# ", "\n## ").removesuffix("\n") for comparison in comparisons.values()]
    PAGE.write_text("\n\n".join([*head, *("#" + body if body.startswith("# ") else body for body in bodies)]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
