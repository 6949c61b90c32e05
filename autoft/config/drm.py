"""Dual risk minimisation in a study file: its section, and what cannot be asked for without descriptions of the classes."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from autoft.config.base import Section

_KNOBS = ("use/drm", "loss_weight/drm")


class DrmConfig(Section):
    """DRM-style, reconstructed: what the drm loss term makes of data.descriptions. Nothing in studies without them.

    The training code of dual risk minimisation (arXiv 2411.19757) is not published. Here its second head, made of the descriptions, is
    trained towards how near the zero-shot model finds each image to each class's descriptions, as probabilities.
    """

    normalization: Literal["per_class", "per_image", "none"] = Field(
        default="per_class",
        description="per_class: each class's similarities are brought to [0, 1] by their minimum and maximum over TRAIN; per_image: each "
        "image's over the classes; none: they stay, which needs a temperature. Reconstructed: the paper normalises, over what is not known.",
    )
    temperature: float | None = Field(
        default=None,
        gt=0,
        description="Similarities divided by this go through a softmax over the classes. Default: they are divided by their sum "
        "(reconstructed).",
    )

    @model_validator(mode="after")
    def _check_temperature(self) -> Self:
        if self.normalization == "none" and self.temperature is None:
            raise ValueError("normalization = none leaves similarities that may be negative, and needs a temperature, such as 0.01")
        return self


def without_drm_knobs(values: Any, knobs: Mapping[str, Any]) -> Any:
    """The content of a study file; without descriptions, the extended preset loses its drm knobs. What is given beside the preset stays.

    Args:
        values: as read, perhaps wrong in any way.
        knobs: of the extended preset.
    """
    data, space = (values.get(name) if isinstance(values, dict) else None for name in ("data", "search_space"))
    if not isinstance(data, dict) or data.get("descriptions") is not None or not isinstance(space, dict):
        return values
    if space.get("preset") != "extended" or "knobs" in space:
        return values
    return {**values, "search_space": {**space, "knobs": {name: knob for name, knob in knobs.items() if name not in _KNOBS}}}


def drm_fields(knobs: Iterable[str], fixed: Mapping[str, Any], methods: Mapping[str, Iterable[str]]) -> list[str]:
    """The dotted fields of a study file that ask for the drm term.

    Args:
        knobs, fixed: of the search space.
        methods: names of methods by the field that lists them.
    """
    weights = fixed.get("loss_weights")
    return [
        *(f"search_space.knobs.{name}" for name in knobs if name in _KNOBS or name.partition("/")[0] == "drm_beta"),
        *(["search_space.fixed.loss_weights.drm"] if isinstance(weights, Mapping) and "drm" in weights else []),
        *(field for field, names in methods.items() if "drm" in names),
    ]
