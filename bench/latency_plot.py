"""python -m bench.latency_plot [CSV [PNG]]: first and later tokens of every engine, in one run.

A column a case. Times are multiples of dynkern's median at full depth in the same run, since only
ratios mean something on a shared machine: the dot is the median, ticks are p95 and p99.
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

NAMES = {
    "dynkern": "dynkern",
    "openvino": "OpenVINO",
    "ctranslate2": "CTranslate2",
    "hf": "transformers, eager",
    "hf_static": "transformers, static cache, compiled",
}
CASE = ("shape", "batch", "lengths")
PARTS = {"first": "first token", "token": "later tokens"}
Rows = list[dict[str, str]]


def draw(rows: Rows, target: Path) -> None:
    """The last measurement of every engine and case to a PNG. ValueError where there is none."""
    measured = [row for row in rows if row["token_p50"]]
    shown = latest(measured, (*CASE, "engine", "policy"))
    cases = list({tuple(row[key] for key in CASE): None for row in shown})
    bases = {case: _base([r for r in shown if _case(r) == case]) for case in cases}
    cases = [case for case in cases if bases[case] is not None]
    if not cases:
        raise ValueError("rows: none beside dynkern's full depth, expected bench.end_to_end's")
    labels = list({(row["engine"], row["policy"]): None for row in shown})
    # the first kind of engine on top
    labels.sort(key=lambda pair: (list(NAMES).index(pair[0].partition("-")[0]), pair[0]))
    height = 1.2 + 0.24 * len(labels) * len(PARTS)
    figure = Figure(figsize=(3.4 + 2.6 * len(cases), height), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(PARTS), len(cases), sharex=True, sharey=True, squeeze=False)
    for line, (part, title) in zip(panels, PARTS.items(), strict=True):
        for panel, case in zip(line, cases, strict=True):
            own = [row for row in shown if _case(row) == case]
            _draw_case(panel, own, bases[case], part, labels)
        line[0].set_yticks(range(len(labels)), [_label(*pair) for pair in labels], fontsize=7)
        line[0].set_ylabel(title)
        line[0].set_ylim(len(labels) - 0.5, -0.5)
    for panel, (shape, batch, lengths) in zip(panels[0], cases, strict=True):
        base = bases[shape, batch, lengths]["dtype"]
        rows_of = f"{batch} row{'s' * (batch != '1')}"
        panel.set_title(
            f"{shape}, {rows_of}, {lengths} lengths\n1 = full depth, {base}", fontsize=8
        )
    for panel in panels[-1]:
        panel.set_xlabel("times the median at full depth", fontsize=8)
    write_whole(target, lambda part: figure.savefig(part, dpi=130, format="png"))


def _case(row: dict[str, str]) -> tuple[str, ...]:
    return tuple(row[key] for key in CASE)


def _base(own: Rows) -> dict[str, str] | None:
    """dynkern at full depth, in bfloat16 where it ran in several dtypes."""
    found = [r for r in own if r["engine"].startswith("dynkern-") and r["policy"] == "full"]
    found.sort(key=lambda row: row["dtype"] != "bfloat16")
    return found[0] if found else None


def _label(engine: str, policy: str) -> str:
    name, _, dtype = engine.partition("-")
    return f"{NAMES[name]} {dtype}" + (f", {policy}" if name == "dynkern" else "")


def _draw_case(
    panel: Axes, own: Rows, base: dict[str, str], part: str, labels: list[tuple[str, str]]
) -> None:
    unit = float(base[f"{part}_p50"])
    for row in own:
        at = labels.index((row["engine"], row["policy"]))
        colour = COLOURS[row["dtype"]]
        x = [float(row[f"{part}_{share}"]) / unit for share in ("p50", "p95", "p99")]
        panel.plot([x[0], x[2]], [at, at], color=colour, linewidth=1)
        panel.plot(x[1:], [at, at], "|", color=colour, markersize=7)
        panel.plot(x[:1], [at], "o", color=colour, markersize=5)
        panel.annotate(
            f"{x[0]:.2f}", (x[0], at), (0, 4), textcoords="offset points", ha="center", fontsize=5.5
        )
    panel.axvline(1, color="grey", linewidth=0.8)
    panel.set_xscale("log", base=2)
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    panel.grid(axis="x", alpha=0.25)


if __name__ == "__main__":
    sys.exit(draw_file("latency_plot", "end_to_end.csv", draw, sys.argv[1:]))
