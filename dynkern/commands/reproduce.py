"""`dynkern reproduce`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(reproduce)


def reproduce(
    model: Annotated[str, typer.Option(help="Checkpoint directory or hub id.")],
    data: Annotated[str, typer.Option(help=".json, .jsonl or .csv file, or hub id.")],
    output: Annotated[Path, typer.Option(help="Folder for report.md.")] = Path("dynkern-reproduce"),
    test: Annotated[
        str | None, typer.Option(help="Test data; default: the paper's test split of --data.")
    ] = None,
    limit: Annotated[int, typer.Option(help="Test records.")] = 256,
    states_limit: Annotated[int, typer.Option(help="Of these for the hidden states.")] = 96,
    samples_limit: Annotated[int, typer.Option(help="Of these for the held-out oracle.")] = 128,
    train_limit: Annotated[int | None, typer.Option(help="Records to train controllers on.")] = (
        2000
    ),
    budget: Annotated[
        list[float] | None,
        typer.Option(help="Mean layers of controllers; repeat it. Default: 1/2 and 3/4 of all."),
    ] = None,
    alpha: Annotated[
        list[float] | None, typer.Option(help="A grid of alphas instead of budgets; repeat it.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Optimizer steps of each controller.")] = 60,
    gate_rate: Annotated[float, typer.Option(help="Learning rate of the gates.")] = 1e-2,
    batch_size: Annotated[int, typer.Option(help="Sequences at a time.")] = 16,
    template: Annotated[str, typer.Option(help="alpaca or plain.")] = "alpaca",
    max_length: Annotated[int, typer.Option(help="Tokens of a sequence at most.")] = 256,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to generate at most.")] = 48,
    samples: Annotated[
        int, typer.Option(help="Texts of each prompt for the held-out oracle; 0: without it.")
    ] = 4,
    repeat: Annotated[int, typer.Option(help="Timed rounds; 0: no timing.")] = 3,
    seed: Annotated[int, typer.Option(help="Seed of every random draw.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a stopped run.")] = False,
) -> None:
    """The paper's experiments on a checkpoint, and which of its claims hold there."""
    from dynkern.evaluation.reproduce import ReproduceConfig, run_reproduce

    run_reproduce(
        ReproduceConfig(
            model=model,
            data=data,
            output=output,
            test=test,
            limit=limit,
            states_limit=states_limit,
            samples_limit=samples_limit,
            train_limit=train_limit,
            budgets=tuple(budget or ()),
            alphas=tuple(alpha or ()),
            steps=steps,
            gate_rate=gate_rate,
            batch_size=batch_size,
            template=template,
            max_length=max_length,
            max_new_tokens=max_new_tokens,
            samples=samples,
            repeat=repeat,
            seed=seed,
            resume=resume,
        )
    )
