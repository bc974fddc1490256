"""`dynkern allocate`: what a table says, as results.json, CSV files, pictures and a summary."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table as Grid

from dynkern.allocation.bootstrap import RESAMPLES
from dynkern.allocation.curve import Allocation, Curve, allocate
from dynkern.allocation.groups import Group, grouped
from dynkern.allocation.table import Table, load_table
from dynkern.arguments import check_integer
from dynkern.data import Record
from dynkern.evaluation.allocation_page import allocation_report
from dynkern.evaluation.allocation_plot import LABELS, draw_allocation, draw_groups
from dynkern.evaluation.report import plain
from dynkern.files import make_folder, write_whole
from dynkern.report import write_report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CURVES = ("oracle", "held_out", "histogram", "one_route")


def report_allocation(
    path: Path,
    output: Path,
    console: Console,
    resamples: int = RESAMPLES,
    seed: int = 0,
    records: Sequence[Record] | None = None,
    call: Any = None,
) -> dict[str, Any]:
    """Analyse a table and write results.json, curve.csv, routes.csv, groups.csv, allocation.png,
    groups.png and report.html into `output`, each whole or not at all; hands back what results.json
    holds. records: the prompts in words, for the report; call: what asked for it, from Python.

    Equal tables give equal files, but for the report's time of writing. ValueError, one line, where
    there is no table to analyse.
    """
    check_integer("resamples", resamples, 1)
    check_integer("seed", seed, 0)
    table = load_table(path)
    _check_own(output / "results.json", table)
    make_folder(output)
    found = allocate(table, resamples, seed)
    rows = np.arange(len(table.ids))
    groups = grouped(table, rows, {"oracle": found.solution.choice}, resamples, seed)
    results = summary(table, found, resamples, seed)
    save_json(output / "results.json", results)
    details = {
        "Every route, for everybody": route_rows(table, found),
        "Quality at each mean number of layers": curve_rows(found),
        "Budget and quality in groups": group_rows(groups),
    }
    save_csv(output / "curve.csv", curve_rows(found))
    save_csv(output / "routes.csv", route_rows(table, found))
    if groups:
        save_csv(output / "groups.csv", group_rows(groups))
        save_figure(output / "groups.png", draw_groups(groups, _title(table)))
    curves = {
        name: {"mean_layers": found.mean_layers, "quality": curve.quality, "ci": curve.ci}
        for name in CURVES
        if (curve := getattr(found, name)) is not None
    }
    shares = {"oracle": results["oracle"]["histogram"]}
    full = (found.full_quality, *found.full_ci)
    layers = table.routes.budgets
    save_figure(
        output / "allocation.png", draw_allocation(curves, full, layers, shares, _title(table))
    )
    print_summary(console, results)
    console.print(f"results in {output}", highlight=False, soft_wrap=True)
    known = None if records is None else {record.id: record for record in records}
    page = write_report(output, allocation_report(table, found, results, details, known, call))
    console.print(f"report in {page}", highlight=False, soft_wrap=True)
    return results


def _check_own(path: Path, table: Table) -> None:
    """Raise a one-line ValueError where a report of something else would be overwritten."""
    if not path.exists():
        return
    try:
        about = dict(json.loads(path.read_text(encoding="utf-8"))["table"])
    except (ValueError, KeyError, TypeError, OSError):
        about = {}
    about.pop("missing_prompts", None)
    if about != table.manifest:
        raise ValueError(f"output: {path} holds another report; take another --output")


def _title(table: Table) -> str:
    return f"{len(table.ids)} prompts, {table.num_layers} layers, family {table.routes.family}"


def summary(table: Table, found: Allocation, resamples: int, seed: int) -> dict[str, Any]:
    """The numbers of results.json."""
    costs, choice = table.costs, found.solution.choice
    counts = np.bincount(choice, minlength=len(costs))
    every = np.arange(len(choice))
    # passes of tokens 2..N are what a route governs
    passes = np.maximum(table.tokens[every, choice] - 1, 0).mean(axis=1)
    weighted = float((passes * costs[choice]).sum() / passes.sum()) if passes.sum() else None
    equal = {
        name: {
            "mean_layers": point.mean_layers,
            "ci": point.ci,
            "share_of_layers": None
            if point.mean_layers is None
            else point.mean_layers / table.num_layers,
        }
        for name, point in found.equal.items()
    }
    return {
        "table": {**table.manifest, "missing_prompts": table.missing},
        "num_layers": table.num_layers,
        "prompts": len(table.ids),
        "resamples": resamples,
        "seed": seed,
        "full": {"rougeL": found.full_quality, "ci": found.full_ci},
        "equal_quality": equal,
        "oracle": {
            "mean_layers": found.solution.cost,
            "mean_layers_per_routed_token": weighted,
            "rougeL": found.solution.value,
            "largest_gap_to_bound": float(found.gap.max()),
            "routes": list(table.routes.names),
            "layers": table.routes.budgets,
            "histogram": (counts / len(choice)).tolist(),
        },
    }


def curve_rows(found: Allocation) -> list[dict[str, Any]]:
    """A row for each mean number of layers."""
    curves = {name: getattr(found, name) for name in CURVES}
    rows = []
    for place, layers in enumerate(found.mean_layers):
        row: dict[str, Any] = {"mean_layers": float(layers)}
        for name, curve in curves.items():
            row |= _columns(name, curve, place)
        rows.append(row | {"oracle_gap_to_bound": float(found.gap[place])})
    return rows


def _columns(name: str, curve: Curve | None, place: int) -> dict[str, Any]:
    if curve is None:
        return {}
    low, high = curve.ci[:, place]
    return {name: curve.quality[place], f"{name}_low": low, f"{name}_high": high}


def route_rows(table: Table, found: Allocation) -> list[dict[str, Any]]:
    """A row for each route: what it does to everybody."""
    rows = []
    for place, (name, keep) in enumerate(zip(table.routes.names, table.routes.keep, strict=True)):
        losses = table.loss[:, place]
        low, high = found.routes.ci[:, place]
        rows.append(
            {
                "route": name,
                "layers": sum(keep),
                "keep": "".join("01"[bit] for bit in keep),
                "rougeL": found.routes.quality[place],
                "rougeL_low": low,
                "rougeL_high": high,
                "loss": None if np.isnan(losses).any() else float(losses.mean()),
                "agreement_with_full": float(table.agreement[:, place].mean()),
                "new_tokens": float(table.tokens[:, place].mean()),
            }
        )
    return rows


def group_rows(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """A row for each group."""
    rows = []
    for group in groups:
        row: dict[str, Any] = {"by": group.by, "group": group.name, "prompts": len(group.members)}
        for what in ("quality", "layers"):
            for way, (mean, low, high) in getattr(group, what).items():
                row |= {f"{way}_{what}": mean, f"{way}_{what}_low": low, f"{way}_{what}_high": high}
        rows.append(row)
    return rows


def save_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON whole or not at all; what is not finite becomes null."""
    content = json.dumps(plain(value), indent=2, allow_nan=False) + "\n"
    write_whole(path, lambda part: part.write_text(content, encoding="utf-8"))


def save_csv(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows of equal keys whole or not at all; numbers with six digits, nothing for None."""
    text, writer = io.StringIO(), None
    for row in rows:
        if writer is None:
            writer = csv.DictWriter(text, list(row), lineterminator="\n")
            writer.writeheader()
        writer.writerow({key: _cell(value) for key, value in row.items()})
    write_whole(path, lambda part: part.write_text(text.getvalue(), encoding="utf-8"))


def _cell(value: Any) -> Any:
    if isinstance(value, float | np.floating):
        return "" if not np.isfinite(value) else f"{value:.6g}"
    return "" if value is None else value


def save_figure(path: Path, figure: Figure) -> None:
    """Write a PNG whole or not at all."""
    write_whole(path, lambda part: figure.savefig(part, format="png"))


def print_summary(console: Console, results: Mapping[str, Any]) -> None:
    """What a reader wants to know first."""
    full, layers = results["full"], results["num_layers"]
    grid = Grid(title=None, pad_edge=False)
    grid.add_column("as good as full depth")
    for name in ("mean layers", "95 % interval", f"of {layers} layers"):
        grid.add_column(name, justify="right")
    for name, point in results["equal_quality"].items():
        if point["mean_layers"] is None:
            grid.add_row(LABELS[name], "never", "", "")
            continue
        low, high = point["ci"]
        share = f"{point['share_of_layers']:.1%}"
        grid.add_row(LABELS[name], f"{point['mean_layers']:.2f}", f"{low:.2f}-{high:.2f}", share)
    console.print(
        f"full depth: ROUGE-L {full['rougeL']:.4f} ({full['ci'][0]:.4f}-{full['ci'][1]:.4f}), "
        f"{results['prompts']} prompts",
        highlight=False,
    )
    console.print(grid)
    missing = results["table"]["missing_prompts"]
    if missing:
        console.print(f"note: {missing} prompts lack rows and are left out", highlight=False)
    if "held_out" not in results["equal_quality"]:
        console.print(
            "note: the oracle looks at the scores it is judged by, so it profits from noise; fill "
            "a table with --samples 4 --temperature 0.7 for the held-out oracle",
            highlight=False,
            soft_wrap=True,
        )
