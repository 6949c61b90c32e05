"""docs/methods.md says what the code does: its table, its fields, its examples, its figures, the files it names."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import yaml

from autoft.cli.finetune import _Given, _named_or_read
from autoft.cli.parser import build_parser
from autoft.compare.plan import COMPARED, LR_FACTOR, SOUP_MEMBERS, default_methods, tuned_with
from autoft.comparison.records import json_rows
from autoft.config import METHOD_TERM_NAMES, Constraint, Knob, SearchSpaceConfig, load_config
from autoft.config.knobs import EXTENDED_KNOBS
from autoft.methods import METHODS, Setting, method_hyperparameters
from autoft.models import load_checkpoint, read_state
from autoft.models.delta import load_delta
from autoft.search_space import Hyperparameters
from tests.comparison.factory import comparison
from tests.runs import load_workspace, one_thread, stages
from tests.studies import study_document, write_study

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
ARXIV = re.compile(r"\b\d{4}\.\d{5}\b")
SETTING = Setting(SearchSpaceConfig(base_lr=1e-5), entries=1, seed=0)
FLOWING = " ".join(PAGE.split())


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)


def table(heading: str) -> list[list[str]]:
    """The cells of the table whose first column is called so, without its head."""
    lines = PAGE[PAGE.index(f"| {heading} |") :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


ROWS = {name: row for row in table("name") for name in quoted(row[0])}


def test_the_table_has_every_method_once() -> None:
    assert sorted(name for row in table("name") for name in quoted(row[0])) == sorted({*COMPARED, *METHODS})


@pytest.mark.parametrize("name", sorted(ROWS))
def test_a_row_has_its_methods_source(name: Any) -> None:
    """The numbers of `Method.source`, and of others one that is somewhere in the code: none is made up."""
    found = set(ARXIV.findall(ROWS[name][3]))
    if name in METHODS and ARXIV.search(METHODS[name].source):
        assert found == set(ARXIV.findall(METHODS[name].source))
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "autoft").rglob("*.py"))
    assert (len(found) == 1 or name == "zero_shot") and all(number in code for number in found)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_row_has_what_is_tuned_with_its_range(name: Any) -> None:
    """Of one weight that trains, so that L2-SP's range is what its row multiplies."""
    knobs = METHODS[name].knobs(SETTING)
    assert quoted(ROWS[name][2]) == list(knobs)
    assert all(range_text(knob) in ROWS[name][2] for knob in knobs.values())


def range_text(knob: Knob) -> str:
    return f"{knob.low:g} to {knob.high:g}" + (", log" if knob.log else "")


@pytest.mark.parametrize("name", sorted(METHODS))
def test_what_is_reconstructed_is_said(name: Any) -> None:
    assert ROWS[name][4] or not METHODS[name].reconstructed


def test_the_fields_are_those_of_a_hyperparameters_file_with_their_defaults() -> None:
    rows = {name: default for cells in table("field") for name, default in zip(quoted(cells[0]), defaults(cells), strict=True)}
    assert set(rows) == set(_Given.model_fields) == set(Hyperparameters.__dataclass_fields__)
    for name, default in rows.items():
        info = _Given.model_fields[name]
        assert info.is_required() == (default == "needed")
        assert info.is_required() or info.default == json.loads(default), name
    (terms,) = [row[2] for row in table("field") if row[0] == "`loss_weights`"]
    assert set(quoted(terms)) == set(METHOD_TERM_NAMES)


def defaults(cells: list[str]) -> list[str]:
    found = quoted(cells[1]) or [cells[1]]
    names = quoted(cells[0])
    return found if len(found) == len(names) else found * len(names)


def read(text: str, folder: Path) -> Hyperparameters:
    path = folder / "mine.json"
    path.write_text(text)
    _, found = _named_or_read(str(path))
    assert found is not None
    return found


def test_the_examples_of_hyperparameters_are_the_methods_they_are_said_to_be(tmp_path: Path) -> None:
    for name, text in zip(("lipsum_ft", "saft", "lp_ft", "clipood"), blocks("json"), strict=False):
        assert read(text, tmp_path) == method_hyperparameters(name, SETTING), name  # type: ignore[arg-type]


@pytest.mark.parametrize("text", blocks("yaml"))
def test_the_examples_of_sections_load(text: str, tmp_path: Path, tiny_vit: Path) -> None:
    document = study_document(tmp_path / "data", tiny_vit)
    for section, fields in yaml.safe_load(text).items():
        document[section] = {**document.get(section, {}), **fields}
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    config = load_config(path).model_dump(mode="json", exclude_none=True)
    for section, fields in yaml.safe_load(text).items():
        assert all(contained(config[section][name], value) for name, value in fields.items())


def contained(found: Any, wanted: Any) -> bool:
    """Whether a configuration has what was written, beside defaults; paths are absolute in it."""
    if isinstance(wanted, dict):
        return all(contained(found[key], value) for key, value in wanted.items())
    return str(found).endswith(wanted) if isinstance(wanted, str) else bool(found == wanted)


def test_the_figures_of_the_rule_are_the_codes(tmp_path: Path, tiny_vit: Path) -> None:
    args = build_parser().parse_args(["compare", "study.yaml"])
    low, high = LR_FACTOR
    assert f"by default {args.evaluations}." in FLOWING and f"seeds 0 to {args.seeds - 1}, the" in FLOWING
    assert f"over {low:g} to {high:g} times `base_lr`" in FLOWING and f"members: at most {SOUP_MEMBERS}" in FLOWING
    without, described = (
        work(default_methods(load_config(write_study(tmp_path / str(there), tiny_vit, **changes))), args)
        for there, changes in ((False, {}), (True, {"data__descriptions": "d.json"}))
    )
    said = "{} trials and {} full fine-tunes in a study without descriptions, {} and {} in one with"
    assert said.format(*without, *described) in FLOWING


def work(methods: tuple[str, ...], args: Any) -> tuple[int, int]:
    """Tuning trials and full fine-tunes of a comparison."""
    tuned: set[Any] = {name for method in methods if (name := tuned_with(method)) is not None}
    probes = {name for name in tuned if name in METHODS and not METHODS[name].tunes_lr}
    return (len(tuned) - len(probes)) * args.evaluations + len(probes), args.seeds * (len(tuned) - len(probes) + SOUP_MEMBERS - 1)


def test_what_the_extended_preset_searches_is_listed() -> None:
    listed = FLOWING[FLOWING.index("The preset `extended` adds") :].partition("search ")[2].partition(":")[0]
    knobs = {kind if kind not in ("loss_weight", "use") else rest for kind, _, rest in (name.partition("/") for name in EXTENDED_KNOBS)}
    assert set(quoted(listed)) == knobs and "(all but TPGM)" in listed
    assert set(get_args(Constraint)) - set(EXTENDED_KNOBS["constraint"]["choices"]) == {"tpgm"}


def test_the_keys_of_json_are_listed() -> None:
    listed = FLOWING[FLOWING.index("With `--json`, stdout is") :].partition(":")[2].partition(".")[0]
    assert quoted(listed) == list(json_rows(comparison())[0])


def named_files() -> Iterator[str]:
    text = re.sub(r"^```\w*\n.*?^```", "", PAGE, flags=re.DOTALL | re.MULTILINE)
    yield from (span for span in quoted(text) if re.fullmatch(r"(autoft|tests)/[\w/.]+", span))


def test_the_files_it_names_are_there() -> None:
    assert len(set(named_files())) > 10
    assert [name for name in named_files() if not (ROOT / name).exists()] == []


def test_the_zero_shot_checkpoint_and_a_delta_give_the_fine_tuned_weights(
    tmp_path: Path, tiny_vit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the page has it: its JSON for the zero-shot checkpoint, and its lines of Python."""
    texts = blocks("json")
    with one_thread():
        for name, text in (("zero", texts[-1]), ("a", texts[1])):
            stages(load_config(write_study(tmp_path / name, tiny_vit)), tmp_path / name, read(text, tmp_path))
    (tmp_path / "runs").mkdir()
    for name in ("zero", "a"):
        (tmp_path / "runs" / name).symlink_to(tmp_path / name / "run")
    monkeypatch.chdir(tmp_path)
    zero_shot = load_checkpoint(Path("runs/zero/checkpoints/final"))[0].state_dict()
    expected = load_workspace(tmp_path / "zero", tiny_vit).zero_shot.tensors
    assert all(zero_shot[name].equal(tensor) for name, tensor in expected.items())
    (text,) = blocks("python")
    names = {alias.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom) for alias in node.names}
    scope: dict[str, Any] = {}
    exec(compile(text, "docs/methods.md", "exec"), scope)
    assert names >= {"load_checkpoint", "load_delta"} and scope["load_delta"] is load_delta
    saved = read_state(Path("runs/a/checkpoints/final"), torch.device("cpu"))
    assert all(saved[name].equal(tensor) for name, tensor in scope["model"].state_dict().items())
    assert any(not saved[name].equal(tensor) for name, tensor in zero_shot.items()), "SAFT has changed something"
