"""`autoft launch --detach` and `autoft logs`: a launch that the cluster runs, and what it says."""

import argparse
import json
import os
import sys
from pathlib import Path

from autoft.artifacts import safe_url
from autoft.cli.runtime import ray_address, storage_url
from autoft.config import StudyConfig
from autoft.errors import ClusterError, ConfigError, Interrupted, StudyLocked
from storage import list_studies

_URL, _URL_FILE, _PASSWORD = "AUTOFT_STORAGE_URL", "AUTOFT_STORAGE_URL_FILE", "PGPASSWORD"
_PASSED_ON = ("AUTOFT_HOME", "AUTOFT_CACHE_DIR")  # places, no secrets
_OPTIONS = ("artifacts", "executor", "workers", "gpus_per_worker", "trials_per_worker", "threads_per_worker", "device", "trial_timeout", "final_workers")
_SWITCHES = ("final_sharded", "json")


def detach(config: StudyConfig, args: argparse.Namespace) -> int:
    """Hand a launch to the cluster and return.

    Raises:
        ConfigError: the study's database would not be reached from there.
        StudyLocked: the study is being run.
        ClusterError: there is no cluster, or it takes no jobs.
    """
    from workers.jobs import SERVER_VARIABLE, JobServer

    address = ray_address()
    if address is None and not os.environ.get(SERVER_VARIABLE):
        raise ConfigError("--detach hands the study to a Ray cluster: set RAY_ADDRESS to the HOST:PORT of its head (autoft worker --head starts one)")
    environment = job_environment()
    _refuse_running(config.study)
    launch = JobServer(address).submit(config.study, job_command(args), Path.cwd(), environment)
    if args.json:
        print(json.dumps({"event": "detached", "study": config.study, "job": launch.id}))
        return 0
    print(f"study {config.study} is job {launch.id} of the cluster; this machine is not needed any more")
    for what, command in (("what it says", f"autoft logs {config.study} --follow"), ("where it stands", f"autoft status {config.study}")):
        print(f"{what + ':':17}{command}")
    print(f"{'end it:':17}autoft stop {config.study}")
    return 0


def logs(args: argparse.Namespace) -> int:
    """Print what the study's last detached launch said."""
    from workers.jobs import JobServer

    server = JobServer(ray_address() or "auto")
    launch = server.latest(args.name)
    if launch is None:
        raise ClusterError(f"the cluster at {server.url} knows no detached launch of study {args.name!r}; autoft list shows all studies")
    if not args.follow:
        sys.stdout.write(server.output(launch))
        return 0
    try:
        for words in server.follow(launch):
            sys.stdout.write(words)
            sys.stdout.flush()
    except KeyboardInterrupt:
        raise Interrupted(f"the launch goes on; follow it again with: autoft logs {args.name} --follow") from None
    ended = server.latest(args.name) or launch
    if ended.state == "SUCCEEDED":
        return 0
    print(f"autoft logs: job {ended.id} ended as {ended.state}: {ended.message.partition(', last available')[0]}", file=sys.stderr)
    return ended.exit_code or 1


def job_environment() -> dict[str, str]:
    """What a job gets of this environment: paths. Raises ConfigError where the database is not named by a file."""
    if os.environ.get(_URL):
        raise ConfigError(
            f"--detach: {_URL} holds a password that must not travel; put the URL in a file that the head's machine sees as well, and set {_URL_FILE} to its path"
        )
    file = os.environ.get(_URL_FILE)
    if not file:
        raise ConfigError(
            f"--detach: the embedded database belongs to this machine; put the URL of a Postgres server in a file that the head's machine "
            f"sees as well, and set {_URL_FILE} to its path"
        )
    kept = {name: str(Path(os.environ[name]).expanduser().absolute()) for name in _PASSED_ON if os.environ.get(name)}
    return {**kept, _URL_FILE: str(Path(file).expanduser().absolute())}


def job_command(args: argparse.Namespace) -> list[str]:
    """The same launch, not detached, with absolute paths. Raises ConfigError if it would hold a secret: Ray keeps and shows it."""
    if args.artifacts is not None and safe_url(args.artifacts) != args.artifacts:
        raise ConfigError(f"--artifacts {safe_url(args.artifacts)} has credentials in it, which --detach would show to the cluster; configure them on its nodes")
    command = [sys.executable, "-m", "autoft.cli.main", "launch", str(args.study.absolute()), "--runs", str(args.runs.absolute())]
    for setting in args.set:
        command += ["--set", setting]
    for name in _OPTIONS:
        value = getattr(args, name, None)
        if value is not None:
            command += [f"--{name.replace('_', '-')}", f"{value:g}" if isinstance(value, float) else str(value)]
    switches = [f"--{name.replace('_', '-')}" for name in _SWITCHES if getattr(args, name, False)]
    return [*command, *switches]


def _refuse_running(study: str) -> None:
    """Ask the database, as the job will: without a password of this environment."""
    had_password = os.environ.pop(_PASSWORD, None) is not None
    url = storage_url()
    if had_password and url.is_postgres and url.sqlalchemy.password is None:
        raise ConfigError(f"--detach: {_PASSWORD} does not travel; write the password into the URL in the file of {_URL_FILE}")
    owner = next((summary.locked_by for summary in list_studies(url) if summary.name == study), None)
    if owner is not None:
        raise StudyLocked(f"study {study!r} is run by {owner} (in {url.safe}); wait for it to finish or stop it with: autoft stop {study}")
