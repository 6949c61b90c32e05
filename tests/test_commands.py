"""Every command in the pages is one there is, and every name the code imports from itself exists."""

import argparse
import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from autoft.cli.parser import build_parser

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
PACKAGES = ("autoft", "workers", "storage")
COMMAND = re.compile(r"(?:\.venv/bin/)?(autoft (?!COMMAND)|make [a-z]|python -m )")


def subcommands() -> dict[str, argparse.ArgumentParser]:
    (found,) = [action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(found.choices)


def commands(page: Path) -> Iterator[tuple[str, bool]]:
    """The commands in a page's code blocks, which are whole, and those in running text, which may leave arguments out."""
    text = page.read_text(encoding="utf-8")
    fenced = re.compile(r"^```\w*\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
    for block in fenced.findall(text):
        yield from ((line, True) for line in block.replace("\\\n", " ").splitlines() if COMMAND.match(line))
    yield from ((span, False) for span in re.findall(r"`([^`\n]+)`", fenced.sub("", text)) if COMMAND.match(span) or span.startswith("--"))


def problem(command: str, whole: bool, capsys: pytest.CaptureFixture[str]) -> str | None:
    """What is wrong with a command; None if nothing is."""
    program, *words = shlex.split(command, comments=True)
    if program == "make":
        targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
        return None if {word for word in words if "=" not in word} <= targets else f"no target among {sorted(targets)}"
    if Path(program).name == "python":
        file = ROOT / words[1].replace(".", "/")
        there = file.with_suffix(".py").is_file() or (file / "__main__.py").is_file()
        return None if there or words[1] == "venv" else f"no module {words[1]}"
    if program.startswith("--"):
        known = {option for parser in subcommands().values() for option in parser._option_string_actions}
        unknown = {word for word in (program, *words) if word.startswith("--")} - known
        return f"no command has {sorted(unknown)}" if unknown else None
    if not whole and words[0] in subcommands():
        known = set(subcommands()[words[0]]._option_string_actions)
        unknown = {word for word in words if word.startswith("--")} - known
        return f"{words[0]} has no {sorted(unknown)}" if unknown else None
    try:
        build_parser().parse_args(words)
    except SystemExit as end:
        said = capsys.readouterr().err.strip().splitlines()
        return said[-1] if end.code else None
    return None


def test_defect_11_every_command_in_the_pages_is_understood(capsys: pytest.CaptureFixture[str]) -> None:
    """The released scripts used flags the program no longer had. Commands in a comment or with COMMAND for a name are not looked at."""
    found = [(page.name, command, whole) for page in PAGES for command, whole in commands(page)]
    whole_ones = {shlex.split(command, comments=True)[1] for _, command, whole in found if whole}
    assert {"launch", "plan", "init", "evaluate", "predict", "demo", "test"} <= whole_ones, "the pages are read"
    wrong = [(page, command, wrong) for page, command, whole in found if (wrong := problem(command, whole, capsys))]
    assert wrong == []


def test_a_command_that_is_not_understood_is_noticed(capsys: pytest.CaptureFixture[str]) -> None:
    for command, whole in (
        ("autoft launch study.yaml --autoft_epochs 10", True),
        ("autoft search study.yaml", False),
        ("autoft launch --repeats 3", False),
        ("--relative_to_flyp", False),
        ("make everything", False),
        ("python -m benches.nothing", False),
    ):
        assert problem(command, whole, capsys) is not None, command


def imported(source: Path) -> Iterator[tuple[str, str | None]]:
    """(module, name or None) of every import from our packages in a file, wherever in it."""
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)


def unresolved(module: str, name: str | None) -> str | None:
    """Why a module cannot be imported, or has no such name; None if it can and has."""
    try:
        if name is None or not hasattr(importlib.import_module(module), name):
            importlib.import_module(module if name is None else f"{module}.{name}")
    except ImportError as error:
        return str(error)
    return None


def test_defect_18_everything_imported_from_our_own_modules_exists() -> None:
    """The released wise_ft.py imported a function that was gone. Commands here import when they run, so every file is read."""
    found = [source for package in PACKAGES for source in sorted((ROOT / package).rglob("*.py"))]
    ours = [source for source in found if source.parts[-2:] != ("migrations", "env.py")]  # Alembic runs it; nobody can import it
    wrong = []
    for source in ours:
        parts = source.relative_to(ROOT).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        wrong += [f"{source.name}: {reason}" for reason in [unresolved(module, None)] if reason]
    for source in [*ours, *sorted((ROOT / "benches").glob("*.py")), *sorted((ROOT / "docs").glob("*.py"))]:
        for target, name in imported(source):
            if target.partition(".")[0] in PACKAGES and (reason := unresolved(target, name)):
                wrong.append(f"{source.name}: {reason}")
    assert wrong == []
