"""`dynkern bundle`: a checkpoint as this package ships it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(bundle)


def bundle(
    model: Annotated[str, typer.Option(help="Checkpoint of `dynkern pretrain`, with tokenizer.")],
    output: Annotated[Path, typer.Option(help="Folder of the bundle; made anew.")],
    training: Annotated[
        Path | None, typer.Option(help="pretrain.json of the run, for the model card.")
    ] = None,
    work: Annotated[Path, typer.Option(help="Folder for the predictor's table.")] = Path(
        "dynkern-bundle"
    ),
    limit: Annotated[int, typer.Option(help="Test records scored; 0 for none.")] = 1024,
    predictor_prompts: Annotated[
        int, typer.Option(help="Validation prompts behind the predictor; 0 for none.")
    ] = 2048,
    seed: Annotated[int, typer.Option(help="Seed of every random draw.")] = 0,
) -> None:
    """Make a checkpoint small (int8), fit its predictor, score it, and write its model card."""
    from dynkern.evaluation.bundle import BundleConfig, run_bundle

    run_bundle(BundleConfig(model, output, training, work, limit, predictor_prompts, seed))
