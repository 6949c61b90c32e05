"""What can go wrong, as a tree. A user's mistake is an `AutoFTError`; anything else is our bug.

    AutoFTError
    ├── ConfigError        the study file or a flag is wrong
    ├── DataError          a data set is missing, empty, corrupt or does not fit the others
    ├── ModelError         unknown model, weights that do not fit, weights that need unpickling
    ├── StorageError       the database cannot be reached or refuses us
    │   ├── StudyNotFound       no study of that name
    │   └── StorageUnavailable  the database is away; it may come back
    ├── StudyConflict      a study of that name exists and is not this one
    │   └── StudyLocked    another coordinator owns the study
    ├── ArtifactError      a run's files cannot be copied to where --artifacts says
    ├── ClusterError       the cluster cannot give what was asked for
    ├── EndpointError      a language model cannot be reached, or gives no answer that can be used
    ├── TrialCodeError     a trial failed with a bug, so every trial would
    └── Interrupted        SIGINT or SIGTERM: stopped cleanly, can be resumed

Messages name the field, the value and what would be valid. Exit codes are documented in docs/cli.md.
"""

from typing import ClassVar


class AutoFTError(ValueError):
    """Base class of every error a user can cause or mend."""

    exit_code: ClassVar[int] = 2


class ConfigError(AutoFTError):
    """The study file or a flag is wrong."""


class DataError(AutoFTError):
    """A data set is missing, empty, corrupt or does not fit the others."""


class ModelError(AutoFTError):
    """The model is unknown or its weights cannot be used."""


class StorageError(AutoFTError):
    """The database cannot be reached or refuses us."""

    exit_code = 3


class StudyNotFound(StorageError):
    """There is no study of that name."""


class StorageUnavailable(StorageError):
    """The database is away: stopped, restarting, cut off or overloaded. What was asked of it may or may not have been done."""


class ArtifactError(AutoFTError):
    """A run's files cannot be copied to where --artifacts says; the run itself is whole."""

    exit_code = 7


class ClusterError(AutoFTError):
    """The cluster cannot give what was asked for."""

    exit_code = 4


class EndpointError(AutoFTError):
    """A language model cannot be reached, or gives no answer that can be used."""

    exit_code = 4


class StudyConflict(AutoFTError):
    """A study of that name exists and was made from other inputs."""

    exit_code = 5


class StudyLocked(StudyConflict):
    """Another coordinator owns the study."""


class TrialCodeError(AutoFTError):
    """A trial failed in a way that every trial would; carries the trial's traceback."""

    exit_code = 6


class Interrupted(AutoFTError):
    """The run was stopped cleanly, by a signal or (signal number 0) by `autoft stop`; the same command goes on from there."""

    exit_code = 130

    def __init__(self, message: str, signal_number: int = 2) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number if signal_number else 0  # type: ignore[misc]
