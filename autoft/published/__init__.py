"""Fine-tuning configurations that AutoFT's authors published, as data files beside this one."""

from functools import cache
from importlib import resources
from typing import Any

import yaml


@cache
def published_configuration(name: str) -> dict[str, Any]:
    """`lr`, `weight_decay`, `seed` and `loss_weights` of a published configuration (iwildcam, fmow, imagenet)."""
    text = resources.files(__name__).joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    values: dict[str, Any] = yaml.safe_load(text)
    return values
