"""python -m bench.scaling_plot [CSV [PNG]]: time of a pass along the axes of bench.scaling.

A panel an axis and device: measured points with their spread, dashed what bandwidth and arithmetic
allow, and a ring around points that grow faster than that.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bench.cost_model_plot import COLOURS, draw_file
from bench.results_file import by_device, latest
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
    devices = {
        name: latest([row for row in own if row["axis"] in LABELS], ("axis", "dtype", "value"))
        for name, own in by_device(rows).items()
    }
    devices = {name: own for name, own in devices.items() if own}
    axes = [
        axis for axis in LABELS if any(r["axis"] == axis for own in devices.values() for r in own)
    ]
    if not axes:
        raise ValueError(f"rows: none of an axis, expected some of {', '.join(LABELS)}")
    size = (3.4 * len(axes), 3.6 * len(devices))
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(devices), len(axes), squeeze=False)
    for line, (name, own) in zip(panels, devices.items(), strict=True):
        line[0].set_ylabel(f"ms a pass\n{name}")
        for panel, axis in zip(line, axes, strict=True):
            measured = [row for row in own if row["axis"] == axis]
            if measured:
                _draw_axis(panel, axis, measured)
            else:
                panel.text(0.5, 0.5, "not measured", ha="center", transform=panel.transAxes)
    handles, labels = _legend(panels.flat)
    figure.legend(handles, labels, loc="outside lower center", ncols=6, fontsize=8)
    write_whole(target, lambda part: figure.savefig(part, dpi=130, format="png"))


def _legend(panels: Iterable[Axes]) -> tuple[list[Artist], list[str]]:
    """Every label of any panel, once."""
    found = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    return list(found.values()), list(found)


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
