"""Intermediate features of an image tower of any kind, at a few evenly spaced depths."""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

SLICES = 5  # LDIFS (arXiv 2308.13320): of its ViT with 12 blocks, the input of the first and the outputs of the 3rd, 6th, 9th and 12th

# What the layer-wise search calls a block (`autoft.optim.groups`): an entry of a list with one of these names, where lists are nested of
# the innermost. `resblocks.3` of open_clip's ViT, `layer1.0` of its ResNet, `stages.2.blocks.7` of a ConvNeXt, `blocks.3` of a MobileNet.
_BLOCK = re.compile(r"(?:.*\.)?(?:resblocks|blocks|layers?\d*|stages?\d*)\.\d+$")


def blocks(visual: nn.Module) -> list[str]:
    """The names of an image tower's blocks, from its input to its output; [] for a tower without any."""
    found = [name for name, _ in visual.named_modules() if _BLOCK.match(name)]
    return [name for name in found if not any(inner.startswith(f"{name}.") for inner in found)]


def depths(count: int) -> list[int]:
    """Which slices of a tower with `count` blocks are looked at, evenly spaced: 0 is the first block's input, n the n-th one's output.

    Reconstructed for other depths than 12. A tower with less than four blocks has a slice for each block, and the first one's input.
    """
    return sorted({(2 * count * k + SLICES - 1) // (2 * (SLICES - 1)) for k in range(SLICES)})


@contextmanager
def captured(visual: nn.Module) -> Iterator[list[Tensor]]:
    """Collects the slices of an image tower while it runs within the block: (batch, ...) each, from input to output.

    A tower without blocks has one slice, its output. Whatever happens within, the tower is left without hooks.
    """
    names, found = blocks(visual), list[Tensor]()

    def before(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        found.append(inputs[0])

    def after(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)

    with ExitStack() as hooks:
        for depth in depths(len(names)) if names else [1]:
            module = visual.get_submodule(names[max(depth, 1) - 1]) if names else visual
            handle = module.register_forward_hook(after) if depth else module.register_forward_pre_hook(before)
            hooks.callback(handle.remove)
        yield found
