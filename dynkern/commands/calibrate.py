"""`dynkern calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(calibrate)


def calibrate(
    model: Annotated[str, typer.Option(help="Checkpoint directory or hub id.")],
    data: Annotated[str, typer.Option(help=".json, .jsonl or .csv file, or hub id.")],
    policy: Annotated[str, typer.Option(help="confidence.")] = "confidence",
    measure: Annotated[str, typer.Option(help="top_prob, margin or cosine.")] = "top_prob",
    exit_layer: Annotated[
        list[int] | None, typer.Option(help="Layer with an exit; repeat it. Default: quarters.")
    ] = None,
    target: Annotated[float, typer.Option(help="Share of full depth's ROUGE-L to keep.")] = 0.98,
    grid: Annotated[int, typer.Option(help="Thresholds to try.")] = 11,
    split: Annotated[
        str, typer.Option(help="train, validation or test of the paper's split; all of a file.")
    ] = "validation",
    limit: Annotated[int | None, typer.Option(help="First N records of the split only.")] = None,
    template: Annotated[str, typer.Option(help="alpaca or plain.")] = "alpaca",
    batch_size: Annotated[int, typer.Option(help="Rows that decode together.")] = 8,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to generate at most.")] = 64,
    kv_fill: Annotated[str, typer.Option(help="project, copy, deferred or mask.")] = "project",
    backend: Annotated[str, typer.Option(help="auto, reference, cpu, triton or cuda.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16 or int8.")] = "auto",
    seed: Annotated[int, typer.Option(help="Seed of every random draw.")] = 0,
    output: Annotated[Path, typer.Option(help="Folder for calibration.json.")] = Path(
        "dynkern-calibrate"
    ),
) -> None:
    """Find the confidence threshold that keeps a share of quality."""
    from dynkern.evaluation.confidence import CalibrateConfig, run_calibrate

    run_calibrate(
        CalibrateConfig(
            model,
            data,
            policy,
            measure,
            tuple(exit_layer or ()),
            target,
            grid,
            split,
            limit,
            template,
            batch_size,
            max_new_tokens,
            kv_fill,
            backend,
            dtype,
            seed,
            output,
        )
    )
