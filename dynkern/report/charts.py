"""The kinds of chart: lines with error bars or bands, pairs beside each other, histograms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from markupsafe import Markup

from dynkern.report import drawing as draw
from dynkern.report.labels import MOST, place_labels
from dynkern.report.scales import Scale, finite, interval, number, percent, short

# of a line; more would hide it
MOST_MARKS = 16
_LEFT, _RIGHT, _TOP = 58.0, draw.WIDTH - 14.0, 34.0


class Chart(Protocol):
    """What a figure can show. ident: unique on the page."""

    def svg(self, ident: str, title: str) -> Markup:
        """The picture."""

    def legend(self) -> list[tuple[Markup, str]]:
        """Swatches and names; empty where the picture itself names everything."""


@dataclass(frozen=True)
class Point:
    """low, high: the interval of y; x_low, x_high: that of x; label: what tells the point from the
    others of its series.
    """

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    x_low: float | None = None
    x_high: float | None = None
    label: str = ""


@dataclass(frozen=True)
class Series:
    """Points that are joined in order. style: of its own on the whole page, 0 for full depth.
    band: the interval as an area, for many points, instead of bars at each.
    """

    name: str
    points: Sequence[Point]
    style: int
    band: bool = False
    joined: bool = True


@dataclass(frozen=True)
class Lines:
    """Series over x. reference: a name, a height, and its interval or None: a line across. places:
    digits after the point in what is read aloud.
    """

    x_label: str
    y_label: str
    series: Sequence[Series]
    reference: tuple[str, float, float | None, float | None] | None = None
    whole_x: bool = False
    x_from_zero: bool = True
    y_from_zero: bool = False
    places: int = 3
    height: float = 380.0

    def legend(self) -> list[tuple[Markup, str]]:
        """Its series, and the line across."""
        entries = [
            (draw.swatch(s.style, s.joined and len(s.points) > 1), s.name) for s in self.series
        ]
        if self.reference and self.reference[0] not in {name for _, name in entries}:
            entries.append((_reference_swatch(), self.reference[0]))
        return entries

    def svg(self, ident: str, title: str) -> Markup:
        """Grid, line across, series, names of points."""
        points = [p for s in self.series for p in s.points]
        across = [] if self.reference is None else list(self.reference[1:])
        x = Scale.over(
            [v for p in points for v in (p.x, p.x_low, p.x_high)],
            _LEFT,
            _RIGHT,
            count=7,
            from_zero=self.x_from_zero,
            whole=self.whole_x,
        )
        ys = [v for p in points for v in (p.y, p.low, p.high)] + across
        y = Scale.over(ys, self.height - 46, _TOP, from_zero=self.y_from_zero)
        parts = draw.frame(x, y, self.x_label, self.y_label)
        parts += self._across(x, y)
        for series in self.series:
            parts.append(_series(series, x, y, self.places))
        parts += self._names(x, y)
        return draw.drawing(ident, title, self._says(), self.height, parts)

    def _across(self, x: Scale, y: Scale) -> list[Markup]:
        if self.reference is None:
            return []
        _, height, low, high = self.reference
        parts = []
        if finite(low) and finite(high):
            parts.append(
                draw.tag(
                    "rect",
                    x=x.start,
                    y=y(high),
                    width=x.end - x.start,
                    height=max(y(low) - y(high), 0.5),
                    class_="reference-band",
                )
            )
        return [*parts, draw.line(x.start, y(height), x.end, y(height), "reference")]

    def _names(self, x: Scale, y: Scale) -> list[Markup]:
        named = [(s.style, p) for s in self.series for p in s.points if p.label]
        if len(named) > MOST:
            return []
        places = place_labels(
            [short(p.label, 24) for _, p in named],
            [(x(p.x), y(p.y)) for _, p in named],
            [[(x(p.x), y(p.y)) for p in s.points] for s in self.series],
            [(x(p.x), y(p.high), x(p.x), y(p.low)) for _, p in named if _has_bar(p)],
            (x.start, y.end, x.end, y.start),
        )
        return [
            draw.words(*(at[0], at[1] + 4.5), short(p.label, 24), "middle", class_=f"name {c}")
            for (style, p), at in zip(named, places, strict=True)
            for c in [draw.colour(style)]
        ]

    def _says(self) -> str:
        said = [f"{self.y_label} against {self.x_label}."]
        if self.reference is not None:
            name, height, *ends = self.reference
            said.append(f"{name}: {_spoken(height, ends, self.places)}.")
        for s in self.series:
            # an ear does not want a curve of a hundred points
            step = max(1, len(s.points) // 12)
            told = "; ".join(_told(p, self.places) for p in s.points[::step])
            said.append(f"{s.name}: {told}.")
        return " ".join(said)


def _has_bar(point: Point) -> bool:
    return finite(point.low) and finite(point.high)


def _spoken(value: float, ends: Sequence[float | None], places: int) -> str:
    limits = interval(ends, places)
    return number(value, places) + (f" ({limits})" if limits else "")


def _told(point: Point, places: int) -> str:
    name = f"{point.label}, " if point.label else ""
    return f"{name}{point.x:.3g}: {_spoken(point.y, (point.low, point.high), places)}"


def _series(series: Series, x: Scale, y: Scale, places: int) -> Markup:
    parts = []
    placed = [(x(p.x), y(p.y)) for p in series.points]
    if series.band and all(map(_has_bar, series.points)):
        edge = [(x(p.x), y(p.high)) for p in series.points]
        edge += [(x(p.x), y(p.low)) for p in reversed(series.points)]
        parts.append(draw.path(edge, "band"))
    if series.joined and len(placed) > 1:
        parts.append(draw.path(placed, "line", stroke_dasharray=draw.dashes(series.style)))
    # shapes tell lines apart where colours do not, but not at each of a hundred points
    step = max(1, math.ceil(len(placed) / MOST_MARKS))
    for place, (point, (at, height)) in enumerate(zip(series.points, placed, strict=True)):
        # lines that run along each other carry their shapes at different places
        if place % step != series.style % step:
            continue
        if not series.band and _has_bar(point):
            low, high = y(point.low), y(point.high)
            parts.append(draw.line(at, low, at, high, "bar"))
            parts += [draw.line(at - 3, end, at + 3, end, "bar") for end in (low, high)]
        if finite(point.x_low) and finite(point.x_high):
            left, right = x(point.x_low), x(point.x_high)
            parts.append(draw.line(left, height, right, height, "bar"))
        hover = draw.tag("title", f"{series.name} {_told(point, places)}")
        parts.append(draw.tag("g", hover, draw.marker(series.style, at, height)))
    return draw.tag("g", *parts, class_=f"series {draw.colour(series.style)}")


def _reference_swatch() -> Markup:
    return draw.tag(
        "svg",
        draw.line(1, 9, 33, 9, "reference"),
        viewBox="0 0 34 18",
        class_="swatch",
        aria_hidden="true",
    )


@dataclass(frozen=True)
class Pair:
    """One row: what was possible beside what was measured, with its spread. said: at the end."""

    name: str
    possible: float
    measured: float
    low: float | None = None
    high: float | None = None
    said: str = ""


@dataclass(frozen=True)
class Pairs:
    """Rows of two values each, on one axis from zero."""

    x_label: str
    names: tuple[str, str]
    pairs: Sequence[Pair]
    places: int = 0

    def legend(self) -> list[tuple[Markup, str]]:
        """The two kinds of value."""
        kinds = [("possible", draw.marker(3, 17.0, 9.0, 5.5)), ("measured", draw.marker(1, 17, 9))]
        return [
            (
                draw.tag(
                    "svg",
                    draw.tag("g", mark, class_=kind),
                    viewBox="0 0 34 18",
                    class_="swatch",
                    aria_hidden="true",
                ),
                name,
            )
            for (kind, mark), name in zip(kinds, self.names, strict=True)
        ]

    def svg(self, ident: str, title: str) -> Markup:
        """A row for each pair: its name above, both values on the line."""
        row, top = 42.0, 4.0
        bottom = top + row * len(self.pairs)
        values = [v for p in self.pairs for v in (p.possible, p.measured, p.high)]
        x = Scale.over(values, 8.0, draw.WIDTH - 14.0, count=6, from_zero=True)
        parts = [draw.line(x(t), top, x(t), bottom, "grid") for t in x.ticks]
        told = []
        for place, pair in enumerate(self.pairs):
            base = top + row * place
            at = base + 29
            said = f"{short(pair.name, 34)}"
            parts.append(draw.words(8.0, base + 15, said, class_="row-name"))
            parts.append(draw.words(draw.WIDTH - 14.0, base + 15, pair.said, "end"))
            parts.append(draw.line(x(0), at, x.end, at, "track"))
            parts.append(draw.line(x(pair.possible), at, x(pair.measured), at, "gap"))
            if finite(pair.low) and finite(pair.high):
                whisker = draw.line(x(pair.low), at, x(pair.high), at, "bar")
                ends = [draw.line(x(v), at - 4, x(v), at + 4, "bar") for v in (pair.low, pair.high)]
                parts.append(draw.tag("g", whisker, *ends, class_="measured"))
            parts.append(draw.tag("g", draw.marker(1, x(pair.measured), at), class_="measured"))
            parts.append(
                draw.tag("g", draw.marker(3, x(pair.possible), at, 5.5), class_="possible")
            )
            told.append(
                f"{pair.name}: {self.names[0]} {number(pair.possible, self.places)}, "
                f"{self.names[1]} {_spoken(pair.measured, (pair.low, pair.high), self.places)}"
                + (f", {pair.said}" if pair.said else "")
            )
        parts += draw.floor(x, bottom, self.x_label)
        says = f"{self.x_label}. " + "; ".join(told) + "."
        return draw.drawing(ident, title, says, bottom + 46, parts)


@dataclass(frozen=True)
class Shares:
    """One row of a histogram: the share of sequences at each number of layers. mean: marked."""

    name: str
    shares: dict[int, float]
    style: int
    mean: float | None = None


@dataclass(frozen=True)
class Histogram:
    """A row of bars for each way of choosing, over the same layers 0 to num_layers. what: has
    shares, "sequences".
    """

    x_label: str
    rows: Sequence[Shares]
    num_layers: int
    what: str = "sequences"

    def legend(self) -> list[tuple[Markup, str]]:
        """Rows carry their names."""
        return []

    def svg(self, ident: str, title: str) -> Markup:
        """Bars from each row's ground line, of one scale; the largest of a row with its share."""
        row, top = min(150.0, max(66.0, 300.0 / max(len(self.rows), 1))), 4.0
        tall = row - 34.0
        bottom = top + row * len(self.rows)
        x = Scale.over([0, self.num_layers], 16.0, draw.WIDTH - 24.0, count=7, whole=True)
        width = min(26.0, 0.72 * (x(1) - x(0)))
        most = max((s for entry in self.rows for s in entry.shares.values()), default=1.0)
        parts, told = [], []
        for place, entry in enumerate(self.rows):
            base = top + row * place
            ground = base + row - 6
            parts.append(draw.words(8.0, base + 15, short(entry.name, 40), class_="row-name"))
            said = "" if entry.mean is None else f"mean {number(entry.mean, 2)}"
            parts.append(draw.words(draw.WIDTH - 14.0, base + 15, said, "end"))
            parts.append(draw.line(x.start, ground, x.end, ground, "base"))
            bars = []
            for layers, share in sorted(entry.shares.items()):
                if share <= 0:
                    continue
                high = max(1.5, tall * share / max(most, 1e-9))
                left = x(layers) - width / 2
                hover = draw.tag("title", f"{layers} layers: {percent(share)} of {self.what}")
                box = {"x": left, "y": ground - high, "width": width, "height": high, "rx": 1.5}
                bars.append(draw.tag("rect", hover, class_="column", **box))
            parts.append(draw.tag("g", *bars, class_=draw.colour(entry.style)))
            parts += _largest(entry, x, ground, tall / max(most, 1e-9), width)
            shares = ", ".join(
                f"{n} layers {percent(s)}" for n, s in sorted(entry.shares.items()) if s
            )
            told.append(f"{entry.name}: {shares}")
        parts += draw.floor(x, bottom, self.x_label)
        says = f"Share of {self.what}, by {self.x_label}. {'; '.join(told)}."
        return draw.drawing(ident, title, says, bottom + 46, parts)


def _largest(
    entry: Shares, x: Scale, ground: float, per_share: float, width: float
) -> list[Markup]:
    """The share of the tallest bar beside its head, on the side where there is room."""
    if not entry.shares:
        return []
    layers = max(entry.shares, key=lambda n: entry.shares[n])
    right = entry.shares.get(layers + 1, 0.0) <= entry.shares.get(layers - 1, 0.0)
    right = right and x(layers) + width < x.end - 40
    at = x(layers) + (width / 2 + 5) * (1 if right else -1)
    y = ground - max(per_share * entry.shares[layers] - 11, 4)
    return [draw.words(at, y, f"{percent(entry.shares[layers])}", "start" if right else "end")]
