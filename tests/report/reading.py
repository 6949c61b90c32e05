"""report.html as data: every element that carries a `data-` attribute, and every address it names."""

from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "link", "br", "img", "hr", "input", "use", "path", "rect"}


@dataclass
class Page:
    """What a parsed page holds."""

    data: list[dict[str, str]] = field(default_factory=list)
    addresses: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    attributes: set[str] = field(default_factory=set)
    ids: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    unlabelled: list[str] = field(default_factory=list)
    text: str = ""
    code: str = ""

    def find(self, **attributes: str) -> list[dict[str, str]]:
        """Elements whose `data-` attributes have these values; underscores stand for dashes."""
        wanted = {f"data-{name.replace('_', '-')}": value for name, value in attributes.items()}
        return [item for item in self.data if wanted.items() <= item.items()]


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.page = Page()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.page.tags.append(tag)
        self.page.attributes |= set(values)
        if any(name.startswith("data-") for name in values):
            self.page.data.append(values)
        self.page.addresses += [values[name] for name in ("href", "src", "xlink:href", "srcset", "action") if name in values]
        self.page.ids += [values["id"]] if "id" in values else []
        if tag == "svg":
            (self.page.labels if values.get("aria-label") else self.page.unlabelled).append(values.get("aria-label", tag))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open = self.open if tag in VOID else self.open[:-1]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open[-1:] == [tag], f"</{tag}> closes {self.open[-1:]}"
            self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.page.text += data
        if self.open[-2:] == ["pre", "code"]:
            self.page.code += data


def read_page(path: Path) -> Page:
    """Parse a page; unbalanced tags are an AssertionError."""
    reader = _Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    reader.close()
    assert not reader.open, f"never closed: {reader.open}"
    return reader.page
