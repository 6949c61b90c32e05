"""Where studies are kept: Postgres (external or embedded) or SQLite, each study owned by one process at a time.

    urls.py         storage URLs, taken out of the environment without leaving the password there
    embedded.py     the Postgres that is started where no URL is given
    connections.py  how every connection is made
    locks.py        one coordinator per study
    tables.py       Optuna's tables, made once
    attributes.py   what is kept with a study beside Optuna's own
    pulse.py        signs of life, other people's wishes, outages
    watchdog.py     ends a call to a database that is frozen
    control.py      wish something of a study
    owner.py        what the owner of a study knows of its trials without asking; changes.py: what it writes to one; reading.py
    studies.py      open a study to run it, or load it to read it
    summaries.py    the list of studies
    dashboard.py    the stock optuna-dashboard; not imported here, because importing it takes a second
    records/        our own tables: what was run, what it scored, where its weights are
    seam.py         where foreign errors become ours
"""

from storage.control import ask
from storage.embedded import embedded_url, leave_embedded
from storage.seam import storage_errors
from storage.studies import StudyHandle, load_study_readonly, open_study
from storage.summaries import StudySummary, list_studies
from storage.urls import StorageURL, parse_storage_url, take_storage_url

__all__ = [
    "StorageURL",
    "StudyHandle",
    "StudySummary",
    "ask",
    "embedded_url",
    "leave_embedded",
    "list_studies",
    "load_study_readonly",
    "open_study",
    "parse_storage_url",
    "storage_errors",
    "take_storage_url",
]
