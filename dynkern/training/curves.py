"""curves.csv and curves.png of a training run."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dynkern.files import write_whole

_FIRST = ("step", "epoch", "split", "loss", "learning_rate", "grad_norm", "mean_layers")
# Trainer's summary of a whole run, of which nothing happened at a step
_SUMMARY = ("train_runtime", "total_flos")
_BY_TASK = "accuracy_"
_NOT_CURVES = ("runtime", "samples_per_second", "steps_per_second")


def curve_rows(log: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Trainer's log as rows with equal names for training and validation, in order of steps."""
    rows = []
    for entry in log:
        if any(key in entry for key in _SUMMARY):
            continue
        judged = "eval_loss" in entry
        row = {"split": "validation" if judged else "training"}
        for key, value in entry.items():
            name = key.removeprefix("eval_")
            if name not in _NOT_CURVES:
                row[name] = value
        rows.append(row)
    return rows


def write_curves(output: Path, log: Sequence[Mapping[str, Any]]) -> None:
    """Write curves.csv and curves.png into a folder, each whole or not at all."""
    rows = curve_rows(log)
    if not rows:
        return
    names = [*_FIRST, *(dict.fromkeys(k for row in rows for k in row if k not in _FIRST))]
    names = [name for name in names if any(name in row for row in rows)]

    def write(part: Path) -> None:
        with part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    write_whole(output / "curves.csv", write)
    figure = draw_curves(rows)
    write_whole(output / "curves.png", lambda part: figure.savefig(part, format="png"))


def read_curves(folder: Path) -> list[dict[str, Any]]:
    """The rows of a folder's curves.csv, numbers as such; none where there is no such file."""
    if not (folder / "curves.csv").is_file():
        return []
    with (folder / "curves.csv").open(newline="", encoding="utf-8") as file:
        return numbered(csv.DictReader(file))


def numbered(rows: Iterable[Mapping[str, str]]) -> list[dict[str, Any]]:
    """Rows of a curves.csv with numbers as such, empty cells left out."""
    return [
        {name: cell if name == "split" else float(cell) for name, cell in row.items() if cell}
        for row in rows
    ]


def draw_curves(rows: Sequence[Mapping[str, Any]]) -> Any:
    """A matplotlib figure of rows as `read_curves` gives them: a panel for each kind of number."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [("loss", "loss [nats a token]")]
    scored = list(dict.fromkeys(key for row in rows for key in row if key.startswith("rougeL")))
    if scored:
        panels.append(("rougeL", "ROUGE-L F1 (validation)"))
    if any("mean_layers" in row for row in rows):
        panels.append(("mean_layers", "layers run per routed token (mean)"))
    tasks = [row for row in rows if any(key.startswith(_BY_TASK) for key in row)]
    width = len(panels) + bool(tasks)
    figure = Figure(figsize=(5.6 * width, 4.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    row_of_axes = figure.subplots(1, width, squeeze=False)[0]
    if tasks:
        _draw_tasks(row_of_axes[-1], tasks)
    for axes, (key, label) in zip(row_of_axes, panels, strict=False):
        lines = [("training", key, "-", "training"), ("validation", key, "o-", "validation")]
        if key == "rougeL":
            lines = [("validation", name, "o-", name.partition("_")[2]) for name in scored]
        for split, name, style, label_of in lines:
            points = [
                (row["step"], row[name])
                for row in rows
                if row["split"] == split and math.isfinite(row.get(name, math.nan))
            ]
            if points:
                axes.plot(*zip(*points, strict=True), style, label=label_of, linewidth=1.2)
        axes.set_xlabel("optimizer step")
        axes.set_ylabel(label)
        axes.grid(alpha=0.25)
        axes.legend()
    return figure


def _draw_tasks(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """A line of colour for each task, blank where training did not see it."""
    names = list(dict.fromkeys(key for row in rows for key in row if key.startswith(_BY_TASK)))
    # drills behind the tasks that they are for
    names.sort(key=lambda name: name.startswith(f"{_BY_TASK}drill_"))
    steps = [0, *(row["step"] for row in rows)]
    shares = [[row.get(name, math.nan) for row in rows] for name in names]
    drawn = axes.pcolormesh(steps, range(len(names) + 1), shares, vmin=0, vmax=1)
    axes.figure.colorbar(drawn, ax=axes, label="answer tokens foretold in training")
    labels = [name.removeprefix(_BY_TASK) for name in names]
    axes.set_yticks([place + 0.5 for place in range(len(names))], labels, fontsize="x-small")
    axes.invert_yaxis()
    axes.set_xlabel("optimizer step")
