"""python -m bench.depths_plot [CSV [PNG]]: a depth for each sequence, as quality against time.

A row for each model, its weights and the device, a column a batch size, natural lengths: ROUGE-L
against the measured speed-up of decoding (full), with a line from what the possible time would
allow (hollow).
"""

from __future__ import annotations

import sys
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bench.cost_model_plot import draw_file
from bench.results_file import latest, named
from dynkern.files import write_whole

WAYS = {
    "full": ("full depth", "#000000"),
    "allocation": ("a depth for each sequence", "#D55E00"),
    "same at random": ("the same depths at random", "#009E73"),
    "uniform": ("one depth for all", "#0072B2"),
}
MARKERS = {"": "*", "oracle:equal": "o", "oracle:0.5": "s", "predictor": "^"}
TARGETS = {
    "oracle:equal": "oracle, at equal quality",
    "oracle:0.5": "oracle, half of the layers",
    "predictor": "predictor",
}
KEYS = ("device", "model", "dtype", "batch", "lengths", "way", "target", "schedule")


def draw(rows: list[dict[str, str]], target: Path) -> None:
    """The last measurement of every way to a PNG. ValueError where there is none."""
    figure = figure_of(rows)
    write_whole(target, lambda part: figure.savefig(part, dpi=130, format="png"))


def figure_of(rows: list[dict[str, str]]) -> Figure:
    """Models, devices and weights in rows of panels, batch sizes in columns."""
    rows = [row for row in named(rows) if row["lengths"] == "natural"]
    shown = _fastest(latest(rows, KEYS))
    if not shown:
        raise ValueError("rows: none of natural lengths, expected bench.depths'")
    models = list(dict.fromkeys((row["device"], row["model"]) for row in shown))
    batches = sorted({int(row["batch"]) for row in shown})
    size = (3.8 * len(batches), 0.9 + 3.4 * len(models))
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(models), len(batches), sharey="row", squeeze=False)
    for model, panels in zip(models, grid, strict=True):
        for batch, panel in zip(batches, panels, strict=True):
            own = [row for row in shown if (row["device"], row["model"]) == model]
            own = [row for row in own if int(row["batch"]) == batch]
            _draw_panel(panel, own)
            name = f"{model[1]}, {batch} row{'s' * (batch > 1)}"
            panel.set_title(name if own else f"{name}: not measured", fontsize=10)
        panels[0].set_ylabel(f"ROUGE-L\n{model[0]}", fontsize=9)
    for panel in grid[-1]:
        panel.set_xlabel("decoding, times as fast as full depth")
    targets = {row["target"]: None for row in shown if row["target"]}
    handles = [Line2D([], [], color=c, label=label, marker="o") for label, c in WAYS.values()]
    for name in targets:
        style = {"linestyle": "", "marker": MARKERS[name]}
        handles.append(Line2D([], [], color="grey", label=TARGETS[name], **style))
    hollow = {"linestyle": "", "marker": "o", "markerfacecolor": "white"}
    handles.append(Line2D([], [], color="grey", label="what the possible time allows", **hollow))
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=7)
    return figure


def _draw_panel(panel: Axes, rows: list[dict[str, str]]) -> None:
    """A model at a batch size."""
    for row in rows:
        colour, marker = WAYS[row["way"]][1], MARKERS[row["target"]]
        quality = float(row["rougeL"])
        measured, possible = (float(row[k]) for k in ("speedup_decode", "possible_decode"))
        if row["way"] != "full":
            panel.plot([measured, possible], [quality, quality], color=colour, linewidth=0.8)
            panel.plot([possible], [quality], marker, color=colour, markerfacecolor="white")
        panel.plot([measured], [quality], marker, color=colour, markersize=7)
    if rows:
        panel.axhline(float(rows[0]["rougeL_full"]), color="grey", linewidth=0.8, linestyle=":")
    panel.grid(alpha=0.25)


def _fastest(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Of a way under several schedules, the fastest."""
    best: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        key = tuple(row[k] for k in KEYS if k != "schedule")
        if key not in best or float(row["speedup_decode"]) > float(best[key]["speedup_decode"]):
            best[key] = row
    return list(best.values())


if __name__ == "__main__":
    sys.exit(draw_file("depths_plot", "depths.csv", draw, sys.argv[1:]))
