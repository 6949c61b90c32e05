"""Whether the pinned dependencies have known vulnerabilities: `python -m tests.audit.run`, or `make audit`.

pip-audit asks PyPI's advisory database, then OSV's, about every line of constraints.txt. It reports success when a server merely answers
"not found", as a package mirror does, so its words are not taken: what could not be asked is counted. Ends with 1 for findings that
accepted.json does not list with a reason; with 0, and a line that says so, where nothing could be asked.
"""

import datetime
import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ACCEPTED = Path(__file__).with_name("accepted.json")
SERVICES = ("pypi", "osv")
SECONDS = 300


@dataclass(frozen=True)
class Finding:
    """A known vulnerability of a pinned version. `ids` are its own and its aliases."""

    package: str
    version: str
    ids: tuple[str, ...]
    fixed_in: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.package} {self.version}: {', '.join(self.ids)}; " + (f"fixed in {', '.join(self.fixed_in)}" if self.fixed_in else "no fixed version")


@dataclass(frozen=True)
class Audit:
    """What a service said. `asked`: packages it knows; `unknown`: packages it could not be asked about."""

    asked: tuple[str, ...]
    unknown: tuple[str, ...]
    findings: tuple[Finding, ...]


def read_report(document: Mapping[str, Any]) -> Audit:
    """An audit from pip-audit's JSON."""
    parts = document["dependencies"]
    asked = [part for part in parts if "skip_reason" not in part]
    findings = [
        Finding(part["name"], part["version"], (found["id"], *found.get("aliases", ())), tuple(found.get("fix_versions", ())))
        for part in asked
        for found in part.get("vulns", ())
    ]
    return Audit(tuple(part["name"] for part in asked), tuple(part["name"] for part in parts if "skip_reason" in part), tuple(findings))


def not_accepted(findings: Iterable[Finding], accepted: Sequence[Mapping[str, str]], today: datetime.date) -> list[Finding]:
    """The findings that no line accepts. Raises ValueError for a line without package, id, reason and a date until which it holds."""
    for line in accepted:
        if not all(line.get(key, "").strip() for key in ("package", "id", "reason", "until")):
            raise ValueError(f"{ACCEPTED.name}: {dict(line)} needs package, id, reason and until (a date, as 2027-03-31)")
    held = {(line["package"].lower(), line["id"]) for line in accepted if datetime.date.fromisoformat(line["until"]) >= today}
    return [finding for finding in findings if not any((finding.package.lower(), name) in held for name in finding.ids)]


def ask(service: str) -> Audit | None:
    """What one service says, or None if it cannot be reached."""
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(ROOT / "constraints.txt"), "--no-deps", "--disable-pip"]
    command += ["--vulnerability-service", service, "--format", "json", "--progress-spinner", "off", "--timeout", "15"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False).stdout
        audit = read_report(json.loads(answer))
    except (subprocess.TimeoutExpired, ValueError, KeyError):
        return None
    return audit if audit.asked else None


def main() -> int:
    """The program."""
    audits = [(service, audit) for service in SERVICES if (audit := ask(service)) is not None]
    if not audits:
        print("NOT AUDITED: no vulnerability service could be reached, so nothing is known about the pinned versions. Run `make audit` on a network.")
        return 0
    service, audit = max(audits, key=lambda pair: len(pair[1].asked))
    findings = sorted({str(finding): finding for _, each in audits for finding in each.findings}.values(), key=str)
    bad = not_accepted(findings, json.loads(ACCEPTED.read_text(encoding="utf-8")), datetime.datetime.now(datetime.UTC).date())
    print(f"Audited {len(audit.asked)} pinned packages with {service}; {len(findings)} known vulnerabilities, {len(findings) - len(bad)} of them accepted.")
    if audit.unknown:
        print(f"Not audited: {', '.join(audit.unknown)}")
    for finding in bad:
        print(f"VULNERABLE {finding}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
