"""Tables and line plots of analyses, whole or not at all."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dynkern.files import write_whole

# x, y, and the ends of a band or None
Point = tuple[float, float, float | None, float | None]


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows under the names of all of them; ValueError without rows."""
    if not rows:
        raise ValueError("rows: got none, expected at least one")
    names = list(dict.fromkeys(name for row in rows for name in row))

    def write(part: Path) -> None:
        with part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    write_whole(path, write)


def draw_lines(path: Path, lines: Mapping[str, Sequence[Point]], x: str, y: str) -> None:
    """A PNG with a line, and its band where points have one, for each name."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.8, 4.8), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name, points in lines.items():
        xs, ys, lows, highs = zip(*sorted(points), strict=True)
        (line,) = axes.plot(xs, ys, "o-", label=name, linewidth=1.3, markersize=4)
        if None not in lows and None not in highs:
            axes.fill_between(xs, lows, highs, alpha=0.15, color=line.get_color(), linewidth=0)
    axes.set_xlabel(x)
    axes.set_ylabel(y, wrap=True)
    axes.grid(alpha=0.25)
    axes.legend()
    write_whole(path, lambda part: figure.savefig(part, format="png"))
