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
    limit: Annotated[int, typer.Option(help="Test records.")] = 64,
    train_limit: Annotated[int | None, typer.Option(help="Records to train controllers on.")] = (
        2000
    ),
    alpha: Annotated[list[float] | None, typer.Option(help="Of controllers; repeat it.")] = None,
    steps: Annotated[int, typer.Option(help="Optimizer steps of each controller.")] = 60,
    gate_rate: Annotated[float, typer.Option(help="Learning rate of the gates.")] = 1e-2,
    batch_size: Annotated[int, typer.Option(help="Sequences at a time.")] = 16,
    template: Annotated[str, typer.Option(help="alpaca or plain.")] = "alpaca",
    max_length: Annotated[int, typer.Option(help="Tokens of a sequence at most.")] = 256,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to generate at most.")] = 48,
    seed: Annotated[int, typer.Option(help="Seed of every random draw.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a stopped run.")] = False,
) -> None:
    """The paper's experiments on a checkpoint, and which of its claims hold there."""
    from dynkern.evaluation.reproduce import ReproduceConfig, run_reproduce

    run_reproduce(
        ReproduceConfig(
            model,
            data,
            output,
            limit,
            train_limit,
            tuple(alpha or (0.25, 1.0)),
            steps,
            gate_rate,
            batch_size,
            template,
            max_length,
            max_new_tokens,
            seed,
            resume,
        )
    )
