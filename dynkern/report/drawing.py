"""SVG by hand: elements, markers, and the frame that charts stand in.

Colours are CSS variables of the page, so that a drawing follows light and dark; what a colour says
is said by a marker's shape and a line's dashes too.
"""

from __future__ import annotations

from typing import Any

from markupsafe import Markup, escape

from dynkern.report.scales import Scale

# of a chart in user units; a column of the page is about as wide
WIDTH = 540
# a digit or letter, as a share of the font size: wide fonts included
GLYPH = 0.6
FONT = 13.0
MARKERS = 8
# as many as there are colours
DASHES = ("", "7 4", "2 3", "10 3 2 3", "14 5", "5 2", "10 3 2 3 2 3", "1 4")


def clean(text: Any) -> str:
    """Without what no page may hold: control characters and lone halves of surrogate pairs."""
    return "".join(
        char if char in "\n\t" or ord(char) >= 32 and not 127 <= ord(char) < 160 else "\ufffd"
        for char in str(text).encode("utf-8", "replace").decode("utf-8")
    )


def tag(element: str, *children: Any, **attributes: Any) -> Markup:
    """An element; children that are no Markup are escaped. class_ is class, a_b is a-b."""
    parts = [element]
    for name, value in attributes.items():
        if value is None:
            continue
        if isinstance(value, float):
            value = f"{value:.2f}".rstrip("0").rstrip(".")
        parts.append(f'{name.rstrip("_").replace("_", "-")}="{escape(clean(value))}"')
    inner = Markup("").join(
        child if isinstance(child, Markup) else escape(clean(child)) for child in children
    )
    return Markup("<{}>{}</{}>").format(Markup(" ".join(parts)), inner, Markup(element))


def words(x: float, y: float, content: Any, anchor: str = "start", **attributes: Any) -> Markup:
    """Text whose baseline starts, has its middle or ends at (x, y)."""
    anchor = None if anchor == "start" else anchor
    return tag("text", content, x=x, y=y, text_anchor=anchor, **attributes)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """A straight line."""
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def path(points: list[tuple[float, float]], class_: str, **attributes: Any) -> Markup:
    """Straight lines through points."""
    steps = " ".join(f"{'ML'[place > 0]}{x:.2f} {y:.2f}" for place, (x, y) in enumerate(points))
    return tag("path", d=steps, class_=class_, **attributes)


def colour(style: int) -> str:
    """The class of a series: 0 is full depth, others go round."""
    return "s0" if style <= 0 else f"s{(style - 1) % MARKERS + 1}"


def dashes(style: int) -> str | None:
    """stroke-dasharray of a series' line."""
    return (DASHES[(style - 1 + (style - 1) // MARKERS) % MARKERS] or None) if style > 0 else None


def marker(style: int, x: float, y: float, size: float = 5.0) -> Markup:
    """The shape of a series at (x, y)."""
    if style <= 0:
        return _polygon(x, y, size * 1.5, _STAR)
    kind = (style - 1) % MARKERS
    if kind == 0:
        return tag("circle", cx=x, cy=y, r=size * 0.9, class_="mark")
    return _polygon(x, y, size, _SHAPES[kind - 1])


_STAR = (
    *((0, -1), (0.24, -0.32), (0.95, -0.31), (0.38, 0.12), (0.59, 0.81)),
    *((0, 0.4), (-0.59, 0.81), (-0.38, 0.12), (-0.95, -0.31), (-0.24, -0.32)),
)
_CROSS = (
    *((-0.35, -1), (0.35, -1), (0.35, -0.35), (1, -0.35), (1, 0.35), (0.35, 0.35)),
    *((0.35, 1), (-0.35, 1), (-0.35, 0.35), (-1, 0.35), (-1, -0.35), (-0.35, -0.35)),
)
_SHAPES = (
    ((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)),
    ((0, -1.15), (1.15, 0), (0, 1.15), (-1.15, 0)),
    ((0, -1.1), (1.05, 0.8), (-1.05, 0.8)),
    ((0, 1.1), (1.05, -0.8), (-1.05, -0.8)),
    _CROSS,
    tuple(((x - y) * 0.7, (x + y) * 0.7) for x, y in _CROSS),
    ((-1, 0), (-0.5, -0.87), (0.5, -0.87), (1, 0), (0.5, 0.87), (-0.5, 0.87)),
)


def _polygon(x: float, y: float, size: float, shape: Any) -> Markup:
    points = " ".join(f"{x + size * dx:.2f},{y + size * dy:.2f}" for dx, dy in shape)
    return tag("polygon", points=points, class_="mark")


def frame(x: Scale, y: Scale, x_label: str, y_label: str) -> list[Markup]:
    """Grid, ticks and what the axes are; the label of y stands above it, to be read as it is."""
    parts = [words(0.0, 13.0, y_label, class_="axis")]
    for tick in y.ticks:
        at = y(tick)
        parts.append(line(x.start, at, x.end, at, "grid"))
        parts.append(words(x.start - 8, at + 4.5, y.label(tick), "end"))
    return parts + floor(x, y.start, x_label)


def floor(x: Scale, y: float, x_label: str) -> list[Markup]:
    """The axis of x at height y."""
    parts = [line(x.start, y, x.end, y, "base")]
    for tick in x.ticks:
        parts.append(line(x(tick), y, x(tick), y + 5, "base"))
        parts.append(words(x(tick), y + 19, x.label(tick), "middle"))
    return [*parts, words(x.end, y + 39, x_label, "end", class_="axis")]


def drawing(ident: str, title: str, says: str, height: float, parts: list[Markup]) -> Markup:
    """The whole picture: an image with a name and a description for those who do not see it."""
    return tag(
        "svg",
        tag("title", title, id=f"{ident}-title"),
        tag("desc", says, id=f"{ident}-desc"),
        *parts,
        viewBox=f"0 0 {WIDTH} {height:.0f}",
        role="img",
        aria_labelledby=f"{ident}-title",
        aria_describedby=f"{ident}-desc",
        class_="chart",
    )


def swatch(style: int, joined: bool) -> Markup:
    """What stands for a series in a legend."""
    stroke = path([(1, 9), (33, 9)], "line", stroke_dasharray=dashes(style)) if joined else ""
    return tag(
        "svg",
        tag("g", stroke, marker(style, 17.0, 9.0), class_=colour(style)),
        viewBox="0 0 34 18",
        class_="swatch",
        aria_hidden="true",
    )
