"""python -m bench.pretrain_scores OTHER...: does `dynkern pretrain` give the same model again?

Each OTHER is a bundle that `dynkern bundle` made of another run. They and the shipped one answer
the same test tasks under uniform skipping; differences are paired by task, so their intervals know
the noise of tasks and not that of training, which the spread of the runs shows. Rows go to
bench/results/pretrain_scores.csv unless --output says otherwise.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from bench.arguments import refuse
from bench.results_file import append, stamp
from dynkern.assets import BUNDLE_NAME, DEFAULT_MODEL, SCORES_FILE
from dynkern.data import Record, load_records
from dynkern.evaluation.analysis import bootstrap_interval, difference_interval
from dynkern.evaluation.bundle import SCORED, SHARES
from dynkern.evaluation.progress import Progressing
from dynkern.evaluation.task_scores import Answers, Report, budgets, score_answers
from dynkern.llm import LLM
from dynkern.models.checkpoint import resolve_model

RESULTS = Path(__file__).resolve().parent / "results"


def answer(model: str | Path, records: list[Record], report: Report) -> Answers:
    """`score_answers` of a bundle at all and at shares of its layers, in float32."""
    llm = LLM(model, dtype="float32")
    return score_answers(llm, records, budgets(llm.spec.num_layers, SHARES), report)


def names(others: int) -> list[str]:
    """What rows call the runs: "shipped", "other", "other 2", "other 3", and so on."""
    return ["shipped", *("other" if n == 1 else f"other {n}" for n in range(1, others + 1))]


def compare(found: Mapping[str, Answers]) -> list[dict[str, Any]]:
    """A row a run and budget, from the answers of each run, "shipped" among them. `minus_shipped`:
    the mean difference to the shipped one; `minus_low`, `minus_high`: its 95 % interval over tasks.
    """
    rows = []
    for run, answers in found.items():
        for label, (scores, exact) in answers.items():
            against = found["shipped"][label][0]
            low, high = bootstrap_interval(scores)
            minus_low, minus_high = difference_interval(scores, against)
            rows.append(
                {
                    "run": run,
                    "layers": label,
                    "prompts": len(scores),
                    "rougeL": sum(scores) / len(scores),
                    "rougeL_low": low,
                    "rougeL_high": high,
                    "exact": sum(exact) / len(exact),
                    "minus_shipped": (sum(scores) - sum(against)) / len(scores),
                    "minus_low": minus_low,
                    "minus_high": minus_high,
                }
            )
    return rows


def training(folder: Path) -> dict[str, Any]:
    """Where and how long a bundle was trained, from its scores.json; refused without."""
    try:
        facts = json.loads((folder / SCORES_FILE).read_text(encoding="utf-8"))["training"]
        return {
            "trained_on": facts["device"],
            "training_tokens": int(facts["tokens"]),
            "training_seconds": float(facts["seconds"]),
        }
    except (OSError, ValueError, KeyError, TypeError):
        refuse(
            f"{folder}: no {SCORES_FILE} that tells of its training, expected a bundle that "
            "`dynkern bundle --training` made"
        )


def main(
    others: Annotated[list[Path], typer.Argument(help="Bundles of the runs to be compared.")],
    shipped: Annotated[str, typer.Option(help="Bundle it is compared with.")] = DEFAULT_MODEL,
    limit: Annotated[int, typer.Option(help="Test tasks.", min=1)] = 2048,
    output: Annotated[Path, typer.Option(help="CSV to append to.")] = RESULTS
    / "pretrain_scores.csv",
) -> None:
    """Score all on the same tasks, print, append."""
    console = Console()
    folders = dict(zip(names(len(others)), [resolve_model(shipped), *others], strict=True))
    trained = {run: training(folder) for run, folder in folders.items()}
    records = load_records(SCORED, limit=limit)
    with Progressing(console) as progress:
        found = {
            run: answer(folder, records, progress.task(run)) for run, folder in folders.items()
        }
    rows = compare(found)
    on = {**stamp("cpu", False), "model": BUNDLE_NAME}
    append(output, [{**on, **row, **trained[row["run"]]} for row in rows])
    table = Table("run", "layers", "ROUGE-L", "95 % interval", "to the letter", "minus shipped")
    for row in rows:
        table.add_row(
            row["run"],
            row["layers"],
            f"{row['rougeL']:.3f}",
            f"{row['rougeL_low']:.3f} to {row['rougeL_high']:.3f}",
            f"{row['exact']:.3f}",
            f"{row['minus_shipped']:+.3f} ({row['minus_low']:+.3f} to {row['minus_high']:+.3f})",
        )
    console.print(table)
    for label, (mean, spread, low, high) in spreads(rows).items():
        console.print(
            f"{label} of the layers: {len(folders)} runs from {low:.3f} to {high:.3f}, "
            f"mean {mean:.3f}, standard deviation {spread:.3f}",
            soft_wrap=True,
        )


def spreads(rows: Iterable[Mapping[str, Any]]) -> dict[str, tuple[float, float, float, float]]:
    """For each budget, ROUGE-L over the runs: mean, sample standard deviation, least, greatest."""
    seen: dict[str, list[float]] = {}
    for row in rows:
        seen.setdefault(row["layers"], []).append(float(row["rougeL"]))
    return {
        label: (statistics.fmean(scores), statistics.stdev(scores), min(scores), max(scores))
        for label, scores in seen.items()
    }


if __name__ == "__main__":
    typer.run(main)
