"""`autoft db`: the tables in the database, made, migrated or looked at."""

import argparse
import json
from dataclasses import asdict

from autoft.cli.runtime import storage_url
from autoft.errors import StorageError
from storage import StorageURL
from storage.records import DatabaseState, TableState, check, init_records, upgrade
from storage.seam import storage_errors
from storage.tables import prepare_tables


def database(args: argparse.Namespace) -> int:
    """Make, migrate or check. Returns 0 if studies can be run and recorded, else the exit code of StorageError."""
    url = storage_url()
    done = None
    if args.action == "init":
        _init(url)
    elif args.action == "upgrade":
        before, after = upgrade(url)
        done = f"the tables of recorded runs were at revision {before or 'none'} and are at {after}" if before != after else None
    state = check(url)
    if args.json:
        print(json.dumps({**asdict(state), "usable": state.usable}, indent=1))
    else:
        if done:
            print(done)
        print(_text(state))
    return 0 if state.usable else StorageError.exit_code


def _init(url: StorageURL) -> None:
    with storage_errors(url):
        prepare_tables(url)
    init_records(url)


def _text(state: DatabaseState) -> str:
    facts = {
        "database": state.database,
        "server": state.server,
        "Optuna's tables": _tables(state.optuna),
        "recorded runs": _tables(state.records),
        "may create": "yes" if state.can_create else "no",
        "may write": "yes" if state.can_write else "no",
        "usable": "yes" if state.usable else "no",
    }
    lines = [f"{name:16} {value}" for name, value in facts.items()]
    return "\n".join([*lines, *(f"- {problem}" for problem in state.problems)])


def _tables(state: TableState) -> str:
    where = f" in schema {state.schema}" if state.schema else ""
    if state.found is None:
        return f"none{where}; revision {state.needed} is needed"
    return f"revision {state.found}{where}" + ("" if state.found == state.needed else f"; {state.needed} is needed")
