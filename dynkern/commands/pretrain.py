"""`dynkern pretrain`: a small OPT from nothing, on the task suite."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(pretrain)


def pretrain(
    recipe: Annotated[
        Path | None,
        typer.Option(help="JSON: phases, rates, seed; default: that of the bundled model."),
    ] = None,
    precision: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    save_minutes: Annotated[float, typer.Option(help="Between checkpoints.")] = 5.0,
    output: Annotated[Path, typer.Option(help="Folder for model, curves and checkpoint.")] = Path(
        "dynkern-pretrain"
    ),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a stopped run.")] = False,
) -> None:
    """Train a small OPT with a tokenizer of its own on the synthetic task suite."""
    from rich.console import Console

    from dynkern.evaluation.progress import Progressing
    from dynkern.evaluation.task_scores import score_checkpoint
    from dynkern.training.pretraining.recipe import DEFAULT_RECIPE, read_recipe
    from dynkern.training.pretraining.run import PretrainConfig, run_pretrain

    if not save_minutes >= 0:
        raise ValueError(f"save_minutes: got {save_minutes}, expected 0 or more")
    path = DEFAULT_RECIPE if recipe is None else recipe
    count = read_recipe(path).eval_records

    def judge(folder: Path) -> dict[str, Any]:
        return score_checkpoint(folder, "tasks:validation", count)

    config = PretrainConfig(output, path, precision, 60 * save_minutes, resume)
    console = Console()
    with Progressing(console) as progress:
        run_pretrain(config, judge, console, progress.task("tokens"))
