"""The program behind docs/results/autoft.md: its commands are understood, and its intervals are Student's."""

from pathlib import Path

import pytest
from scipy import stats

from autoft.cli.parser import build_parser
from benches.results_autoft import DATASETS, METHODS, ROWS, Cell, _cells, interval


def test_the_grid_has_every_cell_once_and_transfer_on_pacs_only() -> None:
    cells = _cells(DATASETS, [0, 1])
    assert len(cells) == len(set(cells)) == 2 * (len(DATASETS) * (len(METHODS) - 1) + 1)
    assert {cell.dataset for cell in cells if cell.method == "transfer"} == {"pacs"}
    assert {method for method, _ in ROWS} == set(METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_every_cells_command_is_understood(method: str) -> None:
    command = Cell("pacs", 1, method).command(Path("examples"), Path("runs"))
    args = build_parser().parse_args(command[3:])
    assert args.command == ("finetune" if method in ("finetune", "flyp") else "launch")
    assert f"study=pacs-{method}-1" in args.set and "search.seed=1" in args.set


def test_intervals_over_seeds_are_students() -> None:
    values = [70.0, 74.0, 73.0]
    mean, half = interval(values)
    low, high = stats.t.interval(0.95, 2, loc=stats.tmean(values), scale=stats.sem(values))
    assert (mean - half, mean + half) == pytest.approx((low, high))
