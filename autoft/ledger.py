"""What a study is to be told, in order and each thing once, whether or not the database is there; and the replay of the journal.

Everything here may be done twice: a connection that breaks while it is written leaves open whether it was.
"""

import logging
import uuid
from collections import deque
from collections.abc import Callable

import optuna
from optuna.study import Study
from optuna.trial import Trial, TrialState

from autoft.config import StudyConfig
from autoft.errors import StorageUnavailable
from autoft.journal import Entry, Journal
from autoft.lifeline import Outage
from autoft.one_write import one_write
from autoft.search_space import sample_hyperparameters

logger = logging.getLogger(__name__)

ID_ATTRIBUTE = "autoft:id"
RUN_ATTRIBUTE = "run"
FAILURE_ATTRIBUTE = "failure_kind"
FINISHED_STATES = (TrialState.COMPLETE, TrialState.PRUNED)


class Ledger:
    """Writes to the study, in order; while the database is away they wait."""

    def __init__(self, outage: Outage) -> None:
        self._outage = outage
        self._waiting: deque[Callable[[], None]] = deque()

    def __len__(self) -> int:
        """How many writes wait."""
        return len(self._waiting)

    def add(self, action: Callable[[], None]) -> None:
        """Have something done that may be done twice, after all that waits."""
        self._waiting.append(action)

    def write_one(self) -> bool:
        """Do the first thing that waits, if the database takes it; whether it did.

        Raises:
            StorageError: the database has been away for too long.
        """
        if not self._waiting or not self._outage.may_try():
            return False
        try:
            self._waiting[0]()
        except StorageUnavailable as error:
            self._outage.began(error)
            return False
        self._waiting.popleft()
        self._outage.ended()
        return True


def count_finished(study: Study) -> int:
    """Trials that count towards `n_trials`: complete and pruned ones."""
    return len(study.get_trials(deepcopy=False, states=FINISHED_STATES))


def study_id(study: Study) -> str:
    """The id that ties a run folder's journal to its study, made when first asked for."""
    known = study.user_attrs.get(ID_ATTRIBUTE)
    if known is None:
        known = uuid.uuid4().hex
        study.set_user_attr(ID_ATTRIBUTE, known)
    return str(known)


def tell(study: Study, trial: Trial, entry: Entry) -> None:
    """Write a journal entry to a RUNNING trial of the study; does nothing to one that has been told."""
    with one_write(study._storage):
        _tell(study, trial, entry)


def _tell(study: Study, trial: Trial, entry: Entry) -> None:
    details = {name: value for name, value in entry.details.items() if name != FAILURE_ATTRIBUTE}
    try:
        trial.set_user_attr(RUN_ATTRIBUTE, details)
        if FAILURE_ATTRIBUTE in entry.details:
            trial.set_user_attr(FAILURE_ATTRIBUTE, entry.details[FAILURE_ATTRIBUTE])
    except optuna.exceptions.UpdateFinishedTrialError:
        return
    match entry.state:
        case "complete":
            study.tell(trial, list(entry.values) or entry.score, skip_if_finished=True)
        case "pruned":
            study.tell(trial, state=TrialState.PRUNED, skip_if_finished=True)
        case "failed":
            study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)


def replay_journal(config: StudyConfig, study: Study, journal: Journal) -> int:
    """Tell the study what the journal knows and the database lost; returns how many trials are finished.

    Only a trial that is still RUNNING with the very parameters of the journal's line is told.

    Raises:
        StudyConflict: the journal is another study's.
    """
    running = {trial.number: trial for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))}
    for entry in journal.entries():
        frozen = running.pop(entry.number, None)
        if frozen is None:
            continue
        trial = Trial(study, frozen._trial_id)
        if sample_hyperparameters(trial, config.search_space).digest() != entry.digest:
            continue
        for step, score in entry.reports:
            if step not in frozen.intermediate_values:
                trial.report(score, step)
        tell(study, trial, entry)
        logger.info("trial %d told from the journal", entry.number)
    return count_finished(study)
