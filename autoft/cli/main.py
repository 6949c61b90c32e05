"""`autoft`: parse the command line, run one command, turn errors into one message and an exit code.

Commands import what they need when they run, so that `autoft --help` is quick.
"""

import errno
import importlib
import logging
import os
import sys
from collections.abc import Sequence

from autoft.cli.parser import build_parser
from autoft.errors import AutoFTError
from autoft.threads import wait_briefly

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM)

COMMANDS = {
    "launch": ("launch", "launch"),
    "demo": ("launch", "demo"),
    "finetune": ("finetune", "finetune"),
    "compare": ("compare", "compare"),
    "init": ("starter", "init"),
    "plan": ("plan", "plan"),
    "describe": ("describe", "describe"),
    "evaluate": ("evaluate", "evaluate"),
    "predict": ("evaluate", "predict"),
    "interpolate": ("interpolate", "interpolate"),
    "list": ("studies", "list_"),
    "show": ("studies", "show"),
    "status": ("studies", "status"),
    "pause": ("control", "pause"),
    "resume": ("control", "resume"),
    "stop": ("control", "stop"),
    "cancel": ("control", "cancel"),
    "worker": ("worker", "worker"),
    "logs": ("jobs", "logs"),
    "cache": ("cache", "cache"),
    "doctor": ("doctor", "doctor"),
    "dashboard": ("dashboard", "dashboard"),
    "db": ("database", "database"),
    "runs": ("runs", "runs"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    args = build_parser().parse_args(argv)
    _configure_logging()
    wait_briefly(os.environ)
    module, function = COMMANDS[args.command]
    try:
        return int(getattr(importlib.import_module(f"autoft.cli.{module}"), function)(args) or 0)
    except AutoFTError as error:
        print(f"autoft {args.command}: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141 if args.command in ("launch", "demo", "compare", "finetune") else 0  # a run has not ended well; a list was only cut short
    except OSError as error:
        if error.errno not in _DISK:
            raise
        print(f"autoft {args.command}: {error.strerror}: {error.filename or 'a file'}; what was written before stays whole", file=sys.stderr)
        return 7
    except KeyboardInterrupt:
        print(f"autoft {args.command}: interrupted", file=sys.stderr)
        return 130


class _ToStderr(logging.Handler):
    """Prints to whatever stderr is at the time, so that lines go above a live view."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


def _configure_logging() -> None:
    """Warnings of our own on stderr; of other libraries, errors."""
    handler = _ToStderr()
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.ERROR, handlers=[handler])
    for ours in ("autoft", "workers", "storage"):
        logging.getLogger(ours).setLevel(logging.WARNING)
    logging.disable(logging.INFO)  # libraries that set up a logger of their own when they are imported, such as Optuna


if __name__ == "__main__":
    sys.exit(main())
