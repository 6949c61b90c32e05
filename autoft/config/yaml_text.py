"""YAML from somebody else: plain values only, in bounded time and memory, and nothing that means two things.

PyYAML's safe loader makes no objects of a file's choosing. What it lets pass is refused here: keys that are there twice, aliases that
multiply, values that are no numbers where arithmetic follows, texts that no file system or database takes.
"""

import math
from collections.abc import Iterator
from typing import Any

import yaml

# A study of ImageNet with its 1000 class names and 80 templates written out has some 40 kB and 1,200 values.
MAX_BYTES = 2 << 20
MAX_DEPTH = 40
MAX_VALUES = 100_000  # with every alias counted as what it stands for
MAX_INTEGER = 2**63 - 1


class _Loader(yaml.SafeLoader):
    """The safe loader, which also counts depth and values, and refuses a key that is there twice."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise yaml.composer.ComposerError(None, None, f"more than {MAX_DEPTH} levels", self.get_mark())
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None and _expanded(node, {}) > MAX_VALUES:
            raise yaml.composer.ComposerError(None, None, f"more than {MAX_VALUES:,} values, aliases counted as what they stand for", node.start_mark)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                    if key.value in seen:
                        raise yaml.constructor.ConstructorError(None, None, f"the key {key.value!r} is there twice", key.start_mark)
                    seen.add(key.value)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str) -> Any:
    """The value of a YAML document: texts, numbers, booleans, dates, null, lists and mappings.

    Raises:
        ValueError: what is wrong with it, and where.
    """
    if len(text) > MAX_BYTES:
        raise ValueError(f"has {len(text):,} characters, more than the limit of {MAX_BYTES:,}")
    try:
        value = yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise ValueError(f"not valid YAML: {_told(error)}") from None
    except Exception as error:  # PyYAML turns a bad date or number into ValueError, KeyError, IndexError, AttributeError and more
        raise ValueError(f"not valid YAML: a value that cannot be read: {type(error).__name__}: {str(error)[:200]}") from None
    mistake = next(_mistakes(value, ""), None)
    if mistake is not None:
        raise ValueError(mistake)
    return value


def _told(error: yaml.YAMLError) -> str:
    text = str(error)
    return text if len(text) <= 500 else text[:497] + "..."


def _expanded(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node stands for. A node that contains itself counts as infinitely many, near enough."""
    if id(node) not in known:
        known[id(node)] = MAX_VALUES + 1  # until it is known
        children: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            children = node.value
        elif isinstance(node, yaml.MappingNode):
            children = [part for pair in node.value for part in pair]
        known[id(node)] = min(MAX_VALUES + 1, 1 + sum(_expanded(child, known) for child in children))
    return known[id(node)]


def _mistakes(value: Any, where: str) -> Iterator[str]:
    """What no field of a study may be, each with the dotted name of its field."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                yield f"{where or 'the file'}: the key {key!r} is no text; write it in quotation marks"
                return
            yield from _mistakes(key, where)
            yield from _mistakes(item, f"{where}.{key}".lstrip("."))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _mistakes(item, f"{where}.{index}".lstrip("."))
    elif isinstance(value, str):
        if "\0" in value or any(0xD800 <= ord(letter) < 0xE000 for letter in value):
            yield f"{where or 'the file'}: a text with a null character or half a surrogate pair: {value[:40]!r}"
    elif isinstance(value, float) and not math.isfinite(value):
        yield f"{where or 'the file'} = {value}: must be a finite number"
    elif isinstance(value, int) and abs(value) > MAX_INTEGER:
        yield f"{where or 'the file'}: a whole number of {len(f'{abs(value):x}')} hexadecimal digits; the largest is {MAX_INTEGER}"
