"""`dynkern reproduce`: the experiments of arXiv 2410.20022 in order, and what became of its claims.

Claims are judged on what was given: a small model may well contradict the paper, and a row says
"no" or "undecided" then.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from dynkern.evaluation.analysis import bootstrap_interval, difference_interval
from dynkern.evaluation.confidence import load_part
from dynkern.evaluation.hidden_states import (
    HiddenStatesConfig,
    distance_rows,
    route_effects,
    teacher_forced_batches,
)
from dynkern.evaluation.progress import Progressing
from dynkern.evaluation.reproduce_page import reproduce_report
from dynkern.evaluation.rouge import score
from dynkern.evaluation.sweep import encode_prompts
from dynkern.evaluation.tables import write_csv
from dynkern.files import make_folder, write_whole
from dynkern.llm import LLM
from dynkern.report import write_report
from dynkern.training.controllers import ControllerConfig, run_controllers

# two controllers count as of one budget where their layers are this close
SAME_BUDGET = 0.5
# a ROUGE-L that is lower by less counts as no worse
MARGIN = 0.02


@dataclass(frozen=True)
class ReproduceConfig:
    """The arguments of `dynkern reproduce`. limit: test records; train_limit: records that
    controllers are cut from; steps: optimizer steps of each controller.
    """

    model: str
    data: str
    output: Path = Path("dynkern-reproduce")
    limit: int = 64
    train_limit: int | None = 2000
    alphas: tuple[float, ...] = (0.25, 1.0)
    steps: int = 60
    gate_rate: float = 1e-2
    batch_size: int = 16
    template: str = "alpaca"
    max_length: int = 256
    max_new_tokens: int = 48
    seed: int = 0
    resume: bool = False


@dataclass(frozen=True)
class Claim:
    """One line of the report. interval: 95 %; holds: "yes", "no", "undecided", "not measured"."""

    claim: str
    measured: str
    interval: tuple[float, float] | None
    holds: str


def run_reproduce(config: ReproduceConfig, console: Console | None = None) -> Path:
    """Write report.md, report.json and report.html, with the experiments' own files in folders
    beside them.

    Raises ValueError or FileNotFoundError, one line, on bad input.
    """
    console = console or Console()
    for name in ("limit", "steps"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name}: got {getattr(config, name)}, expected 1 or more")
    controllers = _controllers(config)
    controllers.loop()
    hidden = HiddenStatesConfig(
        config.model,
        config.data,
        "test",
        config.limit,
        config.template,
        config.max_length,
        config.batch_size,
        seed=config.seed,
    )
    hidden.check()
    make_folder(config.output)
    claims = [_skipping_beats_exits(config, hidden, console)]
    run_controllers(controllers, console)
    claims.append(_fixed_as_good_as_hidden(config, console))
    claims.append(
        Claim(
            "an oracle per sequence keeps full ROUGE-L with 23.3 % of the layers",
            "the oracle is not part of this command",
            None,
            "not measured",
        )
    )
    facts = {"arguments": asdict(config), "claims": [asdict(claim) for claim in claims]}
    text = json.dumps(facts, indent=2, default=str) + "\n"
    write_whole(config.output / "report.json", lambda part: part.write_text(text))
    report = report_text(config, claims)
    write_whole(config.output / "report.md", lambda part: part.write_text(report))
    console.print(report, highlight=False, markup=False, soft_wrap=True)
    page = write_report(config.output, reproduce_report(config, claims))
    console.print(f"report in {page}", highlight=False, soft_wrap=True)
    return config.output


def report_text(config: ReproduceConfig, claims: Sequence[Claim]) -> str:
    """report.md."""
    lines = [
        f"# {config.model} on {config.data}",
        "",
        "| claim | measured here | 95 % interval | holds? |",
        "|---|---|---|---|",
    ]
    for claim in claims:
        low_high = "" if claim.interval is None else "{:.4f} to {:.4f}".format(*claim.interval)
        lines.append(f"| {claim.claim} | {claim.measured} | {low_high} | {claim.holds} |")
    return "\n".join(lines) + "\n"


def judge(interval: tuple[float, float]) -> str:
    """Whether a difference that a claim says is above 0 is so, by its interval."""
    low, high = interval
    return "yes" if low > 0 else "no" if high < 0 else "undecided"


def judge_not_worse(interval: tuple[float, float]) -> str:
    """Whether a difference is above -MARGIN by its interval; "no" where that lies below 0."""
    low, high = interval
    return "yes" if low > -MARGIN else "no" if high < 0 else "undecided"


def closest_pair(fixed: dict[Any, float], hidden: dict[Any, float], num_layers: int) -> Any:
    """The pair of nearest mean layers, or None: gates that are all shut or all open compare nothing
    but two equal routes.
    """
    inside = [
        {key: n for key, n in group.items() if 2.05 < n < num_layers - 0.05}
        for group in (fixed, hidden)
    ]
    pairs = ((a, b) for a in inside[0] for b in inside[1])
    return min(pairs, key=lambda p: abs(inside[0][p[0]] - inside[1][p[1]]), default=None)


def _skipping_beats_exits(
    config: ReproduceConfig, hidden: HiddenStatesConfig, console: Console
) -> Claim:
    model, batches = teacher_forced_batches(hidden)
    with Progressing(console) as progress:
        distances, _ = route_effects(model, batches, 1, config.seed, progress.task("routes"))
    folder = config.output / "hidden-states"
    make_folder(folder)
    write_csv(folder / "cosine.csv", distance_rows(distances, model.num_layers, config.seed))
    # at one layer, and at all of them, both run the same
    budgets = range(2, model.num_layers)
    means = {
        family: np.mean([distances[family, budget] for budget in budgets], axis=0)
        for family in ("uniform", "early_exit")
    }
    gap = means["early_exit"] - means["uniform"]
    interval = bootstrap_interval(gap.tolist(), config.seed)
    wins = sum(
        np.mean(distances["uniform", b]) < np.mean(distances["early_exit", b]) for b in budgets
    )
    return Claim(
        "layer skipping keeps closer to the full model than early exit (cosine distance of the "
        "final hidden state)",
        f"distance {means['uniform'].mean():.3f} against {means['early_exit'].mean():.3f}, mean "
        f"over budgets 2 to {model.num_layers - 1}; closer at {wins} of {len(budgets)}; interval "
        "of the difference",
        interval,
        judge(interval),
    )


def _controllers(config: ReproduceConfig) -> ControllerConfig:
    return ControllerConfig(
        config.model,
        config.data,
        config.output / "controllers",
        inputs=("hidden", "fixed"),
        alphas=config.alphas,
        settings={
            "max_steps": config.steps,
            "eval_every": max(1, config.steps // 4),
            "batch_size": config.batch_size,
            "gate_rate": config.gate_rate,
        },
        limit=config.train_limit,
        template=config.template,
        max_length=config.max_length,
        seed=config.seed,
        resume=config.resume,
    )


def _fixed_as_good_as_hidden(config: ReproduceConfig, console: Console) -> Claim:
    claim = "controllers with a fixed input do as well as those with hidden states"
    records = load_part(config.data, "test", config.limit)
    llm = LLM(config.model)
    prompts, _ = encode_prompts(llm, records, config.template, config.max_new_tokens)
    paths = sorted((config.output / "controllers").glob("*/controller.safetensors"))
    scores: dict[Path, list[float]] = {}
    layers: dict[Path, float] = {}
    rows: list[dict[str, Any]] = []
    with Progressing(console) as progress:
        report = progress.task("controllers")
        for place, path in enumerate(paths):
            report(place, len(paths), path.parent.name)
            done = llm.generate(
                [prompt.ids for prompt in prompts],
                f"controller:{path}",
                batch_size=config.batch_size,
                max_new_tokens=config.max_new_tokens,
                seed=config.seed,
            )
            scores[path] = [
                score(completion.text, prompt.record.references)["rougeL"]
                for completion, prompt in zip(done, prompts, strict=True)
            ]
            counts = [count for completion in done for count in completion.layers_run]
            layers[path] = float(np.mean(counts)) if counts else float("nan")
            rows.append(
                {
                    "controller": path.parent.name,
                    "rougeL": float(np.mean(scores[path])),
                    "mean_layers": layers[path],
                }
            )
        report(len(paths), len(paths), "done")
    write_csv(config.output / "controllers.csv", rows)
    fixed, hidden = (
        {path: n for path, n in layers.items() if path.parent.name.startswith(kind)}
        for kind in ("fixed", "hidden")
    )
    pair = closest_pair(fixed, hidden, llm.spec.num_layers)
    if pair is None:
        shown = ", ".join(f"{path.parent.name} {n:.2f}" for path, n in layers.items())
        measured = f"no pair to compare: gates all shut or all open (layers: {shown})"
        return Claim(claim, measured, None, "undecided")
    one, other = pair
    interval = difference_interval(scores[one], scores[other], config.seed)
    close = abs(layers[one] - layers[other]) <= SAME_BUDGET
    measured = (
        f"ROUGE-L {np.mean(scores[one]):.3f} at {layers[one]:.2f} layers against "
        f"{np.mean(scores[other]):.3f} at {layers[other]:.2f}, the closest pair of the grid; "
        "interval of the difference"
    )
    return Claim(claim, measured, interval, judge_not_worse(interval) if close else "undecided")
