"""`dynkern explain`."""

from __future__ import annotations

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(explain)


def explain(
    model: Annotated[str, typer.Option(help="Checkpoint directory or hub id.")],
    policy: Annotated[str, typer.Option(help="Policy spec, e.g. random:6.")],
    batch_size: Annotated[int, typer.Option(help="Rows that decode together.")] = 8,
    prompt_tokens: Annotated[int, typer.Option(help="Tokens of a prompt.")] = 64,
    new_tokens: Annotated[int, typer.Option(help="Tokens generated of each.")] = 32,
    backend: Annotated[str, typer.Option(help="auto, reference, cpu, triton or cuda.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16 or int8.")] = "auto",
    kv_fill: Annotated[
        str, typer.Option(help="project, copy, deferred or mask (token policies).")
    ] = "project",
    repeat: Annotated[int, typer.Option(help="Timed rounds.")] = 3,
    seed: Annotated[int, typer.Option(help="Seed of prompts and of every random draw.")] = 0,
) -> None:
    """Say what limits a policy here, and which batch, order or policy would pay."""
    from rich.console import Console

    from dynkern.evaluation.explain import Case, Explainer
    from dynkern.evaluation.explain_report import print_explanation
    from dynkern.evaluation.progress import Progressing
    from dynkern.llm import LLM
    from dynkern.policies import policy as make_policy
    from dynkern.routes import KV_FILLS, check_choice

    check_choice("kv_fill", kv_fill, KV_FILLS)
    counts = (batch_size, prompt_tokens, new_tokens)
    case = Case(make_policy(policy), policy, *counts, kv_fill, seed, repeat)
    llm = LLM(model, dtype=dtype, backend=backend)
    explainer = Explainer(llm, case)
    with Progressing(Console(stderr=True)) as progress:
        found = explainer.measure(progress.task("timing"))
    print_explanation(found)
