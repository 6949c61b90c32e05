"""Put each known defect back and see that its tests notice: `make mutants`, or `python -m tests.mutants.run 04 16` for some.

A mutant is a file NN-short-name.patch: a sentence, a line `Fails: TEST` for each test that must fail, and a unified diff. The tests of
all mutants first have to pass in a copy of the working tree; then each patch is applied to a copy of its own, where its tests have to fail.
Only an assertion of the test is a failure: what cannot be collected, errs in a fixture or ends in another exception proves nothing.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
AT_ONCE = 2
SCRATCH = "scratch-"
TIMEOUT_SECONDS = 900
ASSERTIONS = ("assert ", "AssertionError", "Failed: ")  # how pytest words a failed assertion, and pytest.raises that was not obeyed
PACKAGES = ("autoft", "workers", "storage", "tests")


@dataclass(frozen=True)
class Mutant:
    """A patch and the node ids of the tests that must fail under it."""

    path: Path
    defect: int
    what: str
    tests: tuple[str, ...]

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return self.path.stem


class Broken(Exception):
    """The run proves nothing; says why."""


def read_mutants(wanted: Sequence[str] = ()) -> list[Mutant]:
    """The mutants, those whose name begins with one of the wanted words only. Raises Broken for a file without tests."""
    mutants = []
    for path in sorted(FOLDER.glob("*.patch")):
        head = path.read_text(encoding="utf-8").partition("\n--- ")[0]
        tests = tuple(re.findall(r"^Fails: (\S+)$", head, flags=re.MULTILINE))
        if not tests:
            raise Broken(f"{path.name} has no line 'Fails: TEST'")
        mutants.append(Mutant(path, int(path.name[:2]), head.splitlines()[0], tests))
    return [mutant for mutant in mutants if not wanted or mutant.name.startswith(tuple(wanted))]


def copy_tree(folder: Path) -> None:
    """Copy what git tracks of the working tree, and what it does not ignore, as it is now."""
    listed = subprocess.run(["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        if (ROOT / name).is_file():  # else deleted, and not committed yet
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def apply_patch(patch: Path, folder: Path, *options: str) -> None:
    """Apply a patch to a tree; its lines may have moved. Raises Broken where it does not fit."""
    # Below a checkout git would look for the patched files in that checkout, and skip them without a word.
    environment = os.environ | {"GIT_CEILING_DIRECTORIES": str(folder.resolve().parent)}
    done = subprocess.run(["git", "apply", "-C1", *options, str(patch)], cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise Broken(f"the patch does not apply: {' '.join(done.stderr.split())}")


def _environment(folder: Path) -> dict[str, str]:
    shared = os.environ.get("AUTOFT_SHARED") or str(ROOT.parent / "shared")
    return os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "AUTOFT_SHARED": shared}


def check_imports(folder: Path) -> None:
    """Raise Broken if tests that run in `folder` would import the installed packages instead of those in it."""
    code = f"import {', '.join(PACKAGES)}; print(*({', '.join(f'{name}.__file__' for name in PACKAGES)}), sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=_environment(folder), capture_output=True, text=True)
    files = [Path(line).resolve() for line in done.stdout.split("\n") if line]
    if done.returncode or len(files) != len(PACKAGES) or not all(file.is_relative_to(folder.resolve()) for file in files):
        raise Broken(f"not imported from the copy {folder}: {done.stdout}{done.stderr}")


def run_tests(folder: Path, tests: Sequence[str]) -> dict[str, list[str]]:
    """Run tests in a copy of the tree: for each, the outcome of its cases, "passed" or the first line of the failure.

    Raises:
        Broken: pytest could not collect or run a test, or took too long; with the end of what it said.
    """
    scratch = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=folder))
    report = scratch / "outcome.xml"
    options = ["-q", "--no-header", "-p", "no:cacheprovider", f"--junitxml={report}", f"--basetemp={scratch / 'tmp'}"]
    command = [sys.executable, "-m", "pytest", *options, *tests]
    try:
        done = subprocess.run(command, cwd=folder, env=_environment(folder), capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        raise Broken(f"no end after {TIMEOUT_SECONDS} s") from None
    if done.returncode not in (0, 1):  # 1: tests failed; others: not collected, interrupted, used wrongly
        raise Broken(f"pytest ended with {done.returncode}:\n{done.stdout[-3000:]}{done.stderr[-1000:]}")
    found: dict[str, list[str]] = {test: [] for test in tests}
    for case in ElementTree.parse(report).iter("testcase"):
        file, name = case.attrib["classname"].replace(".", "/") + ".py", case.attrib["name"]
        for test in tests:
            if test in (f"{file}::{name}", f"{file}::{name.partition('[')[0]}"):
                found[test].append(_outcome(case))
    return found


def _outcome(case: ElementTree.Element) -> str:
    for kind in ("error", "skipped"):
        child = case.find(kind)
        if child is not None:
            raise Broken(f"{case.attrib['name']}: {kind}: {child.attrib.get('message')}")
    failure = case.find("failure")
    if failure is None:
        return "passed"
    message = failure.attrib.get("message", "").partition("\n")[0]
    if not message.startswith(ASSERTIONS):
        raise Broken(f"{case.attrib['name']} ended otherwise than by an assertion: {message}")
    return message


def check_unpatched(folder: Path, tests: Iterable[str]) -> None:
    """Raise Broken unless every test passes, in every case it has."""
    wanted = sorted(set(tests))  # the tests of a file stay together: they share fixtures
    halves = [half for half in (wanted[: len(wanted) // 2], wanted[len(wanted) // 2 :]) if half]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = {test: outcomes for half in pool.map(lambda half: run_tests(folder, half), halves) for test, outcomes in half.items()}
    poor = [f"{test}: {outcomes or 'not found'}" for test, outcomes in found.items() if set(outcomes) != {"passed"}]
    if poor:
        raise Broken("without any defect put back:\n" + "\n".join(poor))


def verdict(mutant: Mutant, pristine: Path, scratch: Path) -> tuple[str, str]:
    """("killed", why its first test failed), or ("SURVIVED" or "BROKEN", what is wrong)."""
    folder = scratch / mutant.name
    shutil.copytree(pristine, folder, ignore=shutil.ignore_patterns(f"{SCRATCH}*"))
    try:
        apply_patch(mutant.path, folder)
        found = run_tests(folder, mutant.tests)
    except Broken as problem:
        return "BROKEN", str(problem)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    alive = [test for test, outcomes in found.items() if set(outcomes) <= {"passed"}]
    failures = [outcome for outcome in found[mutant.tests[0]] if outcome != "passed"]
    return ("SURVIVED", f"passed: {', '.join(alive)}") if alive else ("killed", failures[0])


def main(wanted: Sequence[str]) -> int:
    """Run the mutants and print a table; 0 if all are killed."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        scratch = Path(name)
        pristine = scratch / "pristine"
        try:
            mutants = read_mutants(wanted)
            copy_tree(pristine)
            check_imports(pristine)
            check_unpatched(pristine, (test for mutant in mutants for test in mutant.tests))
        except Broken as problem:
            print(problem)
            return 1
        print(f"{len(mutants)} mutants; their tests pass in an unpatched copy ({time.perf_counter() - started:.0f} s)", flush=True)
        counts: Counter[str] = Counter()
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for mutant, (state, why) in zip(mutants, pool.map(lambda mutant: verdict(mutant, pristine, scratch), mutants), strict=True):
                counts[state] += 1
                print(f"{mutant.name:34} {state:9} {why if state == 'BROKEN' else why[:110]}", flush=True)
    print(f"{counts['killed']} of {len(mutants)} killed in {time.perf_counter() - started:.0f} s")
    return 0 if mutants and counts["killed"] == len(mutants) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
