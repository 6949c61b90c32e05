"""Fuzz one target with atheris: `python -m tests.fuzz.one TARGET [libFuzzer's options] [corpus folders]`. Started by `tests.fuzz.run`."""

import sys

import atheris

from autoft.errors import AutoFTError

# Of what the targets import, the modules whose branches guide the fuzzer: our own readers, and the pure-Python ones below them.
INSTRUMENTED = (
    "autoft.config",
    "autoft.data",
    "autoft.inputs",
    "autoft.journal",
    "autoft.report.trials",
    "autoft.report.schema",
    "autoft.models.checkpoint",
    "autoft.models.dimensions",
    "autoft.models.delta",
    "storage.urls",
    "tarfile",
    "braceexpand",
    "zipfile",
)

with atheris.instrument_imports(include=list(INSTRUMENTED)):
    from tests.fuzz import targets


def main() -> None:
    """Run until libFuzzer is told to stop, or something other than an AutoFTError is raised."""
    name = sys.argv.pop(1)

    def once(data: bytes) -> None:
        try:
            targets.outcome(name, data)
        except AutoFTError:
            raise AssertionError("targets.outcome lets no AutoFTError through") from None

    atheris.Setup(sys.argv, once)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
