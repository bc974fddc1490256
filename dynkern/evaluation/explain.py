"""What limits a policy on a model at a batch size, and what would pay: measured, then reasoned.

The parts of a pass are timed (evaluation/calibration.py) beside runs of the policy and of full
depth in the same rounds; every other case is predicted from the same parts, with the layers that
rows really ran.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import fsum
from typing import Any

from dynkern.cost import (
    CostModel,
    PassCount,
    part_costs,
    roofline_efficiency,
    roofline_of_passes,
    roofline_time,
)
from dynkern.evaluation.calibration import Calibration
from dynkern.evaluation.judgement import Judgement, judge
from dynkern.evaluation.measured_cost import counts_up_to
from dynkern.evaluation.peaks import Peaks, measure_peaks
from dynkern.evaluation.probe import EngineProbe
from dynkern.evaluation.timing import interleave
from dynkern.llm import LLM
from dynkern.policies import is_planned
from dynkern.routes import full as full_route
from dynkern.routes import uniform as uniform_route
from dynkern.runtime.executors.kv_fill import DEFERRED_TOKENS
from dynkern.runtime.request import Completion, Policy, RunResult

# enough requests that equal routes can be found, in batches of the size asked for
POPULATION_BATCHES = 4
# passes that show what a token policy runs; planned rows run the same layers in every pass
COUNTED_TOKENS = 17
FULL = "full depth"


@dataclass(frozen=True)
class Case:
    """What is explained. kv_fill: for token policies; lengths in tokens; seed: of the prompts too.

    ValueError for counts below 1, or 2 for new_tokens: the first comes of the prefill.
    """

    policy: Policy
    name: str
    batch_size: int
    prompt_tokens: int = 64
    new_tokens: int = 32
    kv_fill: str = "project"
    seed: int = 0
    repeat: int = 3

    def __post_init__(self) -> None:
        least = {"batch_size": 1, "prompt_tokens": 1, "new_tokens": 2, "repeat": 1}
        for field, bound in least.items():
            value = getattr(self, field)
            if value < bound:
                raise ValueError(f"{field}: got {value}, expected {bound} or more")


@dataclass(frozen=True)
class Parts:
    """Seconds of one mean pass by what they go to; they add up to its possible time.

    fixed: embedding, final norm and LM head. weights: layers at one row, which is reading them.
    rows: what the other rows of a layer add. fill: K/V projections of skipped layers. heads: LM
    heads at exit layers. attention: the least that K/V traffic takes, a share of weights and rows.
    """

    fixed: float
    weights: float
    rows: float
    fill: float
    heads: float
    attention: float

    @property
    def total(self) -> float:
        """Possible time of the pass."""
        return fsum((self.fixed, self.weights, self.rows, self.fill, self.heads))


@dataclass(frozen=True)
class Option:
    """A way to run, predicted. mean_layers: of a row; union: layers that a pass reads.
    tokens_per_second: all rows together; speedup: against full depth at the same batch size.
    """

    name: str
    batch_size: int
    mean_layers: float
    union: float
    tokens_per_second: float
    speedup: float


@dataclass(frozen=True)
class Explanation:
    """All that was found. parts, full_parts: of the policy's pass and of full depth. options[0] is
    the case itself. efficiency: roofline efficiency of full depth.
    """

    case: Case
    num_layers: int
    parts: Parts
    full_parts: Parts
    row_cost: float
    judged: Judgement
    efficiency: float
    options: list[Option]
    peaks: Peaks
    executor: str
    loaded: bool


class Explainer:
    """Runs the case once, to see that it fits the model; ValueError where it does not."""

    def __init__(self, llm: LLM, case: Case) -> None:
        self.llm, self.case, self.runs = llm, case, _Runs(llm, case)
        batch = case.batch_size
        self.population = self.runs.count(case.policy, batch, POPULATION_BATCHES * batch)

    def measure(self, report: Callable[[int, int, str], None]) -> Explanation:
        """Time the parts and the runs, and reason. report(done, total, label) as it goes on."""
        llm, case, runs = self.llm, self.case, self.runs
        weights = llm.engine.weights
        calibration = self._calibration()
        peaks = measure_peaks(llm.weight_bytes, weights.dtype, llm.device, progress=report)
        cases: dict[str, Callable[[], Any]] = {
            **calibration.cases,
            FULL: runs.timed("full"),
            case.name: runs.timed(case.policy),
        }
        timings = interleave(cases, case.repeat, progress=report)
        model = calibration.model(timings)
        passes, at_full = (timings[name].values[-1][-1].stats.passes for name in (case.name, FULL))
        sizes = weights.element_size, weights.dtype.itemsize, peaks.bandwidth, peaks.flops
        roofline = roofline_of_passes(llm.spec, at_full, *sizes)
        full_seconds = judge(timings, calibration, FULL, FULL).seconds.median
        attention = _Attention(llm, peaks)
        one = model.layer(1)
        return Explanation(
            case=case,
            num_layers=llm.spec.num_layers,
            parts=parts_of(model, passes, attention),
            full_parts=parts_of(model, at_full, attention),
            row_cost=model.layer(case.batch_size) / one if one > 0 else 1.0,
            judged=judge(timings, calibration, case.name, FULL),
            efficiency=roofline_efficiency(roofline, full_seconds),
            options=_options(runs, model, self.population),
            peaks=peaks,
            executor=llm.engine.executor.name,
            loaded=any(timings[name].loaded for name in cases) or peaks.loaded,
        )

    def _calibration(self) -> Calibration:
        case, most = self.case, 2 * self.case.batch_size
        counts = sorted({*counts_up_to(most), case.batch_size})
        fills = not is_planned(case.policy) and case.kv_fill in ("project", "deferred")
        fill_counts = [*counts, most * DEFERRED_TOKENS] if case.kv_fill == "deferred" else None
        middle = case.new_tokens // 2
        prompts = self.runs.prompts(most)
        probe = EngineProbe.after(self.llm.engine, prompts, middle, with_fill=fills)
        length = case.prompt_tokens + middle
        return Calibration(probe, counts, fill_row_counts=fill_counts, length=length)


def parts_of(
    model: CostModel, passes: Sequence[PassCount], attention: Callable[[PassCount], float]
) -> Parts:
    """Mean over passes. attention: least seconds of a pass's attention."""
    n, one = len(passes), model.layer(1)

    def mean(of: Callable[[PassCount], float]) -> float:
        return fsum(map(of, passes)) / n

    def beside_heads(count: PassCount) -> float:
        return model.pass_time(replace(count, head_rows=0))

    def beside_fill(count: PassCount) -> float:
        return model.pass_time(replace(count, fill_rows=()))

    return Parts(
        fixed=mean(lambda c: model.fixed(c.rows)),
        weights=mean(lambda c: c.union * one),
        rows=mean(lambda c: fsum(model.layer(r) - one for r in c.layer_rows if r)),
        fill=mean(lambda c: model.pass_time(c) - beside_fill(c)),
        heads=mean(lambda c: model.pass_time(c) - beside_heads(c)),
        attention=mean(attention),
    )


class _Attention:
    """Least seconds of a pass's attention, by the roofline."""

    def __init__(self, llm: LLM, peaks: Peaks) -> None:
        self.spec, self.weights, self.peaks = llm.spec, llm.engine.weights, peaks

    def __call__(self, count: PassCount) -> float:
        w, peaks = self.weights, self.peaks
        every = part_costs(self.spec, count, w.element_size, w.dtype.itemsize)
        mine = [part for part in every if part.name.endswith("attention")]
        return roofline_time(mine, peaks.bandwidth, peaks.flops)


class _Runs:
    """Runs of the case on random prompts."""

    def __init__(self, llm: LLM, case: Case) -> None:
        self.llm, self.case = llm, case
        self._random = random.Random(case.seed)

    def prompts(self, count: int) -> list[list[int]]:
        """Fresh random ones."""
        spec, length = self.llm.spec, self.case.prompt_tokens
        ids = range(spec.vocab_size)
        return [[spec.bos_token_id, *self._random.choices(ids, k=length - 1)] for _ in range(count)]

    def timed(self, policy: str | Policy) -> Callable[[], RunResult]:
        """One batch at forced length, fresh prompts in every call."""
        size, new_tokens = self.case.batch_size, self.case.new_tokens
        return lambda: self._run(policy, size, size, new_tokens)

    def count(self, policy: str | Policy, batch_size: int, requests: int) -> RunResult:
        """What rows run, whatever it takes."""
        new_tokens = min(self.case.new_tokens, COUNTED_TOKENS)
        return self._run(policy, batch_size, requests, new_tokens)

    def _run(
        self, policy: str | Policy, batch_size: int, requests: int, new_tokens: int
    ) -> RunResult:
        case = self.case
        return self.llm.run(
            self.prompts(requests),
            policy,
            max_new_tokens=new_tokens,
            batch_size=batch_size,
            kv_fill=case.kv_fill,
            force_length=True,
            seed=case.seed,
        )


def _options(runs: _Runs, model: CostModel, population: RunResult) -> list[Option]:
    """The case, the same at other batch sizes, other orders, and even skipping of equal depth."""
    case, layers = runs.case, runs.llm.spec.num_layers
    batch, length = case.batch_size, model.length or 0.0
    planned = is_planned(case.policy)

    def option(name: str, size: int, passes: Sequence[PassCount]) -> Option:
        possible, rows = model.possible_time(passes), sum(c.rows for c in passes)
        return Option(
            name,
            size,
            sum(sum(c.layer_rows) for c in passes) / rows,
            sum(c.union for c in passes) / len(passes),
            rows / possible,
            model.full_time(passes) / possible,
        )

    def same_length(passes: Sequence[PassCount]) -> list[PassCount]:
        return [replace(c, length=length) for c in passes]

    found = [option(case.name, batch, same_length(population.stats.passes))]
    for size in sorted({1, max(1, batch // 4), max(1, batch // 2), 2 * batch} - {batch}):
        if planned:
            passes = _passes_of(population.completions, size, length)
        else:
            passes = same_length(runs.count(case.policy, size, 2 * size).stats.passes)
        found.append(option(f"{size} rows", size, passes))
    if planned and batch > 1:
        ordered = _cohorts(population.completions, batch)
        found.append(option("cohorts", batch, _passes_of(ordered, batch, length)))
    budget = max(1, min(layers, round(found[0].mean_layers)))
    even = (uniform_route(layers, budget) if budget < layers else full_route(layers)).tolist()
    even_pass = PassCount(batch, tuple(batch * ran for ran in even), length=length)
    found.append(option(f"uniform:{budget}", batch, [even_pass]))
    return found


def _cohorts(completions: Sequence[Completion], batch_size: int) -> list[Completion]:
    """Rows in an order in which batches of this size read few layers: next comes the row that adds
    fewest to its batch, and of these the one that uses most of them.
    """
    waiting = {
        i: {at for at, n in enumerate(r.layer_counts) if n} for i, r in enumerate(completions)
    }
    order: list[int] = []
    union: set[int] = set()
    while waiting:
        if len(order) % batch_size == 0:
            union = set()
        best = min(waiting, key=lambda i: (len(waiting[i] - union), len(union - waiting[i])))
        union |= waiting.pop(best)
        order.append(best)
    return [completions[i] for i in order]


def _passes_of(
    completions: Sequence[Completion], batch_size: int, length: float
) -> list[PassCount]:
    """Passes of planned rows in batches of this size, in order; one for each batch."""
    passes = []
    for start in range(0, len(completions) - batch_size + 1, batch_size):
        rows = completions[start : start + batch_size]
        columns = zip(*(row.layer_counts for row in rows), strict=True)
        layer_rows = tuple(sum(n > 0 for n in column) for column in columns)
        passes.append(PassCount(len(rows), layer_rows, length=length))
    return passes
