"""What a sweep over controllers leaves behind: sweep.csv, sweep.png, and a table."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dynkern.files import write_whole


def _size(row: dict[str, Any]) -> str:
    return str(row["depth"]) if row["depth"] == 1 else f"{row['depth']}x{row['width']}"


def print_sweep(console: Console, rows: Sequence[dict[str, Any]]) -> None:
    """What was asked for beside what became of it, on data that nothing was chosen on."""
    grid = Table(pad_edge=False)
    names = ("input", "size", "alpha", "layers asked", "validation", "held out", "loss held out")
    for name in names:
        grid.add_column(name, justify="left" if name == "input" else "right")
    for row in rows:
        asked, unseen = row.get("budget"), row.get("held_out_layers")
        missed = asked is not None and unseen is not None and f" ({unseen - asked:+.2f})"
        grid.add_row(
            row["input"],
            _size(row),
            f"{row['alpha']:g}",
            "" if asked is None else f"{asked:g}",
            f"{row['mean_layers']:.2f}",
            "" if unseen is None else f"{unseen:.2f}{missed or ''}",
            "" if unseen is None else f"{row['held_out_loss']:.4f}",
        )
    console.print(grid)


def write_sweep(output: Path, rows: Sequence[dict[str, Any]]) -> None:
    """sweep.csv and sweep.png: loss against layers for every capacity."""
    names = list(dict.fromkeys(name for row in rows for name in row))

    def write(part: Path) -> None:
        with part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    write_whole(output / "sweep.csv", write)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        points = lines.setdefault(f"{row['input']}, {_size(row)}", [])
        points.append((row["mean_layers"], row["validation_loss"]))
    for name, points in lines.items():
        axes.plot(*zip(*sorted(points), strict=True), "o-", label=name, linewidth=1.2)
    axes.set_xlabel("layers run per routed token (mean, arg-max gates)")
    axes.set_ylabel("validation loss [nats a token]")
    axes.grid(alpha=0.25)
    axes.legend(title="input, depth x width")
    write_whole(output / "sweep.png", lambda part: figure.savefig(part, format="png"))
