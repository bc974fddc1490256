"""The page: a report through page.html and style.css, written whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markupsafe import Markup

from dynkern.files import write_whole
from dynkern.report.document import Report
from dynkern.report.drawing import clean
from dynkern.report.scales import number

FILE_NAME = "report.html"
_HERE = Path(__file__).resolve().parent


def write_report(folder: Path, report: Report) -> Path:
    """Write report.html into `folder`, whole or not at all; its path. OSError, one line, where the
    disk is full.
    """
    path, content = folder / FILE_NAME, render(report)
    write_whole(path, lambda part: part.write_text(content, encoding="utf-8"))
    return path


def render(report: Report) -> str:
    """The page's HTML. Everything that is no markup of this room is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["tied"] = lambda text: text.replace(" %", "\N{NO-BREAK SPACE}%")
    style = Markup((_HERE / "style.css").read_text(encoding="utf-8"))
    page = environment.get_template("page.html").render(report=report, style=style)
    return page.rstrip() + "\n"


def _finalize(value: Any) -> Any:
    if isinstance(value, Markup):
        return value
    if value is None:
        return "n/a"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return number(value, 4).rstrip("0").rstrip(".")
    return clean(value) if isinstance(value, str) else value
