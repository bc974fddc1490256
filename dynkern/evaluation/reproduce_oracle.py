"""The third experiment of `dynkern reproduce`: a number of layers for each sequence, by an oracle.

The paper's oracle chooses by the very scores that judge it. Beside it stand the controls: chosen on
some samples and judged on others, the same budgets dealt out at random, and one route for all; and
what the oracle's layers are worth in seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from dynkern.allocation.curve import Allocation, allocate
from dynkern.allocation.knapsack import Frontier
from dynkern.allocation.table import Table, load_table
from dynkern.data import Record
from dynkern.evaluation.analysis import bootstrap_interval
from dynkern.evaluation.claims import Claim, judge, judge_at_most, judge_not_worse, kept
from dynkern.evaluation.oracle import OracleConfig, run_oracle
from dynkern.evaluation.parts import write_part
from dynkern.evaluation.progress import Progressing
from dynkern.evaluation.speed import TimingPlan, measure_speed
from dynkern.evaluation.sweep import TIMED_BATCHES, encode_prompts
from dynkern.files import make_folder
from dynkern.llm import LLM
from dynkern.policies import policy as make_policy

Floats = NDArray[np.float64]

# of the layers, at which the paper's oracle is as good as full depth: 5.6 of 24
PAPER_SHARE = 0.233
# of sampling for the held-out oracle
TEMPERATURE = 0.7
# rows that decode together while tables are filled; texts do not depend on it
FILL_ROWS = 32


@dataclass(frozen=True)
class OracleStage:
    """What the stage needs. samples: of each text for the held-out oracle, even, 0 to leave it out;
    samples_limit: first records that it has. repeat: timed rounds, 0 for no timing.
    """

    model: str
    records: Sequence[Record]
    output: Path
    template: str
    max_new_tokens: int
    batch_size: int
    samples: int
    samples_limit: int
    repeat: int
    seed: int
    resume: bool

    def check(self) -> None:
        """Raise a one-line ValueError on anything out of range."""
        if self.samples < 0 or self.samples % 2:
            raise ValueError(f"samples: got {self.samples}, expected 0 or an even number")
        for name, least in (("samples_limit", 1), ("repeat", 0), ("max_new_tokens", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected {least} or more")


def oracle_claims(stage: OracleStage, console: Console) -> tuple[list[Claim], list[str]]:
    """The claims, and lines of Markdown on the budgets that the oracle gives."""
    make_folder(stage.output)
    table = _table(stage, "greedy", len(stage.records), 1, console)
    found = allocate(table, seed=stage.seed)
    claims = [_as_good_as_full(table, found), _one_route_is_worse(table, found, stage.seed)]
    if stage.samples:
        drawn = _table(stage, "sampled", stage.samples_limit, stage.samples, console)
        claims += held_out_claims(drawn, stage.seed)
    if stage.repeat:
        path = stage.output / "time.json"
        claims += kept(path, stage.resume, lambda: [_time(stage, table, console)])
    return claims, budget_lines(table, found)


def _table(stage: OracleStage, name: str, count: int, samples: int, console: Console) -> Table:
    """Fill a table, or go on with it; allocation.png and the like lie beside it."""
    records = write_part(stage.output / f"{name}.jsonl", stage.records[:count])
    config = OracleConfig(
        stage.model,
        str(records),
        samples=samples,
        temperature=0.0 if samples == 1 else TEMPERATURE,
        batch_size=FILL_ROWS,
        max_new_tokens=stage.max_new_tokens,
        seed=stage.seed,
        template=stage.template,
        output=stage.output / name,
        resume=stage.resume,
        losses=False,
    )
    run_oracle(config, console)
    return load_table(config.table)


def _as_good_as_full(table: Table, found: Allocation) -> Claim:
    point, layers = found.equal["oracle"], table.num_layers
    claim = f"an oracle per sequence keeps full ROUGE-L with {PAPER_SHARE:.1%} of the layers"
    if point.mean_layers is None or point.ci is None:
        return Claim(claim, "the oracle never reaches full depth's ROUGE-L", None, "no")
    low, high = point.ci
    interval = low / layers, high / layers
    measured = (
        f"ROUGE-L {found.full_quality:.3f} of full depth at {point.mean_layers:.2f} of {layers} "
        f"layers, {point.mean_layers / layers:.1%} (the least there is: {1 / layers:.1%}); chosen "
        "by the scores that judge it, so an upper bound; interval of the share"
    )
    return Claim(claim, measured, interval, judge_at_most(interval, PAPER_SHARE))


def _one_route_is_worse(table: Table, found: Allocation, seed: int) -> Claim:
    """What the same layers are worth where every sequence gets the same of them."""
    quality, budget = table.mean_quality, found.solution.cost
    scores = mixed(quality, table.costs, budget)
    interval = bootstrap_interval(quality[:, -1] - scores, seed)
    equal = found.equal["one_route"].mean_layers
    reached = "never" if equal is None else f"at {equal:.2f} layers"
    measured = (
        f"uniform at {budget:.2f} layers: ROUGE-L {scores.mean():.3f} against full depth's "
        f"{found.full_quality:.3f}, which it reaches {reached}; interval of the difference"
    )
    claim = "one route for all is worse than full depth at the oracle's layers (control)"
    return Claim(claim, measured, interval, judge(interval))


def mixed(quality: Floats, costs: Floats, budget: float) -> Floats:
    """Expected scores [N] where all sequences share a route of `budget` layers, between two routes
    a random mix. quality: [N, R]; costs: [R], ascending.
    """
    return np.array([np.interp(budget, costs, row) for row in quality])


def held_out_claims(table: Table, seed: int) -> list[Claim]:
    """The oracle at the paper's share of layers, chosen on one half of the samples and judged on
    the other, mean of both ways; against full depth, and against its budgets at random.
    """
    costs, budget = table.costs, max(PAPER_SHARE * table.num_layers, float(table.costs[0]))
    every = np.arange(len(table.ids))
    halves = [table.quality[:, :, part::2].mean(axis=2) for part in (0, 1)]
    oracle, dealt, spent = np.zeros(len(every)), np.zeros(len(every)), 0.0
    for chosen, scored in (halves, halves[::-1]):
        choice = Frontier(chosen, costs).at(budget).choice
        share = np.bincount(choice, minlength=len(costs)) / len(choice)
        oracle += scored[every, choice] / 2
        dealt += scored @ share / 2
        spent += float(costs[choice].mean()) / 2
    full = table.mean_quality[:, -1]
    samples = table.quality.shape[2]
    at = f"{spent:.2f} of {table.num_layers} layers, {samples} samples of {len(every)} prompts"
    against = bootstrap_interval(oracle - full, seed)
    random = bootstrap_interval(oracle - dealt, seed)
    return [
        Claim(
            f"the same held out: an oracle with {PAPER_SHARE:.1%} of the layers is no worse than "
            "full depth on samples that it has not seen (control)",
            f"ROUGE-L {oracle.mean():.3f} against {full.mean():.3f} at {at}; interval of the "
            "difference",
            against,
            judge_not_worse(against, float(full.mean())),
        ),
        Claim(
            "which sequence gets which budget matters: held out, the oracle beats the same budgets "
            "dealt out at random (control)",
            f"ROUGE-L {oracle.mean():.3f} against {dealt.mean():.3f} at {at}; interval of the "
            "difference",
            random,
            judge(random),
        ),
    ]


def _time(stage: OracleStage, table: Table, console: Console) -> Claim:
    """The allocation as ragged batches against full depth, interleaved."""
    llm = LLM(stage.model)
    records = stage.records[: TIMED_BATCHES * stage.batch_size]
    prompts, _ = encode_prompts(llm, records, stage.template, stage.max_new_tokens)
    oracle = make_policy(f"oracle:equal@{table.path}")
    budget = max(1, round(float(table.costs[list(oracle.choice.values())].mean())))
    uniform = make_policy(f"uniform:{budget}")
    plan = TimingPlan(
        [prompt.ids for prompt in prompts],
        {"full": make_policy("full"), oracle.spec: oracle, uniform.spec: uniform},
        stage.batch_size,
        stage.max_new_tokens,
        stage.repeat,
        {"prefill": "full", "kv_fill": "project", "seed": stage.seed},
    )
    with Progressing(console) as progress:
        columns = measure_speed(llm, plan, progress.task("timing")).columns
    claim = (
        "the oracle's layers become time: its ragged batches decode faster than full depth "
        "(beyond the paper)"
    )
    row, other = columns[oracle.spec], columns[uniform.spec]
    if "speedup_decode" not in row or "speedup_decode" not in other:
        return Claim(claim, "no pass was routed", None, "not measured")
    low, high = row["speedup_decode_spread"]
    loaded = ", while other processes were busy" if row["loaded"] else ""
    measured = (
        f"{row['speedup_decode']:.2f} times as fast in decoding, {row['predicted_speedup']:.2f} "
        f"possible; {row['speedup']:.2f} end to end; {uniform.spec} "
        f"{other['speedup_decode']:.2f} of {other['predicted_speedup']:.2f} possible; "
        f"{stage.batch_size} rows{loaded}"
    )
    if stage.repeat == 1:
        # one round has no spread to judge by
        return Claim(claim, f"{measured}; a single round", None, "undecided")
    measured += f"; interval: slowest and fastest of {stage.repeat} rounds"
    return Claim(claim, measured, (low, high), judge((low - 1, high - 1)))


def budget_lines(table: Table, found: Allocation) -> list[str]:
    """A Markdown table of the layers given, as good as full depth."""
    shares = np.bincount(found.solution.choice, minlength=len(table.costs)) / len(table.ids)
    names = [f"{cost:g}" for cost in table.costs]
    return [
        "Layers that the oracle gives, as good as full depth (share of sequences):",
        "",
        "| layers | " + " | ".join(names) + " |",
        "|---" * (len(names) + 1) + "|",
        "| share | " + " | ".join(f"{share:.1%}" for share in shares) + " |",
    ]
