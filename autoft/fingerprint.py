"""What makes two studies the same: weights, data content, classes, search space, metric, trial section and seed.

Not where files lie, how many trials are run or by which workers: a study moves from a laptop to a cluster unchanged.
"""

from collections.abc import Mapping
from typing import Any

from optuna.study import Study

from autoft.config import StudyConfig, section_hash
from autoft.data import StudyData
from autoft.data.descriptions import Descriptions
from autoft.errors import StudyConflict, StudyNotFound

FINGERPRINT_ATTRIBUTE = "autoft:fingerprint"
Sections = Mapping[str, Any]


def fingerprint_sections(
    config: StudyConfig, weights: str, data: StudyData, descriptions: Descriptions | None = None
) -> dict[str, Any]:
    """The parts of a study's identity by name, each small enough to be shown to a person.

    Args:
        weights: digest of the zero-shot towers (`state_digest`).
        descriptions: of the classes, in a study that has them; others have nothing of it in their identity.
    """
    return {
        "model.weights": weights,
        "model.batch_norm": config.model.batch_norm,
        "model.precision": config.model.precision,
        "data.classes": list(data.classes.names),
        "data.templates": list(config.data.templates),
        "data.train": data.train.content_hash[:16],
        "data.val_ood": data.val_ood.content_hash[:16],
        "metric": config.metric,
        "search_space": _without_unused(config.search_space.model_dump(mode="json")),
        "search.seed": config.search.seed,
        "search.objectives": list(config.search.objectives),
        "trial": config.trial.model_dump(mode="json"),
        **_of_descriptions(config, descriptions),
    }


def _of_descriptions(config: StudyConfig, descriptions: Descriptions | None) -> dict[str, Any]:
    return {} if descriptions is None else {"data.descriptions": section_hash(descriptions), "drm": config.drm.model_dump(mode="json")}


def _without_unused(space: dict[str, Any]) -> dict[str, Any]:
    """The search space without fields newer than the first studies, where they are empty: those keep their identity."""
    return {name: value for name, value in space.items() if value or name not in ("knobs", "fixed")}


def fingerprint(sections: Sections) -> str:
    """16 hex digits over all sections."""
    return section_hash(sections)


def check_fingerprint(study: Study, sections: Sections) -> None:
    """Compare with what the study was created with; a study without trials or fingerprint takes this one.

    Raises:
        StudyConflict: listing each section that differs, with both values.
    """
    known = study.user_attrs.get(FINGERPRINT_ATTRIBUTE)
    if known is None:
        if len(study.get_trials(deepcopy=False)) > 0:
            raise StudyConflict(f"study {study.study_name!r} exists and was not made by this program; choose another name")
        study.set_user_attr(FINGERPRINT_ATTRIBUTE, dict(sections))
        return
    differing = list(_differences(known, sections))
    if differing:
        raise StudyConflict(
            f"study {study.study_name!r} exists and was made from other inputs:\n"
            + "\n".join(f"  {name}: {_shown(old)} there, {_shown(new)} here" for name, old, new in differing)
            + "\nGive this one another name (--set study=NAME), or restore what changed."
        )


def known_fingerprint(study: Study) -> str:
    """The fingerprint a study was created with. Raises StudyNotFound if it was not made by this program."""
    known = study.user_attrs.get(FINGERPRINT_ATTRIBUTE)
    if known is None:
        raise StudyNotFound(f"study {study.study_name!r} was not made by this program")
    return fingerprint(known)


def _differences(old: Sections, new: Sections, prefix: str = "") -> list[tuple[str, Any, Any]]:
    found: list[tuple[str, Any, Any]] = []
    for name in [*old, *(name for name in new if name not in old)]:
        before, after = old.get(name), new.get(name)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += _differences(before, after, f"{prefix}{name}.")
        elif before != after:
            found.append((prefix + name, before, after))
    return found


def _shown(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
