"""Fuzz every target for a bounded time: `python -m tests.fuzz.run [--seconds N] [TARGET ...]`, or `make fuzz`.

Starts from the committed corpus; what it learns on the way is kept for the run only. An input that leads to anything but an AutoFTError, or
takes more than 20 seconds or 4 GB, is written below `runs/fuzz/`, and the program ends with 1. Such an input belongs into
tests/fuzz/corpus/found/TARGET/, with a line in make_corpus.FOUND and a fix.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz.make_corpus import CORPUS

OUT = Path("runs") / "fuzz"
CALL_SECONDS, MEMORY_MB, LARGEST_INPUT = 20, 4096, 20_000
# Loading torch takes far longer than the other targets' seconds, and a call some milliseconds.
SLOW = ("checkpoint_info", "checkpoint_head", "checkpoint_weights", "checkpoint_config", "delta", "summary")


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--seconds", type=int, default=20, help="for each target")
    parser.add_argument("targets", nargs="*", metavar="TARGET")
    args = parser.parse_args()
    if importlib.util.find_spec("atheris") is None:
        print("Not fuzzed: atheris is not installed (it has wheels for Linux on x86-64 and Python 3.11 to 3.13).")
        return 0 if sys.platform != "linux" or sys.version_info >= (3, 14) else 1
    known = sorted(path.name for path in CORPUS.iterdir() if path.is_dir() and path.name != "found")
    unknown = set(args.targets) - set(known)
    if unknown:
        parser.error(f"no target {sorted(unknown)[0]}; they are {', '.join(known)}")
    failed = [name for name in args.targets or known if not fuzz(name, args.seconds)]
    print(f"Fuzzed {len(args.targets or known)} targets for {args.seconds} s each; " + (f"crashes in {', '.join(failed)}" if failed else "no crash"))
    return 1 if failed else 0


def fuzz(name: str, seconds: int) -> bool:
    """Fuzz one target; whether nothing was found."""
    found = OUT / name
    found.mkdir(parents=True, exist_ok=True)
    options = (f"-max_total_time={seconds}", f"-timeout={CALL_SECONDS}", f"-rss_limit_mb={MEMORY_MB}", f"-max_len={LARGEST_INPUT}")
    with tempfile.TemporaryDirectory(prefix="autoft-fuzz-") as learnt:
        seeds = [str(folder) for folder in (CORPUS / name, CORPUS / "found" / name) if folder.is_dir()]
        command = [sys.executable, "-m", "tests.fuzz.one", name, *options, f"-artifact_prefix={found}/", "-print_final_stats=1", learnt, *seeds]
        started = time.monotonic()
        environment = {**os.environ, "TMPDIR": learnt, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        ended = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False)
    calls = next((line.split()[-1] for line in ended.stdout.splitlines() if line.startswith("stat::number_of_executed_units")), "?")
    print(f"{name:20} {calls:>9} inputs in {time.monotonic() - started:4.0f} s  {'ok' if ended.returncode == 0 else 'CRASH'}", flush=True)
    if ended.returncode != 0:
        print(ended.stdout[-4000:])
    return ended.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
