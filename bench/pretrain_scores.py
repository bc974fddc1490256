"""python -m bench.pretrain_scores OTHER: does `dynkern pretrain` give the same model again?

OTHER is a bundle that `dynkern bundle` made of another run. It and the shipped one answer the same
test tasks under uniform skipping; differences are paired by task, so their intervals know the noise
of tasks and not that of training. Rows go to bench/results/pretrain_scores.csv unless --output says
otherwise.
"""

from __future__ import annotations

import json
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


def compare(shipped: Answers, other: Answers) -> list[dict[str, Any]]:
    """A row a run and budget. `minus_shipped`: the mean difference to the shipped one; `minus_low`,
    `minus_high`: its 95 % interval over tasks.
    """
    rows = []
    for run, answers in (("shipped", shipped), ("other", other)):
        for label, (scores, exact) in answers.items():
            against = shipped[label][0]
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
    other: Annotated[Path, typer.Argument(help="Bundle of the run that is to be compared.")],
    shipped: Annotated[str, typer.Option(help="Bundle it is compared with.")] = DEFAULT_MODEL,
    limit: Annotated[int, typer.Option(help="Test tasks.", min=1)] = 2048,
    output: Annotated[Path, typer.Option(help="CSV to append to.")] = RESULTS
    / "pretrain_scores.csv",
) -> None:
    """Score both on the same tasks, print, append."""
    console = Console()
    folders = {"shipped": resolve_model(shipped), "other": other}
    trained = {run: training(folder) for run, folder in folders.items()}
    records = load_records(SCORED, limit=limit)
    with Progressing(console) as progress:
        found = {
            run: answer(folder, records, progress.task(run)) for run, folder in folders.items()
        }
    rows = compare(found["shipped"], found["other"])
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


if __name__ == "__main__":
    typer.run(main)
