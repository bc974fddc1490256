"""`dynkern eval` without arguments: the bundled model on the task suite, under a standard set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rich.console import Console

from dynkern.assets import DEFAULT_MODEL, PREDICTOR_FOLDER, bundle_path
from dynkern.evaluation.oracle import OracleConfig, run_oracle
from dynkern.evaluation.sweep import SweepConfig, run_sweep
from dynkern.evaluation.task_scores import NEW_TOKENS
from dynkern.models.checkpoint import read_config
from dynkern.models.opt import spec_from_config

DEFAULT_DATA = "tasks:test"
# four records of each family and difficulty: with the table of the oracle, about 6,000 answers
DEFAULT_LIMIT = 256
USUAL_NEW_TOKENS = 64
TABLE_FOLDER = "oracle"
SHARES = (0.75, 0.5, 0.25)
# oracle, predictor and random are compared at one budget
SHARE = 0.5


def defaults(
    model: str | None,
    data: str | None,
    template: str | None,
    limit: int | None,
    max_new_tokens: int | None,
) -> dict[str, str | int | None]:
    """The arguments of SweepConfig that depend on each other, those that are None filled in.

    Without model the bundled one, which reads the plain template; without data the first
    DEFAULT_LIMIT tasks of the test split, whose answers are short.
    """
    bundled = model is None or model == DEFAULT_MODEL
    tasks = data is None
    return {
        "model": DEFAULT_MODEL if model is None else model,
        "data": DEFAULT_DATA if tasks else data,
        "template": template or ("plain" if bundled else "alpaca"),
        "limit": DEFAULT_LIMIT if limit is None and tasks else limit,
        "max_new_tokens": max_new_tokens
        if max_new_tokens is not None
        else NEW_TOKENS
        if tasks
        else USUAL_NEW_TOKENS,
    }


def run_eval(config: SweepConfig, console: Console | None = None) -> Path:
    """run_sweep; the bundled model without any policy goes through the standard set.

    The oracle of that set is chosen by the scores of the very prompts that it is measured on: an
    upper bound, for which a table is filled first, in a folder of the output.
    """
    if config.model != DEFAULT_MODEL or config.policies:
        return run_sweep(config, console)
    console = console or Console()
    folder = bundle_path()
    num_layers = spec_from_config(read_config(folder)).num_layers
    table = config.output / TABLE_FOLDER
    # ahead of the table, which takes a while
    replace(config, policies=planned(num_layers)).check()
    run_oracle(
        OracleConfig(
            config.model,
            config.data,
            split=config.split,
            limit=config.limit,
            backend=config.backend,
            dtype=config.dtype,
            max_new_tokens=config.max_new_tokens,
            seed=config.seed,
            template=config.template,
            output=table,
            resume=config.resume,
            losses=False,
        ),
        console,
    )
    policies = [*planned(num_layers), f"oracle:{SHARE}@{table}"]
    # it reads what a full prefill yields
    if (folder / PREDICTOR_FOLDER).is_dir() and config.prefill == "full":
        policies.append(f"predictor:{SHARE}@{DEFAULT_MODEL}")
    # ahead of the sweep, whose last line says where its results are
    console.print(
        "note: the oracle chooses by the scores of the very prompts that it is measured on, an "
        "upper bound; the predictor has seen none of them",
        highlight=False,
        soft_wrap=True,
    )
    return run_sweep(replace(config, policies=tuple(policies)), console)


def planned(num_layers: int) -> tuple[str, ...]:
    """Uniform skipping and early exit at SHARES of the layers, and random layers at SHARE."""
    budgets = [max(1, round(num_layers * share)) for share in SHARES]
    return (
        *(f"uniform:{budget}" for budget in budgets),
        *(f"early_exit:{budget - 1}" for budget in budgets),
        f"random:{max(1, round(num_layers * SHARE))}",
    )
