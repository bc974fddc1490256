"""`dynkern analyze quality`: ROUGE-L, loss and agreement against budget, for planned policies."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from dynkern.arguments import check_integer
from dynkern.evaluation.analysis_page import quality_report
from dynkern.evaluation.confidence import load_part
from dynkern.evaluation.hidden_states import (
    FAMILIES,
    HiddenStatesConfig,
    route_effects,
    teacher_forced_batches,
)
from dynkern.evaluation.parts import write_part
from dynkern.evaluation.progress import Progressing
from dynkern.evaluation.sweep import SweepConfig, sweep
from dynkern.evaluation.tables import draw_lines, write_csv
from dynkern.files import make_folder
from dynkern.models.checkpoint import read_config, resolve_model
from dynkern.models.opt import spec_from_config
from dynkern.models.storage import DTYPES
from dynkern.ops.backends import BACKENDS
from dynkern.report import write_report
from dynkern.routes import check_choice
from dynkern.team import Team


@dataclass(frozen=True)
class QualityConfig(HiddenStatesConfig):
    """The arguments of `dynkern analyze quality`: those of hidden-states, and how to generate."""

    max_new_tokens: int = 64
    backend: str = "auto"
    dtype: str = "auto"
    resume: bool = False
    output: Path = Path("dynkern-quality")


def planned_specs(num_layers: int) -> list[str]:
    """Every planned policy at every budget below full depth."""
    budgets = range(1, num_layers)
    even = [budget for budget in budgets if num_layers % budget == 0]
    return [
        *(f"uniform:{budget}" for budget in budgets),
        *(f"uniform-even:{budget}" for budget in even),
        *(f"early_exit:{budget - 1}" for budget in budgets),
        *(f"random:{budget}" for budget in budgets),
    ]


def run_planned_quality(config: QualityConfig, console: Console | None = None) -> Path:
    """`dynkern eval` without timing over every planned policy, and teacher-forced losses beside;
    quality.csv, quality.png and report.html in the folder. A local file is taken whole by the
    generating part only where split is "all": else its part is written to the folder first.

    Raises ValueError or FileNotFoundError, one line, on bad input.
    """
    console = console or Console()
    config.check()
    # before anything is written
    check_integer("max_new_tokens", config.max_new_tokens, 1)
    check_choice("dtype", config.dtype, ("auto", *DTYPES))
    check_choice("backend", config.backend, ("auto", *BACKENDS))
    num_layers = spec_from_config(read_config(resolve_model(config.model))).num_layers
    make_folder(config.output)
    part = write_part(
        config.output / "records.jsonl", load_part(config.data, config.split, config.limit)
    )
    generating = SweepConfig(
        config.model,
        str(part),
        tuple(planned_specs(num_layers)),
        batch_size=config.batch_size,
        backend=config.backend,
        dtype=config.dtype,
        max_new_tokens=config.max_new_tokens,
        seed=config.seed,
        template=config.template,
        output=config.output,
        resume=config.resume,
        timing=False,
    )
    with Team() as team:
        page = sweep(generating, console, team)
    if page is None:
        return config.output
    runs = json.loads((config.output / "results.json").read_text(encoding="utf-8"))["runs"]
    model, batches = teacher_forced_batches(config)
    with Progressing(console) as progress:
        _, losses = route_effects(
            model, batches, config.draws, config.seed, progress.task("teacher-forced")
        )
    rows = [_row(run, losses, num_layers) for run in runs]
    write_csv(config.output / "quality.csv", rows)
    lines = {
        family: [
            (row["mean_layers"], row["rougeL"], row["rougeL_low"], row["rougeL_high"])
            for row in rows
            if row["family"] in (family, "full") and row["mean_layers"] is not None
        ]
        for family in ("uniform", "uniform-even", "early_exit", "random")
    }
    draw_lines(
        config.output / "quality.png",
        {name: points for name, points in lines.items() if points},
        "layers run per routed token (mean)",
        "ROUGE-L F1 (band: 95 % interval)",
    )
    path = write_report(config.output, quality_report(page, config, rows))
    console.print(f"report in {path}", highlight=False, soft_wrap=True)
    return config.output


def _row(run: dict[str, Any], losses: dict[str, float], num_layers: int) -> dict[str, Any]:
    family, _, option = run["policy"].partition(":")
    # an exit after layer E runs E + 1 layers; full depth is uniform's last budget
    budget = num_layers if not option else int(option) + (family == "early_exit")
    known = "uniform" if family == "full" else family
    low, high = run["rougeL_ci"]
    return {
        "policy": run["policy"],
        "family": family,
        "budget": budget,
        "mean_layers": run["mean_layers"],
        "rougeL": run["rougeL"],
        "rougeL_low": low,
        "rougeL_high": high,
        "agreement_with_full": run["agreement_with_full"],
        "loss": losses.get(f"{known}:{budget}") if known in FAMILIES else None,
    }
