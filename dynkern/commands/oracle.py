"""`dynkern oracle | merge | allocate | train-predictor`: tables, and what is made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Table = Annotated[Path, typer.Argument(help="Table that `dynkern oracle` wrote, or its folder.")]
Seed = Annotated[int, typer.Option(help="Seed of every random draw.")]
Resamples = Annotated[int, typer.Option(help="Bootstrap resamples behind every interval.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command("oracle")(oracle)
    app.command("merge")(merge)
    app.command("allocate")(allocate)
    app.command("train-predictor")(train_predictor)


def oracle(
    model: Annotated[str, typer.Option(help="Checkpoint directory or hub id.")],
    data: Annotated[str, typer.Option(help=".json, .jsonl or .csv file, or hub id.")],
    family: Annotated[
        str, typer.Option(help="uniform, even, early-exit, random, greedy or file:PATH.")
    ] = "uniform",
    budgets: Annotated[
        str | None, typer.Option(help="Layers, e.g. 1..12, 1,3,6 or 2..L:2; default: all.")
    ] = None,
    samples: Annotated[int, typer.Option(help="Texts a prompt and route.")] = 1,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="1 is off.")] = 1.0,
    split: Annotated[str, typer.Option(help="Split of a hub data set.")] = "test",
    limit: Annotated[int | None, typer.Option(help="First N records only.")] = None,
    validation: Annotated[
        str | None, typer.Option(help="Data that greedy removal is searched on.")
    ] = None,
    validation_limit: Annotated[int, typer.Option(help="Its first N records.")] = 64,
    batch_size: Annotated[int, typer.Option(help="Rows that decode together.")] = 32,
    backend: Annotated[str, typer.Option(help="auto, reference, cpu, triton or cuda.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16 or int8.")] = "auto",
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to generate at most.")] = 64,
    seed: Seed = 0,
    template: Annotated[str, typer.Option(help="alpaca or plain.")] = "alpaca",
    output: Annotated[Path, typer.Option(help="Folder for table.sqlite and the report.")] = Path(
        "dynkern-oracle"
    ),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a stopped run.")] = False,
    no_losses: Annotated[
        bool, typer.Option("--no-losses", help="Leave teacher-forced losses out.")
    ] = False,
) -> None:
    """Score every prompt under every route of a family, and say what an oracle would give."""
    from dynkern.evaluation.oracle import OracleConfig, run_oracle

    run_oracle(
        OracleConfig(
            model=model,
            data=data,
            family=family,
            budgets=budgets,
            samples=samples,
            temperature=temperature,
            top_p=top_p,
            split=split,
            limit=limit,
            validation=validation,
            validation_limit=validation_limit,
            batch_size=batch_size,
            backend=backend,
            dtype=dtype,
            max_new_tokens=max_new_tokens,
            seed=seed,
            template=template,
            output=output,
            resume=resume,
            losses=not no_losses,
        )
    )


def merge(table: Table) -> None:
    """Join the shards that processes left beside a table; doing it again changes nothing."""
    from rich.console import Console

    from dynkern.allocation.store import table_path
    from dynkern.evaluation.oracle import finish_table
    from dynkern.evaluation.progress import Progressing

    path, console = table_path(table), Console()
    with Progressing(console) as progress:
        taken = finish_table(path, progress)
    console.print(f"{taken} rows joined into {path}", highlight=False, soft_wrap=True)


def allocate(
    table: Table,
    output: Annotated[
        Path | None, typer.Option(help="Folder for the report; default: the table's own.")
    ] = None,
    resamples: Resamples = 1000,
    seed: Seed = 0,
) -> None:
    """Say what a table means: quality against mean layers, and the budget of equal quality."""
    from rich.console import Console

    from dynkern.allocation.store import table_path
    from dynkern.evaluation.allocation_report import report_allocation

    path = table_path(table)
    report_allocation(path, output or path.parent, Console(), resamples, seed)


def train_predictor(
    table: Table,
    output: Annotated[Path, typer.Option(help="Folder for the predictor and its report.")],
    budget: Annotated[
        str, typer.Option(help="Mean layers, a fraction below 1, or equal (to full depth).")
    ] = "equal",
    head: Annotated[str, typer.Option(help="ridge or mlp.")] = "ridge",
    train_share: Annotated[float, typer.Option(help="Share of prompts to train on.")] = 0.7,
    resamples: Resamples = 1000,
    seed: Seed = 0,
) -> None:
    """Train a predictor of routes that sees the prompt only, and report what it is worth."""
    from rich.console import Console

    from dynkern.evaluation.predictor_report import PredictorConfig, run_training

    run_training(
        PredictorConfig(table, output, budget, head, train_share, resamples, seed), Console()
    )
