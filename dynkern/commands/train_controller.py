"""`dynkern train-controller`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dynkern.commands import training_options as options


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("train-controller")(train_controller)


def train_controller(
    model: Annotated[str, typer.Option(help="Checkpoint directory or hub id.")],
    data: Annotated[str, typer.Option(help=".json, .jsonl or .csv file, or hub id.")],
    input: Annotated[
        list[str] | None,
        typer.Option(help="hidden (default), fixed, position or token; repeat: a sweep."),
    ] = None,
    depth: Annotated[
        list[int] | None,
        typer.Option(help="Linear layers of a gate, 1 (default) to 3; repeat: a sweep."),
    ] = None,
    width: Annotated[
        list[int] | None,
        typer.Option(help="Width from depth 2 on, 64 by default; repeat: a sweep."),
    ] = None,
    alpha: Annotated[
        list[float] | None,
        typer.Option(help="Weight of the executed share, 1 by default; repeat: a sweep."),
    ] = None,
    budget: Annotated[
        list[float] | None,
        typer.Option(help="Mean layers to come to, alpha adapting; repeat: a sweep."),
    ] = None,
    tau: Annotated[float, typer.Option(help="Temperature of Gumbel-softmax.")] = 1.0,
    joint: Annotated[
        bool, typer.Option("--joint/--freeze-backbone", help="Train the backbone along, or not.")
    ] = False,
    gate_rate: Annotated[float | None, typer.Option(help="Learning rate of the gates.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of a backbone trained along.")] = (
        None
    ),
    validation: options.Validation = None,
    limit: options.Limit = None,
    template: options.Template = "alpaca",
    max_length: options.MaxLength = 512,
    batch_size: options.BatchSize = None,
    micro_batch: options.MicroBatch = None,
    epochs: options.Epochs = None,
    max_steps: options.MaxSteps = None,
    eval_every: options.EvalEvery = None,
    patience: options.Patience = None,
    precision: options.Precision = "auto",
    gradient_checkpointing: options.GradientCheckpointing = False,
    seed: options.Seed = 0,
    output: Annotated[Path, typer.Option(help="Folder for controllers and curves.")] = Path(
        "dynkern-controller"
    ),
    resume: options.Resume = False,
) -> None:
    """Train skip controllers; repeated options sweep over all their combinations."""
    from dynkern.training.controllers import ControllerConfig, run_controllers

    run_controllers(
        ControllerConfig(
            model=model,
            data=data,
            output=output,
            inputs=tuple(input or ("hidden",)),
            depths=tuple(depth or (1,)),
            widths=tuple(width or (64,)),
            alphas=tuple(alpha or (1.0,)),
            budgets=tuple(budget or ()),
            tau=tau,
            joint=joint,
            settings={
                "gate_rate": gate_rate,
                "learning_rate": learning_rate,
                "batch_size": batch_size,
                "micro_batch": micro_batch,
                "epochs": epochs,
                "max_steps": max_steps,
                "eval_every": eval_every,
                "patience": patience,
                "precision": precision,
                "gradient_checkpointing": gradient_checkpointing,
            },
            validation=validation,
            limit=limit,
            template=template,
            max_length=max_length,
            seed=seed,
            resume=resume,
        )
    )
