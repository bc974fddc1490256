"""python -m bench.controllers MODEL DATA CONTROLLER…: trained gates beside what needs no training.

For every kv_fill: ROUGE-L and time of each controller, of uniform:K, random:K, random-step:K and
stochastic:P at its mean layers, and of full depth, all in one interleaved timing. K is the nearest
whole number, and every row says what layers came out. `dynkern eval` does the work, one folder for
each kv_fill, so that a stopped run goes on with --resume; rows go to --output.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from bench.results_file import append, stamp
from dynkern.controller_file import read_controller
from dynkern.evaluation.analysis import difference_interval
from dynkern.evaluation.sweep import SweepConfig, run_sweep
from dynkern.routes import KV_FILLS

RESULTS = Path(__file__).resolve().parent / "results"
FILE = "controller.safetensors"
TIMES = ("seconds", "speedup", "speedup_decode", "predicted_speedup", "realisation")


def controller_files(places: Sequence[Path]) -> list[Path]:
    """Controllers, of files or of folders of a sweep. ValueError where a place holds none."""
    found: list[Path] = []
    for place in places:
        files = [place] if place.is_file() else sorted(place.rglob(FILE))
        if not files:
            raise ValueError(f"controller: {place} holds no {FILE}")
        found += files
    return list(dict.fromkeys(found))


def rivals(mean_layers: float, num_layers: int) -> list[str]:
    """What needs no training, at as many layers."""
    budget = min(num_layers, max(1, round(mean_layers)))
    # layer 0 of stochastic always runs
    chance = min(1.0, max(0.0, (mean_layers - 1) / (num_layers - 1)))
    kinds = ("uniform", "random", "random-step")
    return [*(f"{kind}:{budget}" for kind in kinds), f"stochastic:{chance:.4f}"]


def measure(
    config: SweepConfig, controllers: Sequence[Path], console: Console
) -> list[dict[str, Any]]:
    """Rows of one kv_fill: for each controller its own, its rivals', and full depth's."""
    specs = [f"controller:{path}" for path in controllers]
    # layers are known once texts are: the timed run goes on from the samples of this one
    run_sweep(replace(config, policies=tuple(specs), timing=False), Console(quiet=True))
    alone = _runs(config.output)
    infos = [read_controller(path).info for path in controllers]
    against = {
        spec: rivals(alone[spec]["mean_layers"] or 1.0, info.num_layers)
        for spec, info in zip(specs, infos, strict=True)
    }
    every = dict.fromkeys([*specs, *(rival for group in against.values() for rival in group)])
    run_sweep(replace(config, policies=tuple(every), resume=True), console)
    runs, scores = _runs(config.output), _scores(config.output)
    rows = []
    for spec, path, info in zip(specs, controllers, infos, strict=True):
        for policy in dict.fromkeys([spec, *against[spec], "full"]):
            run = runs[policy]
            low, high = run["rougeL_ci"]
            row = {
                "controller": path.parent.name,
                "input": info.input,
                "alpha": info.alpha,
                "budget": info.budget,
                "kv_fill": config.kv_fill,
                "policy": "controller" if policy == spec else policy,
                "prompts": len(scores[policy]),
                "mean_layers": run["mean_layers"],
                "rougeL": run["rougeL"],
                "rougeL_low": low,
                "rougeL_high": high,
            }
            # paired by prompt: what the controller has over this policy
            low, high = difference_interval(scores[spec], scores[policy], config.seed)
            row |= {"controller_minus_low": low, "controller_minus_high": high}
            row |= {name: run[name] for name in TIMES}
            rows.append(row | {"loaded": int(bool(run.get("loaded")))})
    return rows


def _runs(folder: Path) -> dict[str, dict[str, Any]]:
    runs = json.loads((folder / "results.json").read_text(encoding="utf-8"))["runs"]
    return {run["policy"]: run for run in runs}


def _scores(folder: Path) -> dict[str, list[float]]:
    """ROUGE-L of every policy, prompts in one order."""
    scores: dict[str, dict[str, float]] = {}
    with (folder / "samples.jsonl").open(encoding="utf-8") as lines:
        next(lines)  # the header
        for line in lines:
            row = json.loads(line)
            scores.setdefault(row["policy"], {})[row["prompt_id"]] = row["rougeL"]
    return {policy: [of[id] for id in sorted(of)] for policy, of in scores.items()}


def main(
    model: Annotated[str, typer.Argument(help="Checkpoint directory or hub id.")],
    data: Annotated[str, typer.Argument(help=".json, .jsonl or .csv file.")],
    controller: Annotated[list[Path], typer.Argument(help="Files, or folders of a sweep.")],
    kv_fill: Annotated[
        list[str] | None, typer.Option(help="Rule of K/V fill; repeat it. Default: all.")
    ] = None,
    template: Annotated[str, typer.Option(help="alpaca or plain.")] = "alpaca",
    limit: Annotated[int, typer.Option(help="First N records.")] = 64,
    batch_size: Annotated[int, typer.Option(help="Rows that decode together.")] = 8,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to generate at most.")] = 48,
    repeat: Annotated[int, typer.Option(help="Timed rounds.")] = 3,
    seed: Annotated[int, typer.Option(help="Seed of every random draw.")] = 0,
    work: Annotated[Path, typer.Option(help="Folder for texts and times of each kv_fill.")] = Path(
        "dynkern-controllers"
    ),
    output: Annotated[Path, typer.Option(help="CSV to append to.")] = RESULTS / "controllers.csv",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a stopped run.")] = False,
) -> None:
    """Measure, print, append."""
    console = Console()
    files = controller_files(controller)
    fills = tuple(kv_fill or KV_FILLS)
    configs = [
        SweepConfig(
            model,
            data,
            limit=limit,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            kv_fill=fill,
            repeat=repeat,
            seed=seed,
            template=template,
            output=work / fill,
            resume=resume,
        )
        for fill in fills
    ]
    for config in configs:
        config.check()
    on = {**stamp("cpu", False), "model": Path(model).name}
    grid = Table("controller", "kv_fill", "policy", "layers", "ROUGE-L", "decoding")
    for config in configs:
        rows = measure(config, files, console)
        append(output, [on | row for row in rows])
        for row in rows:
            layers, gain = row["mean_layers"], row["speedup_decode"]
            grid.add_row(
                row["controller"],
                row["kv_fill"],
                row["policy"],
                "n/a" if layers is None else f"{layers:.2f}",
                f"{row['rougeL']:.3f} ({row['rougeL_low']:.3f}-{row['rougeL_high']:.3f})",
                "n/a" if gain is None else f"{gain:.2f} x",
            )
    console.print(grid)


if __name__ == "__main__":
    typer.run(main)
