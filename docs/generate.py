"""Print docs/cli.md and docs/study-file.md from the code, so that they cannot differ from it: `python -m docs.generate`.

`--check` writes nothing and exits with 1 if a file is out of date; the test suite runs that.
"""

import argparse
import os
import sys
from pathlib import Path

FOLDER = Path(__file__).parent


def cli_page() -> str:
    """Help of every command."""
    os.environ["COLUMNS"] = "110"
    from autoft.cli.main import build_parser

    parser = build_parser()
    actions = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    parts = ["# Command line", "Printed from the code by `make docs`.", _block(parser.format_help())]
    for name, command in actions[0].choices.items():
        parts += [f"## autoft {name}", _block(command.format_help())]
    return "\n\n".join(parts) + "\n"


def study_file_page() -> str:
    """Every field of a study file."""
    from autoft.cli.starter import starter
    from autoft.config import ArraysDataset, CsvDataset, FolderDataset, WebDataset

    parts = [
        "# The study file",
        "Printed from the code by `make docs`. This is what `autoft init` writes; every field is here with its default.",
        "```yaml\n" + starter() + "```",
        "## Layouts",
        "Every data set names its layout, and takes `slice`, `max_examples` and `balanced` beside the layout's own fields.",
    ]
    for model in (FolderDataset, CsvDataset, WebDataset, ArraysDataset):
        layout = model.model_fields["layout"].annotation.__args__[0]  # type: ignore[union-attr]
        rows = [f"| `{name}` | {field.description} |" for name, field in model.model_fields.items() if name != "layout"]
        parts += [f"### {layout}", (model.__doc__ or "").strip(), "\n".join(["| field | meaning |", "|---|---|", *rows])]
    return "\n\n".join(parts) + "\n"


def _block(text: str) -> str:
    return f"```\n{text.rstrip()}\n```"


def main() -> int:
    """Write both pages, or with --check compare them."""
    check = "--check" in sys.argv[1:]
    stale = []
    for name, page in (("cli.md", cli_page()), ("study-file.md", study_file_page())):
        path = FOLDER / name
        if check and (not path.is_file() or path.read_text(encoding="utf-8") != page):
            stale.append(name)
        elif not check:
            path.write_text(page, encoding="utf-8")
    if stale:
        sys.stderr.write(f"out of date: {', '.join(stale)}; run `make docs`\n")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
