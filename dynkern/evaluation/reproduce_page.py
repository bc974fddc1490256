"""report.html of `dynkern reproduce`."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path, PurePath
from typing import Any

from dynkern.evaluation.allocation_page import budgets_figure, curve_chart
from dynkern.evaluation.analysis_page import family_lines
from dynkern.evaluation.claims import INTERVALS, Claim
from dynkern.evaluation.eval_page import settings
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
from dynkern.report.scales import interval

FILES = {
    "report.md, report.json": "the claims",
    "hidden-states/cosine.csv": "distances of final hidden states",
    "controllers/": "skip controllers, and a report of theirs",
    "controllers.csv": "what the controllers came to on test prompts",
    "oracle/greedy/, oracle/sampled/": "tables of texts and scores, and reports of theirs",
}


def reproduce_report(config: Any, claims: Sequence[Claim]) -> Report:
    """Of the claims, and of the tables that lie in the folder. config: a ReproduceConfig."""
    heads = [
        Column("claim", is_number=False),
        Column("measured here", is_number=False),
        Column("interval", INTERVALS.partition(": ")[2].rstrip(".")),
        Column("holds?", is_number=False),
    ]
    cells = [[c.claim, c.measured, interval(c.interval, 4), c.holds] for c in claims]
    figures = [*_cosine(config.output), *_controllers(config.output), *_oracle(config.output)]
    table = Table("Claims of arXiv 2410.20022, and controls of our own", heads, cells)
    sections = [Section("Claims", [table])]
    if figures:
        sections.append(Section("Curves", figures))
    tested = PurePath(config.test or config.data).name
    facts = {
        name: ", ".join(f"{number:g}" for number in value) if isinstance(value, tuple) else value
        for name, value in asdict(config).items()
        if value != ()
    }
    return Report(
        title=f"What holds of arXiv 2410.20022 on {PurePath(config.model).name}",
        command="reproduce",
        asked=f"Which of the paper's claims hold for this model on {tested}? "
        f"{config.limit} test records at most.",
        settings=settings(facts, ["those of the paper"]),
        found=claim_sentences(claims),
        sections=sections,
        conditions=conditions(),
        rerun=[command_line(config)],
        notes=["a model and data of other sizes may well contradict the paper"],
        rerun_note="A folder with checkpoints of another run is refused; --resume goes on.",
        files=FILES,
    )


def claim_sentences(claims: Sequence[Claim]) -> list[str]:
    """What became of the claims: how many hold, and each of the paper's with its numbers."""
    papers = [claim for claim in claims if claim.is_of_the_paper]
    others = [claim for claim in claims if not claim.is_of_the_paper]
    said = [f"Of {len(papers)} claims of the paper {_verdicts(papers)}."]
    if others:
        said[0] += f" Of {len(others)} controls and questions beyond it {_verdicts(others)}."
    for claim in papers:
        ends = f" {interval(claim.interval, 4)}" if claim.interval else ""
        said.append(f"\u201c{claim.claim}\u201d: {claim.holds}; {claim.measured}{ends}.")
    return said


def _verdicts(claims: Sequence[Claim]) -> str:
    counts = Counter(claim.holds for claim in claims)
    kinds = {
        "yes": ("holds", "hold"),
        "no": ("does not", "do not"),
        "undecided": ("is undecided", "are undecided"),
        "not measured": ("was not measured", "were not measured"),
    }
    told = [f"{counts[k]} {kinds[k][counts[k] != 1]}" for k in kinds if counts[k]]
    return ", ".join(told)


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{k: _read(v) for k, v in row.items()} for row in csv.DictReader(file)]


def _read(cell: str) -> Any:
    try:
        return float(cell)
    except ValueError:
        return cell or None


def _cosine(folder: Path) -> list[Figure]:
    rows = _rows(folder / "hidden-states" / "cosine.csv")
    if not rows:
        return []
    chart = Lines(
        "layers run by response tokens",
        "cosine distance to full depth's final state",
        family_lines(rows, "cosine_distance", "p10", "p90", band=True),
        whole_x=True,
    )
    note = "Teacher-forced, response tokens only. Bands: 10 to 90 % of sequences."
    return [Figure("How far routes bend the final state", chart, note)]


def _controllers(folder: Path) -> list[Figure]:
    lines: dict[str, list[Point]] = {}
    for row in _rows(folder / "controllers.csv"):
        if isinstance(row.get("mean_layers"), float) and isinstance(row.get("rougeL"), float):
            # "fixed-1-alpha1-budget6", "uniform:6", "full"
            kind = re.split("[-:]", row["policy"])[0]
            asked = re.search(r"[\d.]+$", row["policy"])
            label = asked.group() if asked else ""
            ends = row.get("rougeL_low"), row.get("rougeL_high")
            point = Point(row["mean_layers"], row["rougeL"], *ends, label=label)
            lines.setdefault(kind, []).append(point)
    series = [
        Series(name, sorted(points, key=lambda p: p.x), style)
        for style, (name, points) in enumerate(sorted(lines.items()), 1)
    ]
    if not series:
        return []
    chart = Lines("layers run per routed token (mean)", "ROUGE-L F1", series, whole_x=True)
    note = "Gates by what they read, beside uniform routes and full depth. Numbers at points: the "
    note += "budget asked for, or alpha where none was. Bars: 95 % interval over prompts."
    return [Figure("Skip controllers on test prompts", chart, note)]


def _oracle(folder: Path) -> list[Figure]:
    place = folder / "oracle" / "greedy"
    rows = _rows(place / "curve.csv")
    if not rows:
        return []
    results = json.loads((place / "results.json").read_text(encoding="utf-8"))
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    curves = {
        name: {
            "mean_layers": columns["mean_layers"],
            "quality": columns[name],
            "ci": (columns[f"{name}_low"], columns[f"{name}_high"]),
        }
        for name in ("oracle", "histogram", "one_route")
    }
    full = results["full"]
    chart = curve_chart(curves, (full["rougeL"], *full["ci"]))
    note = "Bands: 95 % interval over sequences, in which the oracle chooses anew by the scores "
    note += "that judge it."
    return [Figure("An oracle's budget for each sequence", chart, note), budgets_figure(results)]
