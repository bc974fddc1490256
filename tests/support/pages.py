"""Reports as a browser and a screen reader meet them."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "link", "br", "img", "input", "hr"}


@dataclass
class Element:
    """An element: its name, attributes, children, and the text in it."""

    name: str
    attributes: dict[str, str | None]
    children: list[Element] = field(default_factory=list)
    text: str = ""

    def all(self, name: str) -> list[Element]:
        """Elements of a name below this one, in order."""
        found = []
        for child in self.children:
            found += [child] * (child.name == name) + child.all(name)
        return found

    @property
    def words(self) -> str:
        """The text of the whole element, spaces as one."""
        return " ".join(self.text.split())


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open = [Element("", {})]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, dict(attrs))
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].name == tag, f"</{tag}> within <{self.open[-1].name}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element.text += data


def parse(html: str) -> Element:
    """The page; AssertionError where an element is not closed in its place."""
    parser = _Parser()
    parser.feed(html)
    parser.close()
    assert len(parser.open) == 1, [element.name for element in parser.open]
    return parser.open[0]


def chromium() -> str | None:
    """The browser's path, if there is one."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)


def browse(page: Path, *options: str) -> str:
    """stdout of headless Chromium on a file."""
    done = subprocess.run(
        [
            chromium() or "chromium",
            *("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *("--disable-dev-shm-usage", f"--user-data-dir={page.parent / 'profile'}"),
            *options,
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-800:]
    return done.stdout
