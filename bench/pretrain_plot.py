"""python -m bench.pretrain_plot [CSV [PNG]]: runs of `dynkern pretrain` beside each other.

Loss and some skills while they trained, from the runs' curves, and what their bundles score on test
tasks, with 95 % intervals.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bench.cost_model_plot import draw_file
from bench.results_file import read
from dynkern.files import write_whole
from dynkern.training.curves import numbered

RESULTS = Path(__file__).resolve().parent / "results"
# curves, what a legend calls the run, line and colour
RUNS = {
    "shipped": ("pretrain.csv", "shipped", "-", "#D55E00"),
    "other": ("pretrain_other.csv", "another run", "--", "#0072B2"),
    "other 2": ("pretrain_other_2.csv", "a third run", ":", "#009E73"),
}
# one of each kind: copied, looked up, followed through a table, counted
SKILLS = {"reverse": "#0072B2", "table": "#D55E00", "hops": "#009E73", "count": "#CC79A7"}


def draw(rows: list[dict[str, str]], target: Path) -> None:
    """The scores of the last comparison, and its runs' curves, to a PNG. ValueError where there are
    not two runs or more, or one that has no curves here.
    """
    last = max((row["time"] for row in rows), default="")
    shown = [row for row in rows if row["time"] == last]
    runs = {row["run"] for row in shown}
    if len(runs) < 2 or not runs <= set(RUNS):
        raise ValueError("rows: not of two or three runs, expected bench.pretrain_scores'")
    figure = Figure(figsize=(15, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    loss, skills, scores = panels = figure.subplots(1, 3)
    # the legend has a colour for each skill and a style for each run, no entry for each pair
    for skill, shade in SKILLS.items():
        skills.plot([], [], color=shade, linewidth=1.1, label=skill)
    for run, (source, *look) in RUNS.items():
        if run not in runs:
            continue
        curves = [row for row in numbered(read(RESULTS / source)) if row["split"] == "training"]
        _draw_curves(loss, skills, curves, look)
        _draw_scores(scores, [row for row in shown if row["run"] == run], look)
    loss.set_yscale("log")
    loss.set_ylabel("training loss [nats a token]")
    skills.set_ylabel("answer tokens foretold in training")
    scores.set_ylabel(f"ROUGE-L F1 of {shown[0]['prompts']} test tasks, 95 % intervals")
    scores.set_xlabel("layers that run for later tokens [%]")
    for panel in (loss, skills):
        panel.set_xlabel("tokens trained on [millions]")
    for panel in panels:
        panel.grid(alpha=0.25)
        panel.legend(fontsize="small")
    write_whole(target, lambda part: figure.savefig(part, format="png", dpi=120))


def _draw_curves(
    loss: Axes, skills: Axes, rows: Sequence[dict[str, Any]], look: Sequence[str]
) -> None:
    name, style, colour = look

    def line(panel: Axes, column: str, shade: str, label: str = "") -> None:
        # no line where nothing of the kind was trained
        at, seen = zip(*((r["tokens"] / 1e6, r.get(column, math.nan)) for r in rows), strict=True)
        panel.plot(at, seen, style, color=shade, linewidth=1.1, label=label)

    line(loss, "loss", colour, name)
    for skill, shade in SKILLS.items():
        line(skills, f"accuracy_{skill}", shade)
    skills.plot([], [], style, color="black", linewidth=1.1, label=name)


def _draw_scores(panel: Axes, rows: Sequence[dict[str, str]], look: Sequence[str]) -> None:
    name, style, colour = look
    means = [float(row["rougeL"]) for row in rows]
    low, high = ([float(row[f"rougeL_{end}"]) for row in rows] for end in ("low", "high"))
    errors = [
        [mean - end for mean, end in zip(means, low, strict=True)],
        [end - mean for mean, end in zip(means, high, strict=True)],
    ]
    shares = [1.0 if row["layers"] == "full" else float(Fraction(row["layers"])) for row in rows]
    panel.errorbar(
        [100 * share for share in shares],
        means,
        errors,
        linestyle=style,
        color=colour,
        marker="o",
        markersize=4,
        capsize=3,
        label=name,
    )


if __name__ == "__main__":
    sys.exit(draw_file("pretrain_plot", "pretrain_scores.csv", draw, sys.argv[1:]))
