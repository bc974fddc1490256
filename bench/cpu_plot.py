"""python -m bench.cpu_plot [CSV [PNG]]: the picture of README from committed measurements.

A row of panels for each processor that ran enough engines. Left: whole loops of dynkern and its
peers on one shape. Right: decode speed-up of routed passes beside what their possible time allows,
the last row of a case.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402

from bench.results_file import by_device  # noqa: E402
from dynkern.files import write_whole  # noqa: E402

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RESULTS = Path(__file__).resolve().parent / "results"
SHAPE = "125m"
# engines of a run that is worth showing
ENOUGH = 4
TICKS = (20, 50, 100, 200, 500, 1000, 2000)
ENGINES = {
    "hf-bfloat16": ("HF eager bf16", "#bdbdbd"),
    "ctranslate2-int8": ("CTranslate2 int8", "#d9b38c"),
    "openvino-float32": ("OpenVINO fp32", "#c6dbef"),
    "dynkern-float32": ("dynkern fp32", "#f4a582"),
    "openvino-bfloat16": ("OpenVINO bf16", "#6baed6"),
    "dynkern-bfloat16": ("dynkern bf16", "#d6604d"),
    "openvino-int8": ("OpenVINO int8", "#2171b5"),
    "dynkern-int8": ("dynkern int8", "#8c1d2f"),
}


def latest(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """The last row of every case."""
    keys = ("group", "shape", "dtype", "batch", "prompt", "new_tokens", "engine", "case")
    return list({tuple(row[key] for key in keys): row for row in rows}.values())


def fullest_runs(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Of each batch size the last run that compared ENOUGH engines, else that which compared most.

    Engines that were not measured in turn must not stand side by side.
    """
    runs: dict[str, list[list[dict[str, str]]]] = {}
    last = None
    for row in rows:
        own = runs.setdefault(row["batch"], [])
        if row["batch"] != last or row["engine"] in {r["engine"] for r in own[-1]}:
            own.append([])
        own[-1].append(row)
        last = row["batch"]
    return [
        row
        for own in runs.values()
        for row in max(reversed(own), key=lambda run: min(len(run), ENOUGH))
    ]


def draw(rows: list[dict[str, str]], target: Path) -> None:
    """All panels to a PNG. ValueError where there are no rows of the shape."""
    real = [r for r in rows if r["shape"].startswith(SHAPE) and r["dry_run"] == "0"]
    devices = {name: own for name, own in by_device(real).items() if _whole(own)}
    if not devices:
        raise ValueError(f"rows: none of a whole loop of {SHAPE}, expected bench.end_to_end's")
    size = (12, 4.4 * len(devices))
    figure, panels = pyplot.subplots(
        len(devices), 2, figsize=size, width_ratios=(3, 2), squeeze=False
    )
    for (name, own), (left, right) in zip(devices.items(), panels, strict=True):
        _draw_loops(_whole(own), left)
        left.set_title(f"OPT-{SHAPE} shape, 64 + 64 tokens, two cores of {name}", fontsize=10)
        _draw_routes(latest(own), right)
    figure.tight_layout()
    write_whole(target, lambda part: figure.savefig(part, dpi=130, format="png"))
    pyplot.close(figure)


def _whole(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return fullest_runs([r for r in rows if r["case"] == "whole loop" and r["seconds"]])


def _draw_loops(whole: list[dict[str, str]], left: Axes) -> None:
    batches = sorted({int(r["batch"]) for r in whole})
    width = 0.85 / len(ENGINES)
    for place, (engine, (label, colour)) in enumerate(ENGINES.items()):
        own = {int(r["batch"]): r for r in whole if r["engine"] == engine}
        if not own:
            continue
        at = [batches.index(b) + (place - len(ENGINES) / 2 + 0.5) * width for b in own]
        heights = [float(r["tokens_per_second"]) for r in own.values()]
        left.bar(at, heights, width, label=label, color=colour)
        for x, height in zip(at, heights, strict=True):
            left.text(x, height * 1.04, f"{height:.0f}", ha="center", fontsize=6.5)
    heights = [float(r["tokens_per_second"]) for r in whole]
    left.set_yscale("log")
    left.set_yticks(TICKS, [str(tick) for tick in TICKS])
    left.minorticks_off()
    left.set_ylim(min(heights) * 0.8, max(heights) * 1.25)
    left.legend(fontsize=7, ncols=2, loc="upper left")
    left.set_xticks(range(len(batches)), [f"{b} row{'s' * (b > 1)}" for b in batches])
    left.set_ylabel("new tokens / s, prefill included")


def _draw_routes(shown: list[dict[str, str]], right: Axes) -> None:
    routed = [r for r in shown if r["group"] in ("realisation", "mixed") and r["predicted"]]
    routed = [r for r in routed if r["case"] != "full" and r["dtype"] == "bfloat16"]
    if not routed:
        right.set_axis_off()
        return
    for batch, marker in zip(sorted({int(r["batch"]) for r in routed}), "os^Dv", strict=False):
        own = [r for r in routed if int(r["batch"]) == batch]
        x, y = ([float(r[key]) for r in own] for key in ("predicted", "speedup"))
        right.plot(x, y, marker, label=f"{batch} row{'s' * (batch > 1)}", alpha=0.8)
    most = max(float(r["predicted"]) for r in routed) * 1.08
    right.plot([1, most], [1, most], color="grey", linewidth=0.8, label="nothing lost")
    right.set_xlabel("speed-up that the possible time allows")
    right.set_ylabel("measured decode speed-up")
    right.set_title("Routed passes, bf16: uniform and mixed routes", fontsize=10)
    right.legend(fontsize=8)


def main(arguments: list[str]) -> int:
    """2 on bad arguments."""
    source = Path(arguments[0]) if arguments else RESULTS / "cpu.csv"
    target = Path(arguments[1]) if len(arguments) > 1 else source.with_suffix(".png")
    if len(arguments) > 2 or not source.is_file():
        print(f"cpu_plot: expected [CSV [PNG]], found no file {source}", file=sys.stderr)
        return 2
    with source.open(newline="", encoding="utf-8") as file:
        try:
            draw(list(csv.DictReader(file)), target)
        except (ValueError, KeyError) as error:
            print(f"cpu_plot: {source}: {error}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
