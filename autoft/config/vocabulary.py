"""Built-in class names and prompt templates of the published data sets, by name. The lists are data: vocabularies/NAME.json."""

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).resolve().parent / "vocabularies"
# ImageNet's lists come with open_clip: the name of the templates there, and what they are.
_OPEN_CLIP = {
    "imagenet": ("OPENAI_IMAGENET_TEMPLATES", "open_clip's own class names and 80 templates"),
    "imagenet_simple": ("SIMPLE_IMAGENET_TEMPLATES", "open_clip's own class names and 7 templates"),
}


@dataclass(frozen=True)
class Vocabulary:
    """What is built in for a data set: whether it has class names, and where names and templates come from."""

    has_names: bool
    source: str


@functools.cache
def _document(vocabulary: str) -> Mapping[str, Any]:
    """A data file: source, templates, and names (in label order) and folders (one a name) where it has them."""
    document: Mapping[str, Any] = json.loads((_FOLDER / f"{vocabulary}.json").read_text(encoding="utf-8"))
    return document


def _vocabulary(name: str) -> Vocabulary:
    return Vocabulary("names" in _document(name), _document(name)["source"])


VOCABULARIES: Mapping[str, Vocabulary] = {
    **{name: Vocabulary(True, source) for name, (_, source) in _OPEN_CLIP.items()},
    **{path.stem: _vocabulary(path.stem) for path in sorted(_FOLDER.glob("*.json"))},
}


def class_names(vocabulary: str) -> tuple[str, ...]:
    """The class names of a built-in vocabulary that has some, in label order."""
    if vocabulary in _OPEN_CLIP:
        import open_clip  # imports torch, which who only reads a study file may not want

        return tuple(open_clip.IMAGENET_CLASSNAMES)
    return tuple(_document(vocabulary)["names"])


def folder_names(vocabulary: str) -> Mapping[str, str]:
    """The class name of each folder of the data set, where its folders are called otherwise than its classes."""
    document = _document(vocabulary)
    return dict(zip(document["folders"], document["names"], strict=True))


def templates(vocabulary: str) -> tuple[str, ...]:
    """The prompt templates of a built-in vocabulary; {} stands for the class name."""
    if vocabulary in _OPEN_CLIP:
        import open_clip

        return tuple(template("{}") for template in getattr(open_clip, _OPEN_CLIP[vocabulary][0]))
    return tuple(_document(vocabulary)["templates"])


def is_template(text: str) -> bool:
    """Whether a text has a place for the class name, exactly once, and no other braces."""
    rest = text.replace("{}", "").replace("{an}", "")
    return text.count("{}") + text.count("{an}") == 1 and "{" not in rest


def fill(template: str, name: str) -> str:
    """A prompt: {} becomes the name as it is; {an} the name in words with its article, by its first letter ("an airport hangar")."""
    words = name.replace("_", " ")
    article = "an" if words[:1].lower() in tuple("aeiou") else "a"
    return template.replace("{}", name).replace("{an}", f"{article} {words}")
