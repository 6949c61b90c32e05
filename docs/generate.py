"""Print docs/cli.md, docs/study-file.md and docs/presets.md from the code, so that they cannot differ from it: `python -m docs.generate`.

`--check` writes nothing and exits with 1 if a file is out of date; the test suite runs that.
"""

import argparse
import inspect
import json
import os
import sys
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Literal, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

FOLDER = Path(__file__).parent


def cli_page() -> str:
    """Help of every command."""
    os.environ["COLUMNS"] = "110"
    from autoft.cli.parser import build_parser

    parser = build_parser()
    actions = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    parts = ["# Command line", "Printed from the code by `make docs`.", _block(parser.format_help())]
    for name, command in actions[0].choices.items():
        parts += [f"## autoft {name}", _block(command.format_help())]
    return "\n\n".join(parts) + "\n"


def study_file_page() -> str:
    """Every field of a study file."""
    from autoft.cli.starter import starter
    from autoft.config import DATASET_MODELS, CorruptionsConfig, DatasetBase

    shared = ", ".join(f"`{name}`" for name in DatasetBase.model_fields)
    parts = [
        "# The study file",
        "Printed from the code by `make docs`. This is what `autoft init` writes; every field is here with its default. Published studies "
        "come as presets, ready to be run: [presets.md](presets.md).",
        "```yaml\n" + starter() + "```",
        "## Presets of the search space",
        "`search_space.preset` sets what the study file leaves out.",
        _search_space_presets(),
        "## Built-in words",
        "`data.classnames` and `data.templates` take the name of a built-in list.",
        _vocabularies(),
        "## Layouts",
        f"Every data set names its layout, and takes {shared} beside the layout's own fields.",
        _fields(DatasetBase, ()),
        "`corruptions` has:",
        _fields(CorruptionsConfig, ()),
    ]
    for model in DATASET_MODELS:
        layouts = ", ".join(get_args(model.model_fields["layout"].annotation))
        parts += [f"### {layouts}", inspect.getdoc(model) or "", _fields(model, ("layout", *DatasetBase.model_fields))]
    return "\n\n".join(parts) + "\n"


def _fields(model: type[BaseModel], without: Collection[str]) -> str:
    """A table of a section's fields: what each may be, by default and means."""
    rows = []
    for name, field in model.model_fields.items():
        if name not in without:
            default = "needed" if field.is_required() else f"`{json.dumps(field.get_default(call_default_factory=True))}`"
            rows.append((f"`{name}`", default, _cell(" ".join([*_choices(field), field.description or ""]))))
    return _table(("field", "default", "meaning"), rows)


def _choices(field: FieldInfo) -> list[str]:
    """The values of a field that takes some only, as a sentence."""
    options = [option for option in (field.annotation, *get_args(field.annotation)) if get_origin(option) is Literal]
    return [f"One of {', '.join(f'`{value}`' for value in get_args(options[0]))}."] if options else []


def _search_space_presets() -> str:
    from autoft.config import PRESETS

    rows = [(f"`{name}`", ", ".join(f"`{field}: {json.dumps(value)}`" for field, value in values.items()) or "the defaults") for name, values in PRESETS.items()]
    return _table(("preset", "what it sets"), rows)


def _vocabularies() -> str:
    from autoft.config.vocabulary import VOCABULARIES, class_names, templates

    rows = [
        (f"`{name}`", str(len(class_names(name))) if words.has_names else "", str(len(templates(name))), _cell(words.source))
        for name, words in VOCABULARIES.items()
    ]
    return _table(("name", "class names", "templates", "source"), rows)


def presets_page() -> str:
    """The presets, their sources and what they cost."""
    from autoft.presets import COMMON, preset_names, preset_notes, preset_title

    parts = [
        "# Presets",
        "Printed from the code by `make docs`. A preset is a published study as a study file:",
        "```\nautoft init fmow --data-root data/fmow_v1.1\nautoft plan fmow.yaml\nautoft launch fmow.yaml\n```",
        "Costs are in training samples, from the published sizes of the data sets. An epoch of the authors' released code is one pass over a "
        "table with a row for each image and prompt; here it is one pass over the images. Both ratios of search to final fine-tune are "
        "shown, and beside them what is published: rounded, counted in rows, or in brackets in images.",
        _costs(),
        "## What holds for all of them",
        _block("\n".join(line.removeprefix("#").removeprefix(" ") for line in COMMON.strip("#\n").splitlines())),
    ]
    for name in preset_names():
        parts += [f"## {name}", preset_title(name), _block(preset_notes(name))]
    return "\n\n".join(parts) + "\n"


def _costs() -> str:
    from autoft.presets import preset_names

    head = ("preset", "trials x steps x batch", "source", "VAL_OOD", "epochs", "search", "final", "search / final", "in rows", "published")
    return _table(head, [_cost_row(name) for name in preset_names()])


def _cost_row(name: str) -> tuple[str, ...]:
    from autoft.cli.budget import budget, compare, expected_sizes
    from autoft.config import parse_config
    from autoft.presets import preset_text

    config = parse_config(yaml.safe_load(preset_text(name)), FOLDER)
    expected = expected_sizes(config.data, {})
    sizes = {split: expected[split] or 0 for split in ("train", "val_id", "val_ood")}
    costs = budget(config, sizes)
    beside = compare(name, config, costs, sizes["train"])
    trial, table = config.trial, beside["table"]
    repeats = f" x {trial.repeats} repeats" if trial.repeats > 1 else ""
    published = f"{table['search_over_final']:.3g}" + (f" ({table['by_images']:.3g})" if "by_images" in table else "") if table else ""
    return (
        f"[{name}](#{name})",
        f"{config.search.n_trials} x {trial.steps} x {trial.batch_size}{repeats}",
        str(beside["setting"]).partition(":")[0],
        f"{sizes['val_ood']:,}",
        str(config.final.epochs),
        f"{costs['search_samples']:,}",
        f"{costs['final_samples']:,}",
        f"{costs['search_over_final']:.3g}",
        f"{beside['search_over_final_by_rows']:.3g}",
        published,
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _block(text: str) -> str:
    return f"```\n{text.rstrip()}\n```"


def main() -> int:
    """Write the pages, or with --check compare them."""
    check = "--check" in sys.argv[1:]
    stale = []
    for name, page in (("cli.md", cli_page()), ("study-file.md", study_file_page()), ("presets.md", presets_page())):
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
