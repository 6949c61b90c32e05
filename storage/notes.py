"""A study's note and figures in optuna-dashboard, written by the study's owner and only where they have changed."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

import optuna

from storage.seam import storage_errors

# Markdown's definitions of links that nothing refers to: they show nothing. Between them the note is ours, around them a visitor's.
_BEGIN, _END = "[//]: # (autoft begin)", "[//]: # (autoft end)"
_OURS = re.compile(re.escape(_BEGIN) + r".*?" + re.escape(_END), re.DOTALL)
_STORED = "autoft:figures"  # study system attribute: digest of each figure as it was stored last
_LARGEST_NOTE = 50_000  # characters; kept in pieces of 2045, each a row that every visitor reads every few seconds
_LARGEST_FIGURE = 100_000


def update_dashboard(study: optuna.Study, note: str, figures: Mapping[str, Mapping[str, Any]]) -> bool:
    """Show a note and figures with a study in optuna-dashboard; returns whether anything had to be written.

    What a person wrote into the note, before or after our part, stays. A figure that is no longer given stays as it was.

    Args:
        study: through the connection of its owner.
        note: Markdown, names in it escaped; see `autoft.report.dashboard.escape_markdown`.
        figures: plotly's JSON (`data` and `layout`) by id: letters, digits, - _ and . .

    Raises:
        StorageError: the database cannot be written.
        ValueError: a note or a figure is too large to be kept in the database, or an id is not one.
    """
    if len(note) > _LARGEST_NOTE:
        raise ValueError(f"a note of {len(note)} characters is too large; at most {_LARGEST_NOTE}")
    with storage_errors():
        changed = _update_note(study, note)
        stored = dict(study._storage.get_study_system_attrs(study._study_id).get(_STORED, {})) if figures else {}
        written = {name: digest for name, figure in figures.items() if (digest := _update_figure(study, name, figure, stored.get(name)))}
        if written:
            study._storage.set_study_system_attr(study._study_id, _STORED, {**stored, **written})
    return changed or bool(written)


def _update_note(study: optuna.Study, note: str) -> bool:
    from optuna_dashboard import get_note, save_note  # takes a second and a half, when workers have been started

    known = get_note(study)
    ours = f"{_BEGIN}\n\n{note.strip().replace(_END, '')}\n\n{_END}"
    merged = _OURS.sub(lambda _: ours, known, count=1) if _OURS.search(known) else f"{known.rstrip()}\n\n{ours}".lstrip()
    if merged == known:
        return False
    save_note(study, merged)
    return True


def _update_figure(study: optuna.Study, name: str, figure: Mapping[str, Any], known: str | None) -> str | None:
    """The digest of a figure that had to be stored; None where it is stored already."""
    text = json.dumps(figure, separators=(",", ":"), allow_nan=False)
    if len(text) > _LARGEST_FIGURE:
        raise ValueError(f"figure {name!r} takes {len(text)} characters; at most {_LARGEST_FIGURE}")
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    if digest == known:
        return None
    from optuna_dashboard import save_plotly_graph_object

    save_plotly_graph_object(study, _Figure(text), graph_object_id=name)
    return digest


class _Figure:
    """What optuna-dashboard asks of a plotly figure, so that plotly itself, which is large, is not needed."""

    def __init__(self, text: str) -> None:
        self._text = text

    def to_json(self) -> str:
        return self._text
