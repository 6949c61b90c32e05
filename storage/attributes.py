"""What AutoFT keeps with a study beside Optuna's own: system attributes, read and written by name."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy

from autoft.lifeline import Wish

OWNER_ATTR = "autoft:owner"  # whoever took the lock last: token, host, pid, since
CREATED_ATTR = "autoft:created"  # ISO 8601 UTC; Optuna itself keeps no such time
WISH_ATTR = "autoft:wish"  # what somebody asked of the study last
BEAT_ATTR = "autoft:beat"  # the owner's last sign of life, Unix time by the database's clock

UPSERT = sqlalchemy.text(
    "INSERT INTO study_system_attributes (study_id, key, value_json) VALUES (:study_id, :key, :value) "
    "ON CONFLICT (study_id, key) DO UPDATE SET value_json = excluded.value_json"
)


@dataclass(frozen=True)
class Asked:
    """A wish as it is kept with the study."""

    wish: Wish
    by: str
    at: datetime

    @classmethod
    def read(cls, value: Any) -> Asked | None:
        """From the attribute's value; None where there is none."""
        if not isinstance(value, dict):
            return None
        return cls(Wish(value["wish"]), str(value["by"]), datetime.fromisoformat(value["at"]))

    def value(self) -> dict[str, str]:
        """For the attribute."""
        return {"wish": self.wish.value, "by": self.by, "at": self.at.isoformat(timespec="seconds")}
