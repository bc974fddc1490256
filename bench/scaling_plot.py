"""python -m bench.scaling_plot [CSV [PNG]]: time of a pass along the axes of bench.scaling.

A panel an axis: measured points with their spread, dashed what bandwidth and arithmetic allow,
and a ring around points that grow faster than that.
"""

from __future__ import annotations

import sys
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bench.cost_model_plot import COLOURS, draw_file
from bench.results_file import latest
from dynkern.files import write_whole

LABELS = {
    "layers": "layers",
    "rows": "rows",
    "length": "K/V entries of a row",
    "vocabulary": "vocabulary",
    "threads": "threads",
}
LOGARITHMIC = ("rows", "vocabulary")
HELD = {
    "layers": "{} layers",
    "rows": "{} rows",
    "length": "{} entries",
    "vocabulary": "vocabulary {}",
    "threads": "{} threads",
}


def draw(rows: list[dict[str, str]], target: Path) -> None:
    """The last measurement of every point to a PNG. ValueError where there are none."""
    shown = latest(rows, ("axis", "dtype", "value"))
    axes = [axis for axis in LABELS if any(row["axis"] == axis for row in shown)]
    if not axes:
        raise ValueError(f"rows: none of an axis, expected some of {', '.join(LABELS)}")
    figure = Figure(figsize=(3.4 * len(axes), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(axes), squeeze=False)[0]
    for panel, axis in zip(panels, axes, strict=True):
        _draw_axis(panel, axis, [row for row in shown if row["axis"] == axis])
    panels[0].set_ylabel("ms a pass")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=8)
    write_whole(target, lambda part: figure.savefig(part, dpi=130, format="png"))


def _draw_axis(panel: Axes, axis: str, rows: list[dict[str, str]]) -> None:
    for dtype, colour in COLOURS.items():
        own = sorted((r for r in rows if r["dtype"] == dtype), key=lambda r: int(r["value"]))
        if not own:
            continue
        x = [int(row["value"]) for row in own]
        y, low, high, allowed = (
            [1e3 * float(row[key]) for row in own] for key in ("seconds", "low", "high", "expected")
        )
        spread = [
            [max(0.0, b - a) for a, b in zip(*pair, strict=True)] for pair in ((low, y), (y, high))
        ]
        panel.errorbar(x, y, spread, marker="o", markersize=4, color=colour, label=dtype)
        panel.plot(x, allowed, "--", color=colour, linewidth=0.9, label=f"allowed, {dtype}")
        flagged = [i for i, row in enumerate(own) if row["flagged"] == "1"]
        panel.plot(
            [x[i] for i in flagged],
            [y[i] for i in flagged],
            *("o",),
            markersize=11,
            markerfacecolor="none",
            markeredgecolor=colour,
        )
    if axis in ("layers", "threads"):
        panel.set_xticks(sorted({int(row["value"]) for row in rows}))
    if axis in LOGARITHMIC:
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
    else:
        panel.set_ylim(bottom=0)
    held = {key: {row[key] for row in rows} for key in HELD if key != axis}
    fixed = [HELD[key].format(next(iter(v))) for key, v in held.items() if len(v) == 1]
    panel.set_title(", ".join(fixed[:2]) + "\n" + ", ".join(fixed[2:]), fontsize=7)
    panel.set_xlabel(LABELS[axis])
    panel.grid(alpha=0.25)


if __name__ == "__main__":
    sys.exit(draw_file("scaling_plot", "scaling.csv", draw, sys.argv[1:]))
