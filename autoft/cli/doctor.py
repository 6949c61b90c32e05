"""`autoft doctor`: look at everything a study needs, and say what to do about what is wrong."""

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

from autoft.cli.checks import CHECKS, Asked, Finding, run_check
from autoft.errors import StorageError
from storage import StorageURL, take_storage_url

_MARKS = {"ok": "ok", "warning": "warning", "problem": "PROBLEM", "skipped": "skipped"}


def doctor(args: argparse.Namespace) -> int:
    """Run every check and print what it found.

    Returns:
        0 unless there is a problem; then the exit code of the first problem's kind: 2 this machine, 3 the database, 4 the cluster.
    """
    asked = Asked(runs=args.runs, study=args.study, storage=_storage())
    found: list[Finding] = []
    for name, check, seconds in CHECKS:
        new = run_check(name, check, asked, seconds)
        found += new
        if not args.json:
            for finding in new:
                _print(finding)
    if args.json:
        print(json.dumps(as_json(found), indent=2))
    else:
        counts = Counter(finding.status for finding in found)
        print(f"\n{counts['problem']} problems, {counts['warning']} warnings, {counts['ok']} ok, {counts['skipped']} skipped")
    return exit_code(found)


def as_json(found: Sequence[Finding]) -> dict[str, object]:
    """What `--json` prints."""
    counts = Counter(finding.status for finding in found)
    checks = [{key: value for key, value in asdict(finding).items() if key != "exit_code"} for finding in found]
    return {"ok": counts["problem"] == 0, "problems": counts["problem"], "warnings": counts["warning"], "checks": checks}


def exit_code(found: Sequence[Finding]) -> int:
    """Of the first problem; 0 where there is none."""
    return next((finding.exit_code for finding in found if finding.status == "problem"), 0)


def _storage() -> StorageURL | StorageError | None:
    """Taken out of the environment before anything else is started, so that nothing inherits it."""
    try:
        return take_storage_url()
    except StorageError as error:
        return error


def _print(finding: Finding) -> None:
    print(f"{_MARKS[finding.status]:8} {finding.check:16} {finding.detail}", flush=True)
    if finding.advice and finding.status in ("warning", "problem"):
        print(f"{'':25} -> {finding.advice}", flush=True)
