"""What a scenario did when, what it checked, and what came out."""

from __future__ import annotations

import re
import sys
import time
from dataclasses import dataclass, field
from typing import Any

_FOLDERS = re.compile(rf"(?:/tmp|/dev/shm|/root|/home|{re.escape(sys.prefix)}|{re.escape(sys.base_prefix)})/[\w./+-]+")


@dataclass
class Diary:
    """One scenario's record. `hidden` are texts that are not to be written down, such as scratch folders, and what stands for them."""

    scenario: str
    seed: int
    done: list[dict[str, Any]] = field(default_factory=list)
    checks: list[dict[str, Any]] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    hidden: dict[str, str] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)

    def note(self, what: str, **details: Any) -> None:
        """Something was done, or seen."""
        entry = {"at": round(time.monotonic() - self.began, 1), "what": what, **details}
        self.done.append(entry)
        shown = " ".join(f"{name}={value}" for name, value in details.items())
        print(f"{self.scenario} {self.seed} {entry['at']:7.1f} s  {what} {shown}"[:300], file=sys.stderr, flush=True)

    def check(self, name: str, passed: bool, found: Any = None) -> bool:
        """Something that must hold; all are made, so that one failure does not hide another."""
        self.checks.append({"name": name, "passed": bool(passed), **({} if found is None else {"found": found})})
        mark = "ok  " if passed else "FAIL"
        print(f"{self.scenario} {self.seed}   {mark} {name}" + ("" if passed else f": {found}")[:2000], file=sys.stderr, flush=True)
        return bool(passed)

    def count(self, what: str) -> int:
        """How often something was done."""
        return sum(entry["what"] == what for entry in self.done)

    @property
    def passed(self) -> bool:
        return bool(self.checks) and all(check["passed"] for check in self.checks)

    def record(self) -> dict[str, Any]:
        """For the results file, without anything that names this machine's folders."""
        values = {
            "scenario": self.scenario,
            "seed": self.seed,
            "passed": self.passed,
            "seconds": round(time.monotonic() - self.began, 1),
            "figures": self.figures,
            "checks": self.checks,
            "notes": self.notes,
            "done": self.done,
        }
        cleaned: dict[str, Any] = self._cleaned(values)
        return cleaned

    def _cleaned(self, value: Any) -> Any:
        match value:
            case str():
                for text, stand_in in self.hidden.items():
                    value = value.replace(text, stand_in)
                return _FOLDERS.sub("FOLDER", value)
            case dict():
                return {self._cleaned(str(name)): self._cleaned(part) for name, part in value.items()}
            case list() | tuple():
                return [self._cleaned(part) for part in value]
            case _:
                return value
