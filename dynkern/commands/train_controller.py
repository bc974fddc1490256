"""`dynkern train-controller`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("train-controller")(train_controller)


def train_controller(
    model: Annotated[str, typer.Option(help="Checkpoint directory or hub id.")],
    data: Annotated[str, typer.Option(help=".json, .jsonl or .csv file, or hub id.")],
    input: Annotated[
        list[str] | None, typer.Option(help="hidden, fixed, position or token; repeat: a sweep.")
    ] = None,
    depth: Annotated[
        list[int] | None, typer.Option(help="Linear layers of a gate, 1 to 3; repeat: a sweep.")
    ] = None,
    width: Annotated[
        list[int] | None, typer.Option(help="Width from depth 2 on; repeat: a sweep.")
    ] = None,
    alpha: Annotated[
        list[float] | None, typer.Option(help="Weight of the executed share; repeat: a sweep.")
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
    validation: Annotated[
        str | None, typer.Option(help="Validation data; default: the paper's split of --data.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="First N records only.")] = None,
    template: Annotated[str, typer.Option(help="alpaca or plain.")] = "alpaca",
    max_length: Annotated[int, typer.Option(help="Tokens of a sequence at most.")] = 512,
    batch_size: Annotated[int | None, typer.Option(help="Sequences of a step, in all.")] = None,
    micro_batch: Annotated[int | None, typer.Option(help="Sequences of one pass.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the data at most.")] = None,
    max_steps: Annotated[int | None, typer.Option(help="Optimizer steps at most.")] = None,
    eval_every: Annotated[int | None, typer.Option(help="Steps; default: once an epoch.")] = None,
    patience: Annotated[int | None, typer.Option(help="Worse validations until it stops.")] = None,
    precision: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory, more arithmetic.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of every random draw.")] = 0,
    output: Annotated[Path, typer.Option(help="Folder for controllers and curves.")] = Path(
        "dynkern-controller"
    ),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a stopped run.")] = False,
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
