"""Whether the dimensions in an open_clip_config.json can be those of the weights beside it, before a model of that size is made.

A config of a hundred bytes can ask for a model of any size, and making it would fill the memory long before its weights are found not to
fit. Each rule counts some of the model's weights, at one byte each: a true config never has more of them than its weights file has bytes.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

MAX_LAYERS = 1_000
MAX_IMAGE_SIZE = 4_096  # pixels a side
MAX_CONTEXT = 8_192  # tokens; the mask of a text tower has their square
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.npz")


def weights_bytes(folder: Path) -> int:
    """Bytes of the largest weights file in a folder."""
    return max((path.stat().st_size for pattern in _WEIGHTS for path in folder.glob(pattern) if path.is_file()), default=0)


def impossible_dimension(model_cfg: Mapping[str, Any], available: int) -> str | None:
    """The first dimension that cannot be, as a sentence, or None.

    Args:
        model_cfg: with the mappings vision_cfg and text_cfg.
        available: bytes of the weights.
    """
    for name, most in _limits(model_cfg):
        value = _number(model_cfg, name)
        if value is not None and not 0 <= value <= most:
            return f"{name} = {value:g} must lie in [0, {most:,}]"
    for what, count in _counts(model_cfg):
        if count > available:
            return f"{what} alone would have {count:,.0f} weights, and the weights file has {available:,} bytes"
    return None


def _limits(model_cfg: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for tower in ("vision_cfg", "text_cfg"):
        yield from ((f"{tower}.layers", MAX_LAYERS), (f"{tower}.width", 1 << 20), (f"{tower}.heads", 1 << 12), (f"{tower}.mlp_ratio", 100))
    yield from (("embed_dim", 1 << 20), ("vision_cfg.image_size", MAX_IMAGE_SIZE), ("vision_cfg.patch_size", MAX_IMAGE_SIZE))
    yield from (("text_cfg.context_length", MAX_CONTEXT), ("text_cfg.vocab_size", 1 << 24))


def _counts(model_cfg: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Kinds of weights and how many there are of each; what a config leaves out counts as 0."""

    def value(name: str) -> float:
        return _number(model_cfg, name) or 0.0

    for tower in ("vision_cfg", "text_cfg"):
        width, mlp = value(f"{tower}.width"), _number(model_cfg, f"{tower}.mlp_ratio") or 1.0
        if not isinstance(model_cfg[tower].get("layers"), list):  # a ResNet's width is that of its first stage
            yield f"the layers of {tower}", value(f"{tower}.layers") * (4 + 2 * mlp) * width**2
            yield f"the projection of {tower}", value("embed_dim") * width
    patches = (value("vision_cfg.image_size") / value("vision_cfg.patch_size")) ** 2 if value("vision_cfg.patch_size") else 0.0
    yield "the positions of vision_cfg", patches * value("vision_cfg.width")
    yield "the patches of vision_cfg", 3 * value("vision_cfg.patch_size") ** 2 * value("vision_cfg.width")
    yield "the words of text_cfg", value("text_cfg.vocab_size") * value("text_cfg.width")
    yield "the positions of text_cfg", value("text_cfg.context_length") * value("text_cfg.width")


def _number(model_cfg: Mapping[str, Any], name: str) -> float | None:
    """A dimension by dotted name; of several, as the stages of a ResNet or the sides of an image, the sum."""
    value: Any = model_cfg
    for part in name.split("."):
        value = value.get(part)
    parts = value if isinstance(value, list) else [value]
    if not all(isinstance(part, int | float) for part in parts):
        return None
    return float(sum(parts))
