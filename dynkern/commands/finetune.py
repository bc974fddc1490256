"""`dynkern finetune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dynkern.commands import training_options as options


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(finetune)


def finetune(
    data: Annotated[str, typer.Option(help=".json, .jsonl or .csv file, or hub id.")],
    model: Annotated[str | None, typer.Option(help="Checkpoint directory or hub id.")] = None,
    config: Annotated[
        str | None, typer.Option(help="From scratch instead: a shape, e.g. 12x256 or opt-125m.")
    ] = None,
    preset: Annotated[str, typer.Option(help="paper, authors or small.")] = "paper",
    validation: options.Validation = None,
    limit: options.Limit = None,
    template: options.Template = "alpaca",
    max_length: options.MaxLength = 512,
    vocab_size: Annotated[int, typer.Option(help="Of the tokenizer trained from scratch.")] = 4096,
    route: Annotated[
        str | None, typer.Option(help="Fixed route to train under, e.g. uniform:6; rest frozen.")
    ] = None,
    prefill: Annotated[str, typer.Option(help="Under a route, prompts run: full or routed.")] = (
        "full"
    ),
    layerdrop: Annotated[float, typer.Option(help="Chance to leave a layer out of a step.")] = 0.0,
    exit_loss: Annotated[float, typer.Option(help="Share of the loss at early exits.")] = 0.0,
    exit_layer: Annotated[
        list[int] | None, typer.Option(help="Layer with an exit; repeat it. Default: all.")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Default: the preset's.")] = None,
    batch_size: options.BatchSize = None,
    micro_batch: options.MicroBatch = None,
    epochs: options.Epochs = None,
    max_steps: options.MaxSteps = None,
    eval_every: options.EvalEvery = None,
    patience: options.Patience = None,
    precision: options.Precision = "auto",
    gradient_checkpointing: options.GradientCheckpointing = False,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="Deterministic GPU kernels too.")
    ] = False,
    seed: options.Seed = 0,
    output: Annotated[Path, typer.Option(help="Folder for model, curves and checkpoints.")] = Path(
        "dynkern-finetune"
    ),
    resume: options.Resume = False,
) -> None:
    """Train a checkpoint, or a model from scratch, on instruction data."""
    from dynkern.training.finetune import FinetuneConfig, run_finetune

    run_finetune(
        FinetuneConfig(
            data=data,
            output=output,
            model=model,
            config=config,
            preset=preset,
            settings={
                "learning_rate": learning_rate,
                "batch_size": batch_size,
                "micro_batch": micro_batch,
                "epochs": epochs,
                "max_steps": max_steps,
                "eval_every": eval_every,
                "patience": patience,
                "precision": precision,
                "gradient_checkpointing": gradient_checkpointing,
                "deterministic": deterministic,
            },
            validation=validation,
            limit=limit,
            template=template,
            max_length=max_length,
            vocab_size=vocab_size,
            route=route,
            prefill=prefill,
            layerdrop=layerdrop,
            exit_loss=exit_loss,
            exit_layers=tuple(exit_layer or ()),
            seed=seed,
            resume=resume,
        )
    )
