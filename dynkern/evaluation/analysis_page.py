"""report.html of `dynkern analyze hidden-states | quality`, and of `dynkern calibrate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import PurePath
from typing import Any

from dynkern.evaluation.allocation_page import long_table
from dynkern.evaluation.eval_page import settings
from dynkern.evaluation.names import Styles
from dynkern.report import (
    Column,
    Figure,
    Lines,
    Point,
    Report,
    Section,
    Series,
    Table,
    command_line,
    conditions,
)
from dynkern.report.scales import finite, interval, number, percent

Row = Mapping[str, Any]

STYLES = Styles(("uniform", "early_exit", "random", "uniform-even"))


def hidden_states_report(config: Any, rows: Sequence[Row], layers: Sequence[Row]) -> Report:
    """Of the rows of cosine.csv and layers.csv. config: a HiddenStatesConfig."""
    sequences = rows[0]["sequences"]
    cosine = Lines(
        "layers run by response tokens",
        "cosine distance to full depth's final state",
        family_lines(rows, "cosine_distance", "p10", "p90", band=True),
        whole_x=True,
    )
    # what comes first may change the residual by tens of its norm: nothing else would be seen
    rest = [row["update_ratio"] for row in layers[1:]]
    apart = bool(rest) and layers[0]["update_ratio"] > 5 * max(rest)
    beyond = f" Not drawn: layer 0, {number(layers[0]['update_ratio'], 1)}." if apart else ""
    update = Series(
        "update ÷ residual norm",
        [
            Point(r["layer"], r["update_ratio"], r["update_ratio_p10"], r["update_ratio_p90"])
            for r in layers[int(apart) :]
        ],
        1,
    )
    zero = Series(
        "FFN activations that are 0", [Point(r["layer"], r["ffn_zero"]) for r in layers], 2
    )
    figures = [
        Figure(
            "How far routes bend the final state",
            cosine,
            "Teacher-forced, response tokens only. Bands: 10 to 90 % of sequences.",
        ),
        Figure(
            "What layers do at full depth",
            Lines("layer", "ratio, share", [update, zero], whole_x=True, y_from_zero=True),
            f"Bars: 10 to 90 % of tokens.{beyond}",
        ),
    ]
    long = [
        long_table("Every route", rows),
        long_table("Every layer", layers),
    ]
    return Report(
        title=f"Hidden states of {PurePath(config.model).name} under {len(rows)} routes",
        command="analyze hidden-states",
        asked="How far from full depth's are the final hidden states of skipping, early exit and "
        f"random routes? {sequences} sequences of {PurePath(config.data).name}.",
        settings=settings(asdict(config), dict.fromkeys(row["family"] for row in rows)),
        found=hidden_states_sentences(rows, layers),
        sections=[Section("Curves", figures), Section("All numbers", long)],
        conditions=conditions({"dtype": "float32", "run on": "the trainable PyTorch model"}),
        rerun=[command_line(config)],
        files={"cosine.csv": "the routes", "layers.csv": "the layers"},
    )


def hidden_states_sentences(rows: Sequence[Row], layers: Sequence[Row]) -> list[str]:
    """What was found, as the numbers have it."""
    by = {(row["family"], row["budget"]): row for row in rows}
    budgets = sorted({b for f, b in by if ("early_exit", b) in by and ("uniform", b) in by})[:-1]
    pairs = [(by["uniform", b], by["early_exit", b]) for b in budgets]
    closer = [b for b, (u, e) in zip(budgets, pairs, strict=True) if _mean(u) < _mean(e)]
    sure = [b for b, (u, e) in zip(budgets, pairs, strict=True) if u["ci_high"] < e["ci_low"]]
    said = [
        f"Evenly spread layers end closer to full depth than early exit at {len(closer)} of "
        f"{len(budgets)} budgets; at {len(sure)} of them the 95 % intervals do not overlap."
    ]
    if budgets:
        middle = budgets[len(budgets) // 2]
        told = [
            f"{family} {number(_mean(by[family, middle]), 3)} "
            f"({interval((by[family, middle]['ci_low'], by[family, middle]['ci_high']), 3)})"
            for family in ("uniform", "early_exit", "random")
            if (family, middle) in by
        ]
        said.append(f"With {middle} layers the cosine distances are {', '.join(told)}.")
    most, least = (pick(layers, key=lambda r: r["update_ratio"]) for pick in (max, min))
    zeros = [row["ffn_zero"] for row in layers]
    said.append(
        f"Layer {most['layer']} changes the residual most ({number(most['update_ratio'], 2)} of "
        f"its norm), layer {least['layer']} least ({number(least['update_ratio'], 2)}); "
        f"{percent(min(zeros))} to {percent(max(zeros))} of the FFN activations are exactly 0."
    )
    return said


def _mean(row: Row) -> float:
    return row["cosine_distance"]


def family_lines(
    rows: Sequence[Row], key: str, low: str, high: str, x: str = "budget", band: bool = False
) -> list[Series]:
    """A series for each family; rows without a value are left out."""
    families: dict[str, list[Point]] = {}
    for row in rows:
        if finite(row.get(key)) and finite(row.get(x)):
            point = Point(row[x], row[key], row.get(low), row.get(high))
            families.setdefault(row["family"], []).append(point)
    return [
        Series(name, sorted(points, key=lambda p: p.x), STYLES.of(name), band)
        for name, points in families.items()
    ]


def quality_report(page: Report, config: Any, rows: Sequence[Row]) -> Report:
    """The page of `eval` on the same runs, with the losses of quality.csv in it."""
    losses = family_lines(rows, "loss", "", "", x="mean_layers")
    figures = [
        Figure(
            "ROUGE-L against layers, all planned policies",
            Lines(
                "layers run per routed token (mean)",
                "ROUGE-L F1",
                family_lines(rows, "rougeL", "rougeL_low", "rougeL_high", "mean_layers", True),
                whole_x=True,
            ),
            "Bands: 95 % bootstrap interval over prompts.",
        )
    ]
    if losses:
        chart = Lines(
            "layers run per routed token (mean)",
            "teacher-forced loss [nats a token]",
            losses,
            whole_x=True,
        )
        note = "Of the response under the route, the prompt at full depth."
        figures.append(Figure("Loss against layers", chart, note))
    curves = Section("Quality and budgets", figures)
    rest = [section for section in page.sections if section.title != "Quality and cost"]
    return replace(
        page,
        command="analyze quality",
        asked="What becomes of ROUGE-L and loss under every planned policy at every budget, on "
        f"{PurePath(config.data).name}? Up to "
        f"{config.max_new_tokens} new tokens each, greedily.",
        settings=settings(asdict(config), (row["policy"] for row in rows)),
        rerun=[command_line(config)],
        sections=[curves, *rest],
        files={"quality.csv": "the curves", **page.files},
    )


def calibration_report(config: Any, result: Row, rows: Sequence[Row]) -> Report:
    """Of calibration.json and the rows of thresholds.csv with intervals, full depth first."""
    full, tried = rows[0], rows[1:]
    kept = config.target * full["rougeL"]
    points = [Point(r["threshold"], r["rougeL"], r["rougeL_low"], r["rougeL_high"]) for r in tried]
    chart = Lines(
        f"threshold ({config.measure})",
        "ROUGE-L F1",
        [Series("confidence", points, 1)],
        (f"{percent(config.target)} of full depth", kept, None, None),
        x_from_zero=False,
    )
    layers = [Point(r["threshold"], r["mean_layers"]) for r in tried if finite(r["mean_layers"])]
    figures = [
        Figure("ROUGE-L against threshold", chart, "Bars: 95 % bootstrap interval over prompts."),
        Figure(
            "Layers against threshold",
            Lines(
                f"threshold ({config.measure})",
                "layers run per routed token (mean)",
                [Series("confidence", layers, 1)],
                x_from_zero=False,
                y_from_zero=True,
                places=2,
            ),
        ),
    ]
    heads = [
        Column("policy", is_number=False),
        Column("ROUGE-L", "mean F1 with its 95 % bootstrap interval over prompts"),
        Column("of full depth"),
        Column("layers", "run per routed token"),
    ]
    cells = [
        [
            row["policy"],
            f"{number(row['rougeL'], 3)} ({interval((row['rougeL_low'], row['rougeL_high']), 3)})",
            f"{percent(row['rougeL'] / full['rougeL'], 1)}" if full["rougeL"] else "n/a",
            number(row["mean_layers"], 2),
        ]
        for row in rows
    ]
    return Report(
        title=f"A confidence threshold that keeps {percent(config.target)}",
        command="calibrate",
        asked=f"From which threshold of {config.measure} on does leaving early keep "
        f"{percent(config.target)} of full depth's ROUGE-L? {result['prompts']} prompts of "
        f"{PurePath(config.data).name}, {len(tried)} thresholds.",
        settings=settings(asdict(config), [config.policy]),
        found=calibration_sentences(config, result, full),
        sections=[
            Section("Curves", figures),
            Section("All numbers", [Table("Thresholds", heads, cells)]),
        ],
        conditions=conditions(result["environment"]),
        rerun=[command_line(config)],
        files={"calibration.json": "the choice", "thresholds.csv": "all thresholds"},
    )


def calibration_sentences(config: Any, result: Row, full: Row) -> list[str]:
    """What was found, as the numbers have it."""
    low, high = ("above the range" if t is None else f"{t:.4g}" for t in result["threshold_ci"])
    ends = f"(95 % interval of that choice: {low} to {high})"
    if result["threshold"] is None:
        said = [f"No threshold keeps {percent(config.target)} of full depth's ROUGE-L {ends}."]
    else:
        said = [
            f"From {config.measure} {result['threshold']:.4g} on, {percent(config.target)} of full "
            f"depth's ROUGE-L is kept {ends}."
        ]
    said.append(
        f"{result['policy']} has a ROUGE-L of {number(result['rougeL'], 3)}, "
        f"{percent(result['kept'], 1)} of full depth's {number(result['full_rougeL'], 3)}."
    )
    if finite(result["mean_layers"]) and finite(full["mean_layers"]):
        said.append(
            f"It runs {number(result['mean_layers'], 2)} of {number(full['mean_layers'], 0)} "
            "layers for each routed token; no time was measured."
        )
    return said
