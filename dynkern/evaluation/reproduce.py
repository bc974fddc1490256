"""`dynkern reproduce`: the experiments of arXiv 2410.20022 in order, and what became of its claims.

Claims are judged on what was given: a small model may well contradict the paper, and a row says
"no" or "undecided" then.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from dynkern.data import Record, load_records
from dynkern.evaluation.analysis import bootstrap_interval, difference_interval
from dynkern.evaluation.claims import Claim, claim_table, judge, judge_not_worse, kept
from dynkern.evaluation.confidence import load_part
from dynkern.evaluation.hidden_states import (
    HiddenStatesConfig,
    distance_rows,
    route_effects,
    teacher_forced_batches,
)
from dynkern.evaluation.progress import Progressing
from dynkern.evaluation.reproduce_oracle import OracleStage, oracle_claims
from dynkern.evaluation.reproduce_page import reproduce_report
from dynkern.evaluation.rouge import score
from dynkern.evaluation.sweep import encode_prompts
from dynkern.evaluation.tables import write_csv
from dynkern.files import make_folder, write_whole
from dynkern.llm import LLM
from dynkern.models.checkpoint import read_config, resolve_model
from dynkern.models.opt import spec_from_config
from dynkern.report import write_report
from dynkern.training.budget import check_budget
from dynkern.training.controllers import ControllerConfig, run_controllers
from dynkern.training.finetune import remember

# two controllers count as of one budget where their layers are this close
SAME_BUDGET = 0.5


@dataclass(frozen=True)
class ReproduceConfig:
    """The arguments of `dynkern reproduce`. test: data to test on, None for the test part of
    `data`. limit: test records; states_limit, samples_limit: those of the hidden states and of the
    held-out oracle; train_limit: records that controllers are cut from. budgets: of controllers,
    by default a half and three quarters of the layers, unless there are alphas: a grid without
    budgets. steps: optimizer steps of each controller. samples: of each text for the held-out
    oracle, 0 to leave it out. repeat: timed rounds, 0 for no timing.
    """

    model: str
    data: str
    output: Path = Path("dynkern-reproduce")
    test: str | None = None
    limit: int = 256
    states_limit: int = 96
    samples_limit: int = 128
    train_limit: int | None = 2000
    budgets: tuple[float, ...] = ()
    alphas: tuple[float, ...] = ()
    steps: int = 60
    gate_rate: float = 1e-2
    batch_size: int = 16
    template: str = "alpaca"
    max_length: int = 256
    max_new_tokens: int = 48
    samples: int = 4
    repeat: int = 3
    seed: int = 0
    resume: bool = False

    def test_records(self) -> list[Record]:
        """What is tested on."""
        if self.test is not None:
            return load_records(self.test, "test", self.limit)
        return load_part(self.data, "test", self.limit)


def run_reproduce(config: ReproduceConfig, console: Console | None = None) -> Path:
    """Write report.md, report.json and report.html, with the experiments' own files in folders
    beside them.

    A stopped run goes on with `resume`: stages that are done are not done again, nor are steps and
    rows of the one that was stopped. Raises ValueError or FileNotFoundError, one line, on bad
    input.
    """
    console = console or Console()
    for name in ("limit", "states_limit", "train_limit", "steps"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"{name}: got {value}, expected 1 or more")
    config = _with_budgets(config)
    controllers = _controllers(config)
    settings = controllers.loop()
    hidden = _hidden(config)
    hidden.check()
    stage = _oracle_stage(config, ())
    stage.check()
    records = config.test_records()
    arguments = config.output / "arguments.json"
    if arguments.exists() and not config.resume:
        raise ValueError(
            f"output: {config.output} holds a run; --resume goes on with it, or take another folder"
        )
    make_folder(config.output)
    remember(arguments, config, settings, config.resume)
    claims = kept(
        config.output / "hidden-states" / "claims.json",
        config.resume,
        lambda: [_skipping_beats_exits(config, hidden, console)],
    )
    run_controllers(controllers, console)
    claims += kept(
        config.output / "controllers" / "claims.json",
        config.resume,
        lambda: _fixed_as_good_as_hidden(config, records, console),
    )
    of_oracle, budgets = oracle_claims(replace(stage, records=records), console)
    claims += of_oracle
    facts = {"arguments": asdict(config), "claims": [asdict(claim) for claim in claims]}
    text = json.dumps(facts, indent=2, default=str) + "\n"
    write_whole(config.output / "report.json", lambda part: part.write_text(text))
    report = report_text(config, claims, budgets)
    write_whole(config.output / "report.md", lambda part: part.write_text(report))
    console.print(report, highlight=False, markup=False, soft_wrap=True)
    page = write_report(config.output, reproduce_report(config, claims))
    console.print(f"report in {page}", highlight=False, soft_wrap=True)
    return config.output


def report_text(
    config: ReproduceConfig, claims: Sequence[Claim], further: Sequence[str] = ()
) -> str:
    """report.md; further: lines behind the table of claims."""
    lines = [f"# {config.model} on {config.test or config.data}", "", *claim_table(claims)]
    return "\n".join([*lines, "", *further]).rstrip() + "\n"


def _with_budgets(config: ReproduceConfig) -> ReproduceConfig:
    num_layers = spec_from_config(read_config(resolve_model(config.model))).num_layers
    for budget in config.budgets:
        check_budget(budget, num_layers)
    if config.budgets or config.alphas:
        return config
    return replace(config, budgets=(float(num_layers // 2), float(3 * num_layers // 4)))


def _hidden(config: ReproduceConfig) -> HiddenStatesConfig:
    return HiddenStatesConfig(
        config.model,
        config.test or config.data,
        "all" if config.test else "test",
        min(config.states_limit, config.limit),
        config.template,
        config.max_length,
        config.batch_size,
        seed=config.seed,
    )


def _oracle_stage(config: ReproduceConfig, records: Sequence[Record]) -> OracleStage:
    return OracleStage(
        config.model,
        records,
        config.output / "oracle",
        config.template,
        config.max_new_tokens,
        config.batch_size,
        config.samples,
        config.samples_limit,
        config.repeat,
        config.seed,
        config.resume,
    )


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
        alphas=config.alphas or (1.0,),
        budgets=config.budgets,
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


def _fixed_as_good_as_hidden(
    config: ReproduceConfig, records: Sequence[Record], console: Console
) -> list[Claim]:
    """A claim for each budget, or one for the closest pair of a grid of alphas."""
    llm = LLM(config.model)
    prompts, _ = encode_prompts(llm, list(records), config.template, config.max_new_tokens)
    found = (config.output / "controllers").glob("*/controller.safetensors")
    # a budget of 10 behind one of 6
    paths = sorted(found, key=lambda path: by_number(path.parent.name))
    policies = {path.parent.name: f"controller:{path}" for path in paths}
    policies |= {f"uniform:{b:g}": f"uniform:{b:g}" for b in config.budgets if b == int(b)}
    policies["full"] = "full"
    scores: dict[str, list[float]] = {}
    layers: dict[str, float] = {}
    rows: list[dict[str, Any]] = []
    with Progressing(console) as progress:
        report = progress.task("controllers")
        for place, (name, policy) in enumerate(policies.items()):
            report(place, len(policies), name)
            done = llm.generate(
                [prompt.ids for prompt in prompts],
                policy,
                batch_size=config.batch_size,
                max_new_tokens=config.max_new_tokens,
                seed=config.seed,
            )
            scores[name] = [
                score(completion.text, prompt.record.references)["rougeL"]
                for completion, prompt in zip(done, prompts, strict=True)
            ]
            counts = [count for completion in done for count in completion.layers_run]
            layers[name] = float(np.mean(counts)) if counts else float("nan")
            low, high = bootstrap_interval(scores[name], config.seed)
            rows.append(
                {
                    "policy": name,
                    "rougeL": float(np.mean(scores[name])),
                    "rougeL_low": low,
                    "rougeL_high": high,
                    "mean_layers": layers[name],
                }
            )
        report(len(policies), len(policies), "done")
    write_csv(config.output / "controllers.csv", rows)
    fixed, hidden = (
        {name: n for name, n in layers.items() if name.startswith(f"{kind}-")}
        for kind in ("fixed", "hidden")
    )
    if not config.budgets:
        pair = closest_pair(fixed, hidden, llm.spec.num_layers)
        return [_compared(pair, scores, layers, config.seed, " (the closest pair of the grid)")]
    return [
        _compared(
            (name, name.replace("fixed-", "hidden-", 1)),
            scores,
            layers,
            config.seed,
            f" (budget {name.rpartition('budget')[2]})",
        )
        for name in fixed
    ]


def by_number(name: str) -> list[Any]:
    """A key that orders the numbers in names as numbers."""
    return [
        float(part) if part[0].isdigit() else part for part in re.split(r"([\d.]+)", name) if part
    ]


def _compared(
    pair: tuple[str, str] | None,
    scores: dict[str, list[float]],
    layers: dict[str, float],
    seed: int,
    which: str,
) -> Claim:
    claim = "controllers with a fixed input do as well as those with hidden states" + which
    if pair is None:
        shown = ", ".join(f"{name} {n:.2f}" for name, n in layers.items())
        measured = f"no pair to compare: gates all shut or all open (layers: {shown})"
        return Claim(claim, measured, None, "undecided")
    one, other = pair
    interval = difference_interval(scores[one], scores[other], seed)
    judged = judge_not_worse(interval, float(np.mean(scores[other])))
    close = abs(layers[one] - layers[other]) <= SAME_BUDGET
    measured = (
        f"ROUGE-L {np.mean(scores[one]):.3f} at {layers[one]:.2f} layers against "
        f"{np.mean(scores[other]):.3f} at {layers[other]:.2f}"
        + ("" if close else f", which is no one budget (more than {SAME_BUDGET} apart)")
        + "; interval of the difference"
    )
    return Claim(claim, measured, interval, judged if close else "undecided")
