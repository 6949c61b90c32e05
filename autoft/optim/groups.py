"""Layer groups: every parameter of a classifier in exactly one, so that each layer can have its own rate and decay.

AutoFT's layer-wise search (arXiv 2401.10220, its `--layerwise_opt`) has one group for each block of the image tower. The released code
left class and positional embeddings, the last norm, the projection, the text tower and the logit scale out of all groups, and so
untrained; here nothing can be left out.
"""

import re
from collections.abc import Sequence

from torch import nn

STEM, TOP, TEXT, HEAD = "visual/stem", "visual/top", "text", "head"

_VISUAL = "clip.visual."
_HEAD = re.compile(r"(core_)?head\.|clip\.logit_(scale|bias)$")
# A block is an entry of a list with one of these names: `resblocks.3` of open_clip's ViT, `layer1.0` of its ResNet, `stages.2.blocks.7` of
# a timm ConvNeXt, `blocks.3` of a timm ViT or MobileNet. Greedy: the innermost such list counts.
_BLOCK = re.compile(r".*\b(?:resblocks|blocks|layers?\d*|stages?\d*)\.\d+(?=\.)")
_PROJECTION = "proj"  # of open_clip's ViT: it belongs to the tower's end, but is registered before everything else


def layer_names(model: nn.Module) -> tuple[str, ...]:
    """The names of a `ClipClassifier`'s groups, from its input to its output, then the text tower and the head."""
    return tuple(parameter_groups(model))


def parameter_groups(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Every parameter of a `ClipClassifier`, trainable or not, by group; the groups in the order of `layer_names`.

    `visual/stem`: of the image tower, what comes before its first block. `visual/block.0` ...: its blocks in order; what stands between two
    blocks (a downsampling) goes with the second. `visual/top`: what comes after the last one. `text`: the text tower. `head`: the
    classifier, both heads of it where there are two, and the logit scale and bias. A group without parameters is left out. A tower
    without blocks is all stem.
    """
    named = dict(model.named_parameters())
    visual = {name.removeprefix(_VISUAL): parameter for name, parameter in named.items() if name.startswith(_VISUAL)}
    groups: dict[str, list[nn.Parameter]] = {STEM: []}
    for (_, parameter), group in zip(visual.items(), _visual_groups(list(visual)), strict=True):
        groups.setdefault(group, []).append(parameter)
    groups |= {TOP: groups.pop(TOP, []), TEXT: [], HEAD: []}
    for name, parameter in named.items():
        if not name.startswith(_VISUAL):
            groups[HEAD if _HEAD.match(name) else TEXT].append(parameter)
    return {name: parameters for name, parameters in groups.items() if parameters}


def _visual_groups(names: Sequence[str]) -> list[str]:
    """The group of each parameter of the image tower, given their names in the order of definition."""
    found = [match.group() if (match := _BLOCK.match(name)) else None for name in names]
    outer = {block[: at.start()] for block in found if block for at in re.finditer(r"\.", block)}
    blocks = [None if block in outer else block for block in found]  # `stages.1` is none if there is a `stages.1.blocks.0`
    number = {block: i for i, block in enumerate(dict.fromkeys(block for block in blocks if block))}
    groups: list[str] = []
    following = TOP if number else STEM
    for name, block in zip(reversed(names), reversed(blocks), strict=True):
        if block:
            following = f"visual/block.{number[block]}"
        before_all = block is None and following == "visual/block.0"
        groups.append(TOP if name == _PROJECTION else STEM if before_all else following)
    return groups[::-1]
