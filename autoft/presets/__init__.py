"""Study presets: the published studies as study files, one a data set. Each is a file NAME.yaml that `load_config` reads as it stands.

A preset's header comment says where its numbers are from, what is reconstructed and what differs from the authors' code and why.
"""

import difflib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from autoft.errors import ConfigError

_FOLDER = Path(__file__).resolve().parent
_NAMES = ("iwildcam", "fmow", "imagenet", "imagenet-fewshot", "cifar10", "sst2", "patchcamelyon", "caltech101", "cars", "flowers")
_PATH = re.compile(r"(?<=\bpath: )[^\s,}]+")
# Holds for every preset, so it is said once; `preset_text` puts it below each header.
COMMON = """\
#
# In every preset: trials run at a constant rate and the final fine-tune at the searched one (the released code has base_lr there,
# and so has final.lr: base); VAL_OOD is scored without random crops; the sampler has a seed; three plain configurations are
# tried first and the three best are confirmed with fresh seeds (search.enqueue: [] and search.confirm: {repeats: 0} do neither).
# Other models: ViT-L-14-quickgelu or ViT-L-14-336-quickgelu with openai, which the authors used too; any other name and tag of open_clip;
# hf-hub:ORG/REPO or local-dir:PATH without a tag. docs/study-file.md has every field that is left out here.
"""


def preset_names() -> tuple[str, ...]:
    """The presets, the paper's three main data sets first."""
    return _NAMES


def read_preset(name: str) -> str:
    """The file of a preset. Raises ConfigError, with the presets there are, for another name."""
    if name not in _NAMES:
        close = difflib.get_close_matches(name, _NAMES, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ConfigError(f"there is no preset {name!r}; {hint}presets are {', '.join(_NAMES)}")
    return (_FOLDER / f"{name}.yaml").read_text(encoding="utf-8")


def preset_title(name: str) -> str:
    """What a preset is, from its first line: one sentence."""
    lines = _header(read_preset(name))
    return " ".join(lines[: lines.index("")]).partition(": ")[2]


def preset_notes(name: str) -> str:
    """The header comment of a preset below its first sentence, without the marks."""
    lines = _header(read_preset(name))
    return "\n".join(lines[lines.index("") + 1 :])


def _header(text: str) -> list[str]:
    header = text.partition("\n\n")[0]
    return [line.removeprefix("#").removeprefix(" ") for line in header.splitlines()]


def preset_text(name: str, data_root: str | None = None) -> str:
    """The study file that `autoft init` writes: the preset with what holds for all of them.

    Args:
        data_root: replaces the folder that all of the preset's data lie in; see `default_root`.

    Raises:
        ConfigError: there is no such preset.
    """
    header, blank, body = read_preset(name).partition("\n\n")
    text = f"{header}\n{COMMON}{blank[1:]}{body}"
    return text if data_root is None else _PATH.sub(_moved(default_root(name), data_root), text)


def default_root(name: str) -> str:
    """The folder that all data of a preset lie in: of one data set its own, else their common parent. Relative to the study file."""
    import yaml  # here, so that the command line can list the presets without it

    return os.path.commonpath(_paths(yaml.safe_load(read_preset(name))["data"]))


def named_preset(text: str) -> str | None:
    """Which preset a study file says in its first line it was made from; None if it says none."""
    found = re.match(r"# Preset ([a-z0-9-]+):", text)
    return found.group(1) if found and found.group(1) in _NAMES else None


def _paths(section: Any) -> list[str]:
    if not isinstance(section, dict):
        return []
    own = [str(section["path"])] if "path" in section else []
    return own + [path for value in section.values() for path in _paths(value)]


def _moved(old: str, new: str) -> Callable[[re.Match[str]], str]:
    """Replaces the folder `old` by `new` at the front of a path, quoted where YAML needs it."""

    def replace(found: re.Match[str]) -> str:
        path = found.group()
        inner = os.path.relpath(path, old)
        moved = new if inner == "." else os.path.join(new, inner)  # noqa: PTH118  text in, text out
        return moved if re.fullmatch(r"[\w./][\w./+-]*", moved) and not moved.isdecimal() else json.dumps(moved, ensure_ascii=False)

    return replace
