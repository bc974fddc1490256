"""report.html of `dynkern train-predictor`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dynkern.allocation.predictor import Predictor
from dynkern.allocation.table import Table as ScoreTable
from dynkern.evaluation.allocation_page import (
    STYLES,
    curve_chart,
    flat,
    long_table,
    table_conditions,
)
from dynkern.evaluation.allocation_plot import LABELS
from dynkern.report import (
    Column,
    Figure,
    Histogram,
    Report,
    Section,
    Shares,
    Table,
    command_line,
    conditions,
)
from dynkern.report.scales import interval, number

Facts = Mapping[str, Any]

FILES = {
    "predictor.json, predictor.safetensors": "the predictor: --policy predictor:FOLDER",
    "report.json": "what this page says, in numbers",
    "gap.csv": "all ways at each mean number of layers",
    "groups.csv": "budget and quality against lengths and source",
}


def predictor_report(
    table: ScoreTable,
    predictor: Predictor,
    judged: Any,
    details: Mapping[str, Sequence[Facts]],
    config: Any,
) -> Report:
    """The whole page. judged: a `predictor_report.Judged`; details: rows of CSV files by what they
    are.
    """
    at, layers = judged.at_budget, table.num_layers
    full = at["full"]
    rows = []
    for name, shares in judged.shares.items():
        by_layers: dict[int, float] = {}
        # routes of a file may run equally many layers
        for budget, share in zip(table.routes.budgets, shares, strict=True):
            by_layers[budget] = by_layers.get(budget, 0.0) + share
        mean = sum(budget * share for budget, share in by_layers.items())
        rows.append(Shares(LABELS[name], by_layers, STYLES.of(name), mean))
    figures = [
        Figure(
            "ROUGE-L against mean layers",
            curve_chart(judged.curves, (full["rougeL"], *full["ci"])),
            "Unseen prompts only, all ways at the mean layers that the predictor came to. Bands: "
            "95 % interval over sequences.",
        ),
        Figure(
            "Budgets: share of unseen prompts by layers",
            Histogram("layers given to a sequence", rows, layers),
            "The predictor at its own budget, and the oracle at the same mean layers.",
        ),
    ]
    long = [long_table(caption, part) for caption, part in details.items() if part]
    notes = []
    if not predictor.about["reaches_full_depth_on_train"]:
        notes.append(
            "no budget of the predictor came out as good as full depth on the train split; the "
            "best one was taken"
        )
    if not predictor.about["reads_state"]:
        notes.append("the table holds no prompt states: the predictor reads lengths only")
    if len(judged.rows) < 100:
        notes.append(f"{len(judged.rows)} unseen prompts are few: intervals are wide")
    return Report(
        title=f"A predictor of depth, {config.head}, on {len(judged.rows)} unseen prompts",
        command="train-predictor",
        asked="How much of what an oracle gains can be had by looking at the prompt only, with "
        f"{layers} layers to choose from?",
        settings=flat(
            {
                "budget": config.budget,
                "head": config.head,
                "train share": config.train_share,
                "resamples": config.resamples,
                "seed": config.seed,
                **{k: v for k, v in predictor.about.items() if isinstance(v, str | int | float)},
            }
        ),
        found=sentences(judged, layers),
        sections=[
            Section("Quality and cost", figures),
            Section("All numbers", [_at_budget(judged), *long]),
        ],
        conditions=conditions(table_conditions(table)),
        rerun=[command_line(config)],
        notes=notes,
        rerun_note="A folder that holds a predictor is not written over: name another one with "
        "--output.",
        files=FILES,
    )


def sentences(judged: Any, layers: int) -> list[str]:
    """What was found, as the numbers have it."""
    at = judged.at_budget
    mine, full = at["predictor"], at["full"]
    apart = mine["ci"][1] < full["ci"][0] or full["ci"][1] < mine["ci"][0]
    said = [
        f"On {len(judged.rows)} unseen prompts the predictor gives {number(judged.mean_layers, 2)} "
        f"of {layers} layers in the mean and reaches a ROUGE-L of {_value(mine)}; full depth has "
        f"{_value(full)}, and the 95 % intervals {'do not overlap' if apart else 'overlap'}."
    ]
    clauses = [
        f"{_gain(at[name])} against {LABELS[other]}"
        for name, other in (
            ("predictor_minus_histogram", "histogram"),
            ("predictor_minus_one_route", "one_route"),
        )
    ]
    said.append(f"That it looks at the prompt is worth {' and '.join(clauses)}.")
    upper = "held_out" if "held_out" in at else "oracle"
    gap = at[f"{upper}_minus_predictor"]
    said.append(f"With the same layers, {LABELS[upper]} reaches {_value(at[upper])}: {_gain(gap)}.")
    return said


def _value(point: Facts) -> str:
    return f"{number(point['rougeL'], 3)} ({interval(point['ci'], 3)})"


def _gain(point: Facts) -> str:
    low, high = point["ci"]
    verdict = "clear of 0" if low > 0 or high < 0 else "includes 0"
    sign = "+" if point["rougeL"] > 0 else ""
    return (
        f"{sign}{number(point['rougeL'], 3)} (95 % interval {interval((low, high), 3)}, {verdict})"
    )


def _at_budget(judged: Any) -> Table:
    rows = [
        [
            LABELS.get(name, name.replace("_minus_", " minus ").replace("_", " ")),
            number(point["rougeL"], 4),
            interval(point["ci"], 4),
        ]
        for name, point in judged.at_budget.items()
    ]
    heads = [Column("way", is_number=False), Column("ROUGE-L"), Column("95 % interval")]
    return Table(f"At {number(judged.mean_layers, 2)} mean layers", heads, rows)
