"""`dynkern analyze hidden-states | quality`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Figures of arXiv 2410.20022, drawn from a checkpoint.", no_args_is_help=True
)

Model = Annotated[str, typer.Option(help="Checkpoint directory or hub id.")]
Data = Annotated[str, typer.Option(help=".json, .jsonl or .csv file, or hub id.")]
Split = Annotated[
    str, typer.Option(help="train, validation or test of the paper's split; all of a file.")
]
Limit = Annotated[int | None, typer.Option(help="First N records of the split only.")]
Template = Annotated[str, typer.Option(help="alpaca or plain.")]
MaxLength = Annotated[int, typer.Option(help="Tokens of a sequence at most.")]
BatchSize = Annotated[int, typer.Option(help="Sequences at a time.")]
Draws = Annotated[int, typer.Option(help="Random subsets a sequence.")]
Seed = Annotated[int, typer.Option(help="Seed of every random draw.")]
Output = Annotated[Path, typer.Option(help="Folder for tables and plots.")]


def register(commands: typer.Typer) -> None:
    """Add the commands."""
    commands.add_typer(app, name="analyze")


@app.command("hidden-states")
def hidden_states(
    model: Model,
    data: Data,
    split: Split = "test",
    limit: Limit = 256,
    template: Template = "alpaca",
    max_length: MaxLength = 512,
    batch_size: BatchSize = 8,
    draws: Draws = 1,
    seed: Seed = 0,
    output: Output = Path("dynkern-hidden-states"),
) -> None:
    """Final hidden states of skipping, early exit and random routes beside the full model's."""
    from dynkern.evaluation.hidden_states import HiddenStatesConfig, run_hidden_states

    run_hidden_states(
        HiddenStatesConfig(
            model, data, split, limit, template, max_length, batch_size, draws, seed, output
        )
    )


@app.command()
def quality(
    model: Model,
    data: Data,
    split: Split = "test",
    limit: Limit = 256,
    template: Template = "alpaca",
    max_length: MaxLength = 512,
    batch_size: BatchSize = 8,
    draws: Draws = 1,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to generate at most.")] = 64,
    backend: Annotated[str, typer.Option(help="auto, reference, cpu, triton or cuda.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16 or int8.")] = "auto",
    seed: Seed = 0,
    output: Output = Path("dynkern-quality"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a stopped run.")] = False,
) -> None:
    """ROUGE-L, teacher-forced loss and agreement against budget for every planned policy."""
    from dynkern.evaluation.planned_quality import QualityConfig, run_planned_quality

    run_planned_quality(
        QualityConfig(
            model,
            data,
            split,
            limit,
            template,
            max_length,
            batch_size,
            draws,
            seed,
            output,
            max_new_tokens,
            backend,
            dtype,
            resume,
        )
    )
