"""`python -m tests.chaos.launch_with_kill POINT N -- launch FILE ...`: the command line, killed after the N-th durable step of that name.

`record FILE` instead of POINT and N writes down every step's name. With `--many`, one line of JSON on stdin for each run, and each run is a
process forked from this one, which has imported everything already: quick enough to try many points. Its exit code is the answer.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.chaos.steps import Killer, Recorder, Steps


def main(arguments: list[str]) -> int:
    """Run one launch, or with `--many` serve."""
    if arguments == ["--many"]:
        return serve()
    point, which, dashes, *command = arguments
    assert dashes == "--", __doc__
    return launch(watcher(point, which), command)


def watcher(point: str, which: str) -> Callable[[str], None] | None:
    """What is called after every step; None for `none`."""
    if point == "none":
        return None
    return Recorder(Path(which)) if point == "record" else Killer(point, int(which))


def launch(passed: Callable[[str], None] | None, command: list[str]) -> int:
    """The command line, with every durable step watched."""
    from autoft.cli.main import main as autoft

    if passed is not None:
        Steps(passed).install()
    return autoft(command)


def serve() -> int:
    """Fork one process for each request; answer with how it ended."""
    import autoft.cli.launch
    import autoft.cli.progress
    import autoft.pipeline
    import storage

    assert autoft.pipeline and storage
    print(json.dumps({"event": "ready"}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            _run(request)
        _, status = os.waitpid(child, 0)
        print(json.dumps({"event": "ended", "code": os.waitstatus_to_exitcode(status)}), flush=True)
    return 0


def _run(request: dict[str, Any]) -> None:
    """In the child: its own session, output and environment; ends the process."""
    code = 1
    try:
        os.setsid()
        sys.stdout.flush()
        output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(output, stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.update(request["env"])
        sys.argv = ["autoft", *request["command"]]
        code = launch(watcher(request["point"], str(request["which"])), request["command"])
        sys.stdout.flush()
        sys.stderr.flush()
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        import atexit

        atexit._run_exitfuncs()
        os._exit(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
