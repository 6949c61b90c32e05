"""Detached launches as jobs of a Ray cluster: submitted, found again by the study's name, listened to."""

import asyncio
import logging
import os
import shlex
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from autoft.errors import ClusterError, StudyLocked
from workers.cluster import check_answers, first_line

SERVER_VARIABLE = "RAY_API_SERVER_ADDRESS"
_STUDY = "autoft-study"
_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
_FAILURES = (AuthenticationError, RuntimeError, ValueError, OSError)  # what requests raises is an OSError


@dataclass(frozen=True)
class Launch:
    """A detached launch: the `attempt`-th of its study on this cluster."""

    study: str
    attempt: int
    state: str  # PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED
    message: str
    exit_code: int | None  # once it has ended by itself

    @property
    def id(self) -> str:
        """The job's submission id."""
        return submission_id(self.study, self.attempt)

    @property
    def ended(self) -> bool:
        return self.state in _ENDED


def submission_id(study: str, attempt: int) -> str:
    """The id of a study's job. Ray keeps an id for ever, so a study's next launch has another."""
    return f"autoft-{study}-{attempt}"


class JobServer:
    """The job server of a cluster; the cluster's token is shown to it.

    Args:
        address: HOST:PORT of the cluster's head, asked where its job server is; not looked at where RAY_API_SERVER_ADDRESS is set.

    Raises:
        ClusterError: nothing answers, or it asks for another token.
    """

    def __init__(self, address: str | None) -> None:
        self._head = None if address == "auto" else address
        self.url = os.environ.get(SERVER_VARIABLE, "")
        if not self.url and address is not None:
            check_answers(address)
        logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.ERROR)
        try:
            self._client = JobSubmissionClient(self.url or address)
            self.url = self._client.get_address()
        except SystemExit:  # how Ray says that it finds no cluster
            raise ClusterError("no Ray cluster runs on this machine; set RAY_ADDRESS to the HOST:PORT of its head") from None
        except _FAILURES as error:
            raise self._failure(error) from None

    def submit(self, study: str, command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Launch:
        """Start a command on the head's machine, in a folder, as a launch of the study.

        Raises:
            StudyLocked: a launch of the study runs already.
            ClusterError: the job server does not take it.
        """
        last = self.latest(study)
        if last is not None and not last.ended:
            raise StudyLocked(f"study {study!r} is run by job {last.id} ({last.state}) of the cluster at {self.url}; see autoft logs {study}")
        launch = Launch(study, 1 if last is None else last.attempt + 1, "PENDING", "", None)
        # Ray tells a job the cluster that was started last on the head's machine, which may be another one.
        there = [] if self._head is None else ["env", f"RAY_ADDRESS={self._head}"]
        try:
            self._client.submit_job(
                entrypoint=f"cd {shlex.quote(str(folder))} && exec {shlex.join([*there, *command])}",
                submission_id=launch.id,
                runtime_env={"env_vars": dict(environment)},
                metadata={_STUDY: study},
            )
        except _FAILURES as error:
            raise self._failure(error) from None
        return launch

    def latest(self, study: str) -> Launch | None:
        """The study's last launch that the cluster knows. Raises ClusterError."""
        try:
            jobs = [job for job in self._client.list_jobs() if (job.metadata or {}).get(_STUDY) == study and job.submission_id]
        except _FAILURES as error:
            raise self._failure(error) from None
        return max((_launch(study, job) for job in jobs), key=lambda launch: launch.attempt, default=None)

    def output(self, launch: Launch) -> str:
        """All that a launch has said so far. Raises ClusterError."""
        try:
            return str(self._client.get_job_logs(launch.id))
        except _FAILURES as error:
            raise self._failure(error) from None

    def follow(self, launch: Launch) -> Iterator[str]:
        """What a launch has said and says, until it ends. Raises ClusterError, also when the connection is lost."""
        words = self._client.tail_job_logs(launch.id)
        with asyncio.Runner() as runner:
            while True:
                try:
                    word = runner.run(_next(words))
                except _FAILURES as error:
                    raise self._failure(error) from None
                if word is None:
                    return
                yield word

    def _failure(self, error: BaseException) -> ClusterError:
        where = f"the job server at {self.url}" if self.url else "the cluster's job server"
        if isinstance(error, AuthenticationError):
            return ClusterError(f"{where} asks for another token than ours; name the file of the cluster's with RAY_AUTH_TOKEN_PATH")
        hint = (
            f"; a head's job server is open to its own machine only unless it was started with --job-server 0.0.0.0:8265; "
            f"{SERVER_VARIABLE} names it where it is reached by another address, as through a tunnel"
        )
        return ClusterError(f"{where} gives no answer: {first_line(error)}{hint if isinstance(error, OSError) else ''}")


def _launch(study: str, job: Any) -> Launch:
    attempt = job.submission_id.rpartition("-")[2]
    state = str(getattr(job.status, "value", job.status))
    return Launch(study, int(attempt) if attempt.isdecimal() else 0, state, job.message or "", job.driver_exit_code)


async def _next(words: AsyncIterator[str]) -> str | None:
    return await anext(words, None)
