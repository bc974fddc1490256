"""report.html of `dynkern oracle` and `dynkern allocate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np

from dynkern.allocation.curve import Allocation
from dynkern.allocation.store import TableStore
from dynkern.allocation.table import Table as ScoreTable
from dynkern.data import Record
from dynkern.evaluation.allocation_plot import LABELS
from dynkern.evaluation.eval_page import SHOWN
from dynkern.evaluation.names import Styles
from dynkern.report import (
    Answer,
    Column,
    Figure,
    Histogram,
    Lines,
    Point,
    Report,
    Sample,
    Section,
    Series,
    Shares,
    Table,
    command_line,
    conditions,
)
from dynkern.report.scales import finite, interval, number, percent

Facts = Mapping[str, Any]

FILES = {
    "results.json": "what this page says, in numbers",
    "curve.csv": "quality at each mean number of layers",
    "routes.csv": "every route, for everybody",
    "groups.csv": "budget and quality against lengths and source",
    "table.sqlite": "every text and score, where `dynkern oracle` wrote here",
}
STYLES = Styles(("oracle", "one_route", "predictor", "held_out", "histogram"))


def allocation_report(
    table: ScoreTable,
    found: Allocation,
    results: Facts,
    details: Mapping[str, Sequence[Facts]],
    records: Mapping[str, Record] | None = None,
    call: Any = None,
) -> Report:
    """The whole page. results: those of results.json; details: rows of CSV files by what they are;
    records: by id, of the command that filled the table.
    """
    layers, prompts = table.num_layers, len(table.ids)
    figures = [
        Figure(
            "ROUGE-L against mean layers",
            curve_chart(
                {
                    name: {"mean_layers": found.mean_layers, "quality": c.quality, "ci": c.ci}
                    for name in ("oracle", "held_out", "histogram", "one_route")
                    if (c := getattr(found, name)) is not None
                },
                (found.full_quality, *found.full_ci),
            ),
            "Bands: 95 % interval over sequences, in which the oracle chooses anew.",
        ),
        budgets_figure(results),
    ]
    long = [long_table(caption, rows) for caption, rows in details.items() if rows]
    sections = [
        Section("Quality and cost", figures),
        sample_section(table, found, records or {}),
        Section("All numbers", [equal_table(results), *long]),
    ]
    missing = results["table"]["missing_prompts"]
    notes = [f"{missing} prompts lack rows and are left out"] if missing else []
    if found.held_out is None:
        notes.append(
            "the oracle looks at the scores it is judged by, so it profits from noise; a table "
            "of --samples 4 --temperature 0.7 has a held-out oracle"
        )
    return Report(
        title=f"A depth for each of {prompts} prompts",
        command="allocate" if records is None else "oracle",
        asked=f"How few of the {layers} layers keep full depth's ROUGE-L if each prompt gets one "
        f"of {len(table.routes.names)} routes for itself (family {table.routes.family})?",
        settings=settings(table, call),
        found=sentences(found, results),
        sections=[section for section in sections if section.blocks],
        conditions=conditions(table_conditions(table)),
        rerun=[command_line(call)],
        notes=notes,
        rerun_note="A table that holds rows is gone on with only by --resume, and running again "
        "changes nothing.",
        files=FILES,
    )


def settings(table: ScoreTable, call: Any) -> dict[str, Any]:
    """What decided the table. call: the arguments that filled it, if they are at hand."""
    named = {name: value for name in ("model", "data") if (value := getattr(call, name, None))}
    skipped = ("model", "executor", "isa")
    known = flat({k: v for k, v in table.manifest.items() if k not in skipped})
    return named | {("digest of " + k if k in named else k): v for k, v in known.items()}


def flat(values: Facts) -> dict[str, Any]:
    """Nested settings as facts."""
    facts: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            facts[name] = ", ".join(f"{key} {item}" for key, item in value.items())
        else:
            facts[name.replace("_", " ")] = value
    return facts


def table_conditions(table: ScoreTable) -> dict[str, Any]:
    """What a table knows of how it came about."""
    manifest, model = table.manifest, table.manifest.get("model", {})
    return {
        "table": PurePath(table.path).name,
        "model": f"{model.get('num_layers')} layers of width {model.get('hidden_size')}, weights "
        f"{model.get('weights')}",
        **{name: manifest.get(name) for name in ("dtype", "executor", "isa")},
    }


def sentences(found: Allocation, results: Facts) -> list[str]:
    """What was found, as the numbers have it."""
    layers, equal = results["num_layers"], results["equal_quality"]
    full = f"full depth's ROUGE-L of {number(found.full_quality, 3)}"
    oracle = equal["oracle"]
    if oracle["mean_layers"] is None:
        said = [f"Not even the oracle keeps {full} below full depth."]
    else:
        said = [
            f"An oracle that knows the scores keeps {full} with "
            f"{number(oracle['mean_layers'], 2)} of {layers} layers in the mean (95 % interval "
            f"{interval(oracle['ci'], 2)}), an upper bound."
        ]
    said.append(_others(equal, layers))
    return [*said, _at_half(found, layers)]


def _others(equal: Facts, layers: int) -> str:
    clauses = []
    for name in ("held_out", "one_route", "histogram"):
        if name not in equal:
            continue
        point = equal[name]
        if point["mean_layers"] is None:
            clauses.append(f"{LABELS[name]} never does")
            continue
        clause = (
            f"{LABELS[name]} needs {number(point['mean_layers'], 2)} ({interval(point['ci'], 2)})"
        )
        if name != "held_out" and equal["oracle"]["ci"]:
            low, high = equal["oracle"]["ci"]
            apart = point["ci"][0] > high or point["ci"][1] < low
            clause += f", an interval {'clear of' if apart else 'that overlaps'} the oracle's"
        clauses.append(clause)
    return f"For the same quality, {'; '.join(clauses)}."


def _at_half(found: Allocation, layers: int) -> str:
    at = int(np.argmin(np.abs(found.mean_layers - layers / 2)))
    best = "oracle" if found.held_out is None else "held_out"
    told = []
    for name in (best, "histogram", "one_route"):
        curve = getattr(found, name)
        limits = interval(curve.ci[:, at].tolist(), 3)
        told.append(f"{LABELS[name]} {number(float(curve.quality[at]), 3)} ({limits})")
    mine, other = getattr(found, best).ci[:, at], found.one_route.ci[:, at]
    apart = mine[0] > other[1] or other[0] > mine[1]
    return (
        f"At {number(float(found.mean_layers[at]), 2)} layers in the mean: {', '.join(told)}; the "
        f"intervals of the first and the last {'do not overlap' if apart else 'overlap'}."
    )


def curve_chart(curves: Mapping[str, Mapping[str, Any]], full: tuple[float, float, float]) -> Lines:
    """Quality against mean layers with bands; full: its quality and interval."""
    series = []
    for name, curve in curves.items():
        low, high = np.asarray(curve["ci"])
        points = [
            Point(*(float(value) for value in values))
            for values in zip(curve["mean_layers"], curve["quality"], low, high, strict=True)
        ]
        series.append(Series(LABELS[name], points, STYLES.of(name), band=True))
    return Lines(
        "mean layers per sequence", "ROUGE-L F1", series, (LABELS["full"], *full), whole_x=True
    )


def budgets_figure(results: Facts) -> Figure:
    """What the oracle gives. results: those of results.json."""
    given, layers = results["oracle"], results["num_layers"]
    # routes may be of equal length
    shares: dict[int, float] = {}
    for budget, share in zip(given["layers"], given["histogram"], strict=True):
        shares[budget] = shares.get(budget, 0.0) + share
    bars = Shares(LABELS["oracle"], shares, STYLES.of("oracle"), given["mean_layers"])
    return Figure(
        "Budgets: share of sequences by layers",
        Histogram("layers given to a sequence", [bars], layers),
        "The oracle at equal quality, or at the best there is.",
    )


def equal_table(results: Facts) -> Table:
    """The layers of equal quality."""
    rows = []
    for name, point in results["equal_quality"].items():
        known = point["mean_layers"] is not None
        share = f"{percent(point['share_of_layers'], 1)}" if known else ""
        limits = interval(point["ci"], 2) if known else ""
        layers = number(point["mean_layers"], 2) if known else "never"
        rows.append([LABELS[name], layers, limits, share])
    heads = [
        Column("way", is_number=False),
        Column("mean layers"),
        Column("95 % interval"),
        Column(f"of {results['num_layers']} layers"),
    ]
    return Table("Fewest mean layers that are as good as full depth", heads, rows)


def long_table(caption: str, rows: Sequence[Facts]) -> Table:
    """Rows of a CSV file as a table that is folded up."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    first = {
        name: next((row[name] for row in rows if row.get(name) is not None), "") for name in names
    }
    heads = [
        Column(name.replace("_", " "), is_number=place > 0 and not isinstance(first[name], str))
        for place, name in enumerate(names)
    ]
    cells = [[_cell(row.get(name)) for name in names] for row in rows]
    return Table(caption, heads, cells, is_long=True)


def _cell(value: Any) -> str:
    if isinstance(value, float | np.floating):
        return number(float(value), 4) if finite(float(value)) else "n/a"
    return "n/a" if value is None else str(value)


def sample_section(table: ScoreTable, found: Allocation, records: Mapping[str, Record]) -> Section:
    """Some prompts' texts under the oracle's route beside others'."""
    count = min(SHOWN, len(table.ids))
    layers = table.routes.budgets
    fixed = sorted({0, len(layers) // 2, len(layers) - 1})
    samples = []
    with TableStore.connect(table.path) as store:
        for place in (at * len(table.ids) // count for at in range(count)):
            mine = int(found.solution.choice[place])
            texts = dict(
                store.select(
                    "SELECT r.route, r.text FROM rows r JOIN prompts p ON p.prompt = r.prompt "
                    "WHERE p.id = ? AND r.sample = 0",
                    (table.ids[place],),
                )
            )
            answers = [
                Answer(
                    f"{table.routes.names[route]}" + (", the oracle's" if route == mine else ""),
                    texts[route],
                    [
                        f"{layers[route]} layers",
                        f"{table.tokens[place, route, 0]} tokens",
                        f"ROUGE-L {number(float(table.quality[place, route, 0]), 2)}",
                    ],
                )
                for route in dict.fromkeys([mine, *reversed(fixed)])
            ]
            record = records.get(table.ids[place])
            asked = f"{table.prompt_tokens[place]} tokens; the table does not keep the text"
            if record is not None:
                asked = "\n".join(part for part in (record.instruction, record.input) if part)
            references = () if record is None else record.references or (record.output,)
            samples.append(Sample(f"Prompt {table.ids[place]}", asked, references, answers))
    lead = "Prompts at even distances in the data; the oracle's own route first."
    return Section("Texts side by side", samples, [lead])
