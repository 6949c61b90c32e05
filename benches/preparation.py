"""How long a study takes until its first trial could start, with an empty image cache and with a full one: `python -m benches.preparation`.

Preparation is `autoft.pipeline.prepare`: listing, decoding, corrupting, loading the model, the leakage check. Each start is a process of its
own; imports are not counted. First and second start are measured in turns, so that both see the same machine.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
CODE = """
import sys, time
from pathlib import Path
from autoft.config import load_config
from autoft.pipeline import prepare
from autoft.workspace import configure_torch
configure_torch(1)
started = time.perf_counter()
prepare(load_config(sys.argv[1]), Path(sys.argv[2]))
print(time.perf_counter() - started)
"""


def main() -> None:
    """Measure and print as JSON: seconds of each start, and the ratio of the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", type=Path, default=ROOT.parent / "shared" / "examples" / "cifar10.yaml")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    first, second = [], []
    for _ in range(args.repeats):
        with tempfile.TemporaryDirectory(prefix="af-") as cache:
            first.append(_prepare(args.study, cache))
            second.append(_prepare(args.study, cache))
    ratio = statistics.median(second) / statistics.median(first)
    print(json.dumps({"study": args.study.name, "first_seconds": first, "second_seconds": second, "second_over_first": ratio}, indent=1))


def _prepare(study: Path, cache: str) -> float:
    return float(subprocess.run([sys.executable, "-c", CODE, str(study), cache], check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    main()
