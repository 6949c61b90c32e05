"""`autoft pause`, `resume`, `stop` and `cancel`: what is wished of a study, wherever its coordinator runs."""

import argparse

from autoft.cli.runtime import storage_url
from autoft.lifeline import Wish
from storage import StorageURL, ask, list_studies

_EFFECT = {
    Wish.PAUSE: "no new trial is started; those that run go on",
    Wish.RUN: "it goes on",
    Wish.STOP: "no new trial is started, those that run end, and then the run; the same launch command goes on",
    Wish.CANCEL: "trials that run are given up, and the run ends; the same launch command goes on with new trials",
}


def pause(args: argparse.Namespace) -> int:
    """Start no new trials."""
    return _wish(args.name, Wish.PAUSE)


def resume(args: argparse.Namespace) -> int:
    """Take a pause back."""
    return _wish(args.name, Wish.RUN)


def stop(args: argparse.Namespace) -> int:
    """End the run when the trials that run have ended."""
    return _wish(args.name, Wish.STOP)


def cancel(args: argparse.Namespace) -> int:
    """End the run now."""
    return _wish(args.name, Wish.CANCEL)


def _wish(name: str, wish: Wish) -> int:
    url = storage_url()
    owner = _owner(url, name)
    if owner is None and wish in (Wish.STOP, Wish.CANCEL):
        print(f"nobody runs study {name}: there is nothing to {wish.value}")
        return 0
    ask(url, name, wish)
    if owner is None:
        then = "it will wait, once launched, until it is resumed" if wish == Wish.PAUSE else "`autoft launch` starts it"
        print(f"nobody runs study {name}; {then}")
    else:
        print(f"study {name} ({owner}): {_EFFECT[wish]}")
    return 0


def _owner(url: StorageURL, name: str) -> str | None:
    return next((summary.locked_by for summary in list_studies(url) if summary.name == name), None)
