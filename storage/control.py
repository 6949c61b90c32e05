"""Steering a study from anywhere that reaches the database; its coordinator reads the wish within seconds, wherever it runs."""

from __future__ import annotations

import getpass
import json
import socket
from datetime import UTC, datetime

from autoft.lifeline import Wish
from storage.attributes import UPSERT, WISH_ATTR, Asked
from storage.seam import storage_errors
from storage.studies import require_study
from storage.tables import engine_of
from storage.urls import StorageURL


def ask(url: StorageURL, study: str, wish: Wish) -> None:
    """Note what is wished of a study.

    Raises:
        StudyNotFound: there is no such study.
        StorageError: the database cannot be reached or used.
    """
    with storage_errors(url):
        study_id = require_study(url, study)
        asked = Asked(wish, f"{_user()}@{socket.gethostname()}", datetime.now(UTC))
        with engine_of(url) as engine, engine.begin() as connection:
            connection.execute(UPSERT, {"study_id": study_id, "key": WISH_ATTR, "value": json.dumps(asked.value())})


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # an account without a name, as in a container
        return "unknown"
