"""python -m bench.cost_model_plot [CSV [PNG]]: predicted against measured time of a pass."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bench.results_file import latest, read
from dynkern.files import write_whole

RESULTS = Path(__file__).resolve().parent / "results"
COLOURS = {"float32": "#0072B2", "bfloat16": "#D55E00", "int8": "#009E73"}
# of every prediction: 10 % in the mean, 25 % at worst
BANDS = (0.10, 0.25)
KEYS = ("device", "shape", "dtype", "batch", "prompt", "new_tokens", "policy", "kv_fill")
WAYS = {
    ("predicted", "error"): "parts of the same rounds",
    ("predicted_earlier", "error_earlier"): "parts of the first round, runs of later ones",
}


def draw(rows: list[dict[str, str]], target: Path) -> None:
    """Both ways of predicting, the last measurement of every case, to a PNG. Predicted is measured
    and its error: errors are formed within each round, as the machine's speed drifts. ValueError
    where there is none.
    """
    shown = latest(rows, KEYS)
    ways = {way: label for way, label in WAYS.items() if any(row[way[0]] for row in shown)}
    if not ways:
        raise ValueError("rows: none with a prediction, expected bench.cost_model's")
    figure = Figure(figsize=(5.2 * len(ways), 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(ways), sharey=True, squeeze=False)[0]
    batches = sorted({int(row["batch"]) for row in shown})
    for panel, ((key, error), label) in zip(panels, ways.items(), strict=True):
        known = [row for row in shown if row[key]]
        for dtype, colour in COLOURS.items():
            for batch, marker in zip(batches, "os^Dv<>P", strict=False):
                own = [r for r in known if r["dtype"] == dtype and int(r["batch"]) == batch]
                points = [_point(row, error) for row in own]
                name = f"{dtype}, {batch} row{'s' * (batch > 1)}"
                if points:
                    x, y = zip(*points, strict=True)
                    style = {"markersize": 5, "alpha": 0.75, "color": colour}
                    panel.plot(x, y, marker, label=name, **style)
        every = [at for row in known for at in _point(row, error)]
        ends = [min(every) / 1.2, max(every) * 1.2]
        panel.plot(ends, ends, color="grey", linewidth=0.8)
        for band, shade in zip(BANDS, (0.22, 0.12), strict=True):
            low, high = ([end * (1 + side * band) for end in ends] for side in (-1, 1))
            panel.fill_between(ends, low, high, color="grey", alpha=shade, linewidth=0)
        errors = [abs(float(row[error])) for row in known]
        mean, worst = sum(errors) / len(errors), max(errors)
        panel.set_title(f"{label}\nmean error {mean:.1%}, worst {worst:.1%}", fontsize=10)
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_xlabel("measured, ms a pass")
    panels[0].set_ylabel("predicted, ms a pass")
    panels[0].legend(fontsize=7)
    write_whole(target, lambda part: figure.savefig(part, dpi=130, format="png"))


def _point(row: dict[str, str], error: str) -> tuple[float, float]:
    """Milliseconds of a pass: measured, and predicted by the error of one way of predicting."""
    measured = 1e3 * float(row["seconds"])
    return measured, measured * (1 + float(row[error]))


def draw_file(
    command: str, name: str, draw: Callable[[list[dict[str, str]], Path], None], given: list[str]
) -> int:
    """`draw` of [CSV [PNG]], bench/results/NAME by default; 2 on bad arguments."""
    source = Path(given[0]) if given else RESULTS / name
    target = Path(given[1]) if len(given) > 1 else source.with_suffix(".png")
    try:
        if len(given) > 2:
            raise ValueError(f"got {len(given)} arguments, expected [CSV [PNG]]")
        draw(read(source), target)
    except (ValueError, KeyError) as error:
        print(f"{command}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(draw_file("cost_model_plot", "cost_model.csv", draw, sys.argv[1:]))
