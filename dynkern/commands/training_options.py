"""Options that commands which train have in common."""

from __future__ import annotations

from typing import Annotated

import typer

Limit = Annotated[int | None, typer.Option(help="First N records only.")]
Validation = Annotated[
    str | None, typer.Option(help="Validation data; default: the paper's split of --data.")
]
Template = Annotated[str, typer.Option(help="alpaca or plain.")]
MaxLength = Annotated[int, typer.Option(help="Tokens of a sequence at most.")]
BatchSize = Annotated[
    int | None, typer.Option(help="Sequences of a step, in all; default: 64, or the preset's.")
]
MicroBatch = Annotated[int | None, typer.Option(help="Sequences of one pass; default: up to 16.")]
Epochs = Annotated[
    float | None, typer.Option(help="Passes over the data at most; default: 2, or the preset's.")
]
MaxSteps = Annotated[int | None, typer.Option(help="Optimizer steps at most; default: no limit.")]
EvalEvery = Annotated[int | None, typer.Option(help="Steps; default: once an epoch.")]
Patience = Annotated[
    int | None,
    typer.Option(
        help="Worse validations until it stops, 0 for never; default: 0, or the preset's."
    ),
]
Precision = Annotated[str, typer.Option(help="auto, float32 or bfloat16.")]
GradientCheckpointing = Annotated[
    bool, typer.Option("--gradient-checkpointing", help="Less memory, more arithmetic.")
]
Seed = Annotated[int, typer.Option(help="Seed of every random draw.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with a stopped run.")]
