"""python -m bench.figures [FOLDER]: every picture of README anew, from the committed results.

Pictures whose results are not there yet are named and left out; exit code 1 where one that is there
cannot be drawn. FOLDER: where to, by default bench/results.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import cost_model_plot, cpu_plot, depths_plot, latency_plot, pretrain_plot, scaling_plot
from bench.results_file import read
from dynkern.evaluation.report import plot_curve
from dynkern.training.curves import draw_curves, numbered

RESULTS = Path(__file__).resolve().parent / "results"
Rows = list[dict[str, str]]
NUMBERS = ("rougeL", "mean_layers", "seconds", "rougeL_low", "rougeL_high")


def draw_eval(rows: Rows, target: Path) -> None:
    """ROUGE-L against seconds and layers of the last evaluation kept."""
    last = [row for row in rows if row["time"] == rows[-1]["time"]]
    runs: list[dict[str, Any]] = []
    for row in last:
        numbers = {key: float(row[key]) for key in NUMBERS}
        interval = [numbers["rougeL_low"], numbers["rougeL_high"]]
        loaded = row["loaded"] == "True"
        runs.append({**numbers, "policy": row["policy"], "rougeL_ci": interval, "loaded": loaded})
    plot_curve(runs, target)


def draw_pretrain(rows: Rows, target: Path) -> None:
    """Loss, scores and accuracy by family of the run that made the shipped weights."""
    draw_curves(numbered(rows)).savefig(target, format="png")


# name of the CSV and of the PNG, and what draws it
FIGURES: dict[str, Callable[[Rows, Path], None]] = {
    "eval": draw_eval,
    "eval_tasks": draw_eval,
    "cpu": cpu_plot.draw,
    "end_to_end": latency_plot.draw,
    "depths": depths_plot.draw,
    "cost_model": cost_model_plot.draw,
    "scaling": scaling_plot.draw,
    "pretrain": draw_pretrain,
    "pretrain_scores": pretrain_plot.draw,
}


def main(arguments: list[str]) -> int:
    """1 where a picture cannot be drawn, 2 on bad arguments."""
    if len(arguments) > 1:
        print(f"figures: got {len(arguments)} arguments, expected [FOLDER]", file=sys.stderr)
        return 2
    folder, wrong = Path(arguments[0]) if arguments else RESULTS, 0
    for name, draw in FIGURES.items():
        source, target = RESULTS / f"{name}.csv", folder / f"{name}.png"
        if not source.is_file():
            print(f"{name}: not measured yet")
            continue
        try:
            draw(read(source), target)
            print(target)
        except (ValueError, KeyError) as error:
            print(f"{name}: {error}", file=sys.stderr)
            wrong = 1
    return wrong


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
