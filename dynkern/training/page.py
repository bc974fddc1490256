"""report.html of `dynkern finetune` and `dynkern train-controller`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import PurePath
from typing import Any

from dynkern.report import (
    Column,
    Figure,
    Histogram,
    Lines,
    Point,
    Report,
    Section,
    Series,
    Shares,
    Table,
    command_line,
    conditions,
)
from dynkern.report.scales import finite, number, percent
from dynkern.training.curves import curve_rows, read_curves

Row = Mapping[str, Any]

# of training losses; more are a cloud
MOST_POINTS = 200
# of a gate, that layers still decide something
OPEN, SHUT = 0.99, 0.01
_STAMP = ("dynkern", "torch", "transformers", "device")
AGAIN = "A stopped run goes on with --resume; another one needs a folder of its own (--output)."


def finetune_report(config: Any, report: Row, log: Sequence[Row]) -> Report:
    """Of finetune.json and the loop's log. config: a FinetuneConfig."""
    name = PurePath(config.model).name if config.model else config.config
    rows = curve_rows(log)
    return Report(
        title=f"{name} trained on {PurePath(config.data).name}",
        command="finetune",
        asked=f"How far down does the validation loss of a model of {report['layers']} layers go "
        f"when {report['trained_parameters']:,} of its {report['parameters']:,} parameters learn "
        f"from {report['training_sequences']:,} sequences?",
        settings=_settings(config),
        found=finetune_sentences(report, rows),
        sections=[Section("Curves", curve_figures(rows)), _counts(report)],
        conditions=conditions({key: report[key] for key in _STAMP}),
        rerun=[command_line(config)],
        notes=_cuts(report),
        rerun_note=AGAIN,
        files={
            "model/": "the weights of the best validation, and the tokenizer",
            "curves.csv": "what was measured, step by step",
            "finetune.json": "what this page says, in numbers",
        },
    )


def _settings(config: Any) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for name, value in asdict(config).items():
        given = value.items() if isinstance(value, dict) else [(name, value)]
        for key, item in given:
            if item is None or item == () or key in ("output", "resume"):
                continue
            shown = ", ".join(map(str, item)) if isinstance(item, tuple | list) else item
            facts[key.replace("_", " ")] = shown
    return facts


def _cuts(report: Row) -> list[str]:
    cut = [
        f"{report[key]} {what} were too long and were cut"
        for key, what in (("cut_prompts", "prompts"), ("cut_responses", "responses"))
        if report.get(key)
    ]
    few = report["validation_sequences"]
    return [*cut, *([f"{few} sequences to validate on are few"] if few < 100 else [])]


def finetune_sentences(report: Row, rows: Sequence[Row]) -> list[str]:
    """What was found, as the numbers have it."""
    judged = _points(rows, "validation", "loss")
    said = [
        f"The best validation loss is {number(report['best_validation_loss'], 4)} nats a token, at "
        f"step {report['best_step']} of {report['steps']}; these weights were kept."
    ]
    if len(judged) > 1:
        first, last = judged[0], judged[-1]
        rose = last.y > report["best_validation_loss"] + 1e-9
        said.append(
            f"It was {number(first.y, 4)} at the first validation (step {first.x:.0f}) and "
            f"{number(last.y, 4)} at the last one (step {last.x:.0f})"
            + (", so training went on past the best." if rose else ", still the lowest.")
        )
    ended = "stopped early, by patience" if report["stopped_early"] else "ran to its end"
    sure = "one seed was tried, so nothing is said of the spread between runs"
    seconds = report.get("seconds")
    took = f" in {number(seconds / 60, 1)} minutes" if finite(seconds) else ""
    return [*said, f"Training {ended}{took}; {sure}."]


def _points(rows: Sequence[Row], split: str, key: str) -> list[Point]:
    return [
        Point(float(row["step"]), float(row[key]))
        for row in rows
        if row["split"] == split and "step" in row and finite(row.get(key))
    ]


def curve_figures(rows: Sequence[Row]) -> list[Figure]:
    """Loss against steps, and layers where gates decide."""
    figures = []
    for key, label, title in (
        ("loss", "loss [nats a token]", "Loss"),
        ("mean_layers", "layers run per routed token (mean)", "Layers that gates let through"),
    ):
        series = []
        for style, split in enumerate(("training", "validation"), 1):
            points = _points(rows, split, key)
            points = points[:: max(1, len(points) // MOST_POINTS)]
            if points:
                # a line per split; the many points of training are no marks
                series.append(Series(split, points, style, band=style == 1))
        if series:
            chart = Lines("optimizer step", label, series, whole_x=True)
            figures.append(Figure(f"{title} against steps", chart))
    return figures


def _counts(report: Row) -> Section:
    rows = [
        [key.replace("_", " "), f"{value:,}" if isinstance(value, int) else number(value, 4)]
        for key, value in report.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    heads = [Column("what", is_number=False), Column("how much")]
    return Section("All numbers", [Table("What was trained, and what came of it", heads, rows)])


def controllers_report(config: Any, rows: Sequence[Row]) -> Report:
    """Of one controller, whose curves are read from the folder, or a sweep: rows as of
    controller.json. config: a ControllerConfig.
    """
    layers = rows[0]["layers"]
    figures: list[Figure] = []
    if len(rows) > 1:
        figures.append(sweep_figure(rows))
    else:
        figures += curve_figures(read_curves(config.output))
    figures += rates_figure(rows, layers)
    many = f"{len(rows)} skip controllers" if len(rows) > 1 else "A skip controller"
    return Report(
        title=f"{many} for {PurePath(config.model).name}",
        command="train-controller",
        asked=f"Which of {layers} layers do gates leave out when each executed layer costs "
        f"(alpha {', '.join(f'{alpha:g}' for alpha in config.alphas)}), and at what loss? "
        f"{rows[0]['training_sequences']:,} sequences of {PurePath(config.data).name}.",
        settings=_settings(config),
        found=controller_sentences(rows),
        sections=[Section("Loss and layers", figures), Section("All numbers", [_table(rows)])],
        conditions=conditions({key: rows[0][key] for key in _STAMP}),
        rerun=[command_line(config)],
        notes=_cuts(rows[0]),
        rerun_note=AGAIN,
        files={
            "controller.safetensors": "a policy: --policy controller:PATH; in a folder of its own "
            "for each combination of a sweep",
            "curves.csv": "what was measured, step by step",
        },
    )


def _name(row: Row) -> str:
    size = f"depth {row['depth']}" + (f" × {row['width']}" if row["depth"] > 1 else "")
    return f"{row['input']}, {size}, alpha {row['alpha']:g}"


def controller_sentences(rows: Sequence[Row]) -> list[str]:
    """What was found, as the numbers have it."""
    layers = rows[0]["layers"]
    best = min(rows, key=lambda row: row["validation_loss"])
    least = min(rows, key=lambda row: row["mean_layers"])

    def told(row: Row) -> str:
        return (
            f"{number(row['validation_loss'], 4)} nats a token with "
            f"{number(row['mean_layers'], 2)} of {layers} layers"
        )

    if len(rows) == 1:
        said = [f"The controller ({_name(best)}) comes to a validation loss of {told(best)}."]
    else:
        said = [
            f"The lowest validation loss is that of {_name(best)}: {told(best)}.",
            f"The fewest layers are those of {_name(least)}: {told(least)}.",
        ]
    rates = _rates(best)
    if rates:
        always = [n for n, rate in rates.items() if rate >= OPEN]
        never = [n for n, rate in rates.items() if rate <= SHUT]
        said.append(
            f"{'Its gates' if len(rows) == 1 else 'The gates of the first'} are open for "
            f"{len(always)} layers at nearly every token, shut for {len(never)}, and decide at "
            f"{len(rates) - len(always) - len(never)}."
        )
    if len(rows) == 1:
        said.append("One seed was tried, so nothing is said of the spread between runs.")
    return said


def _rates(row: Row) -> dict[int, float]:
    return {
        int(key.removeprefix("rate_")): float(value)
        for key, value in row.items()
        if key.startswith("rate_") and finite(value)
    }


def rates_figure(rows: Sequence[Row], layers: int) -> list[Figure]:
    """How often each layer runs."""
    drawn = [(row, rates) for row in rows[:8] if (rates := _rates(row))]
    if not drawn:
        return []
    bars = [
        Shares(_name(row), rates, style, row["mean_layers"])
        for style, (row, rates) in enumerate(drawn, 1)
    ]
    note = "Share of routed tokens at which the gate of a layer is open (arg-max); first and last "
    note += "layers have none. The tallest bar of a row with its share."
    more = f" {len(rows) - len(drawn)} more in the table." if len(rows) > len(drawn) else ""
    chart = Histogram("layer", bars, layers - 1, what="routed tokens")
    return [Figure("Execution rate of each layer", chart, note + more)]


def sweep_figure(rows: Sequence[Row]) -> Figure:
    """Loss against layers for every capacity."""
    lines: dict[str, list[Point]] = {}
    for row in rows:
        name = _name(row).rpartition(", ")[0]
        point = Point(row["mean_layers"], row["validation_loss"], label=f"{row['alpha']:g}")
        lines.setdefault(name, []).append(point)
    series = [
        Series(name, sorted(points, key=lambda p: p.x), style)
        for style, (name, points) in enumerate(lines.items(), 1)
    ]
    chart = Lines(
        "layers run per routed token (mean)", "validation loss [nats a token]", series, whole_x=True
    )
    return Figure("Loss against layers", chart, "Numbers at points: alpha, the cost of a layer.")


def _table(rows: Sequence[Row]) -> Table:
    heads = [
        Column("controller", is_number=False),
        Column("layers", "run per routed token in the validation, gates by arg-max"),
        Column("of all"),
        Column("validation loss", "nats a token"),
        Column("objective", "loss + alpha · executed share"),
        Column("parameters"),
        Column("step", "of the weights that were kept"),
    ]
    cells = [
        [
            _name(row),
            number(row["mean_layers"], 2),
            percent(row["mean_layers"] / row["layers"]),
            number(row["validation_loss"], 4),
            number(row.get("validation_objective"), 4),
            f"{row['controller_parameters']:,}",
            str(row["best_step"] if "best_step" in row else row["steps"]),
        ]
        for row in rows
    ]
    return Table("Controllers", heads, cells)
