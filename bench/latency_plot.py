"""python -m bench.latency_plot [CSV [PNG]]: first and later tokens of every engine, in one run.

A column a case and device. Times are multiples of dynkern's median at full depth in the same run
and dtype, since only ratios mean something on a shared machine. Dot: median; ticks: p95 and p99.
"""

from __future__ import annotations

import sys
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bench.cost_model_plot import COLOURS, draw_file
from bench.results_file import latest, named
from dynkern.files import write_whole

NAMES = {
    "dynkern": "dynkern",
    "openvino": "OpenVINO",
    "ctranslate2": "CTranslate2",
    "hf_static": "transformers, compiled",
    "hf": "transformers, eager",
}
CASE = ("device", "shape", "batch", "lengths")
PARTS = {"first": "first token", "token": "later tokens"}
FULL = "dynkern, full"
Rows = list[dict[str, str]]


def draw(rows: Rows, target: Path) -> None:
    """The last measurement of every engine and case to a PNG. ValueError where there is none."""
    measured = [row for row in named(rows) if row["token_p50"]]
    shown = latest(measured, (*CASE, "engine", "policy"))
    bases = {(*_case(row), row["dtype"]): row for row in shown if _label(row) == FULL}
    shown = [row for row in shown if (*_case(row), row["dtype"]) in bases]
    if not shown:
        raise ValueError("rows: none beside dynkern's full depth, expected bench.end_to_end's")
    cases = sorted(
        dict.fromkeys(map(_case, shown)), key=lambda case: (*case[:2], int(case[2]), case[3])
    )
    labels = list(dict.fromkeys(map(_label, sorted(shown, key=_place))))
    height = 1.6 + 0.36 * len(labels) * len(PARTS)
    figure = Figure(figsize=(2.2 + 2.6 * len(cases), height), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(PARTS), len(cases), sharex=True, sharey=True, squeeze=False)
    for line, (part, title) in zip(panels, PARTS.items(), strict=True):
        for panel, case in zip(line, cases, strict=True):
            own = [row for row in shown if _case(row) == case]
            dtypes = list(dict.fromkeys(row["dtype"] for row in own))
            for place, dtype in enumerate(dtypes):
                shift = 0.45 * (place - (len(dtypes) - 1) / 2)
                unit = float(bases[(*case, dtype)][f"{part}_p50"])
                for row in own:
                    if row["dtype"] == dtype:
                        _draw_row(panel, row, part, unit, labels.index(_label(row)) + shift)
            _dress(panel)
        line[0].set_yticks(range(len(labels)), labels, fontsize=7)
        line[0].set_ylabel(title)
        line[0].set_ylim(len(labels) - 0.5, -0.5)
    for panel, (device, shape, batch, lengths) in zip(panels[0], cases, strict=True):
        rows_of = f"{batch} row{'s' * (batch != '1')}"
        panel.set_title(f"{device}\n{shape}, {rows_of}, {lengths} lengths", fontsize=8)
    for panel in panels[-1]:
        panel.set_xlabel("times the median at full depth", fontsize=8)
    used = [dtype for dtype in COLOURS if any(row["dtype"] == dtype for row in shown)]
    handles = [Line2D([], [], color=COLOURS[dtype], marker="o", label=dtype) for dtype in used]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(used), fontsize=7)
    write_whole(target, lambda part: figure.savefig(part, dpi=130, format="png"))


def _case(row: dict[str, str]) -> tuple[str, ...]:
    return tuple(row[key] for key in CASE)


def _place(row: dict[str, str]) -> int:
    return list(NAMES).index(row["engine"].partition("-")[0])


def _label(row: dict[str, str]) -> str:
    name = row["engine"].partition("-")[0]
    return NAMES[name] + (f", {row['policy']}" if name == "dynkern" else "")


def _draw_row(panel: Axes, row: dict[str, str], part: str, unit: float, at: float) -> None:
    colour = COLOURS[row["dtype"]]
    x = [float(row[f"{part}_{share}"]) / unit for share in ("p50", "p95", "p99")]
    panel.plot([x[0], x[2]], [at, at], color=colour, linewidth=1)
    panel.plot(x[1:], [at, at], "|", color=colour, markersize=5)
    panel.plot(x[:1], [at], "o", color=colour, markersize=4)
    style = {"textcoords": "offset points", "ha": "right", "va": "center", "fontsize": 5.5}
    panel.annotate(f"{x[0]:.2f}", (x[0], at), (-4, 0), color=colour, **style)


def _dress(panel: Axes) -> None:
    panel.axvline(1, color="grey", linewidth=0.8)
    panel.set_xscale("log", base=2)
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    panel.margins(x=0.12)
    panel.grid(axis="x", alpha=0.25)


if __name__ == "__main__":
    sys.exit(draw_file("latency_plot", "end_to_end.csv", draw, sys.argv[1:]))
