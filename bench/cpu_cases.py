"""The groups of bench.end_to_end that measure dynkern against itself: routes, exits, serving."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

from dynkern import routes
from dynkern.cost import roofline_of_passes
from dynkern.evaluation.calibration import Calibration
from dynkern.evaluation.judgement import decode_seconds, judge
from dynkern.evaluation.peaks import measure_peaks
from dynkern.evaluation.probe import EngineProbe
from dynkern.evaluation.timing import CaseTiming, Spread, interleave
from dynkern.llm import LLM
from dynkern.runtime.request import PlanRequest, RunResult, SamplingParams

PROMPT = 64
Row = dict[str, Any]


class Routes:
    """A planned policy that deals given routes out in turn."""

    sees_prompt_state = False

    def __init__(self, table: list[Any]) -> None:
        self.table = table

    def plan(self, requests: list[PlanRequest]) -> list[Any]:
        """One of the routes for each request, by its id."""
        return [self.table[request.id % len(self.table)] for request in requests]


def worst_load(case: CaseTiming[Any]) -> float:
    """Cores that others used at most during the kept runs."""
    return max(load.worst for load in case.loads)


class Bench:
    """One model at one batch size: cases of 64-token prompts and forced lengths, interleaved."""

    def __init__(self, llm: LLM, batch: int, new_tokens: int, repeats: int) -> None:
        self.llm, self.batch = llm, batch
        self.new_tokens, self.repeats = new_tokens, repeats

    def prompts(self) -> list[list[int]]:
        """Random ones, a row each."""
        spec = self.llm.spec
        ids = range(4, spec.vocab_size)
        return [[spec.bos_token_id, *random.choices(ids, k=PROMPT - 1)] for _ in range(self.batch)]

    def run(self, policy: Any, **options: Any) -> Callable[[], RunResult]:
        """A case: fresh random prompts in every call."""

        def once() -> RunResult:
            return self.llm.run(
                self.prompts(),
                policy,
                max_new_tokens=self.new_tokens,
                batch_size=self.batch,
                force_length=True,
                **options,
            )

        return once

    def judged(self, cases: dict[str, Callable[[], RunResult]], fills: bool) -> Iterator[Row]:
        """A row a case: time of a pass, speed-up, prediction, realisation, roofline efficiency."""
        llm, batch = self.llm, self.batch
        weights = llm.engine.weights
        counts = sorted({1, batch, *range(1, batch + 1, max(1, batch // 8))})
        middle = self.new_tokens // 2
        probe = EngineProbe.after(llm.engine, self.prompts(), middle, with_fill=fills)
        calibration = Calibration(probe, counts, length=PROMPT + middle)
        peaks = measure_peaks(llm.weight_bytes, weights.dtype)
        cases = {"full": self.run("full"), **cases}
        timings = interleave({**calibration.cases, **cases}, self.repeats)
        for name in cases:
            judged = judge(timings, calibration, name, "full")
            passes = timings[name].values[-1][-1].stats.passes
            limit = roofline_of_passes(
                llm.spec,
                passes,
                weights.element_size,
                weights.dtype.itemsize,
                peaks.bandwidth,
                peaks.flops,
            )
            yield {
                "case": name,
                "seconds": judged.seconds.median / len(passes),
                "low": judged.seconds.p20 / len(passes),
                "high": judged.seconds.p80 / len(passes),
                "speedup": judged.speedup.median,
                "predicted": judged.predicted_speedup,
                "realisation": judged.realisation,
                "efficiency": limit / judged.seconds.median,
                "bandwidth": peaks.bandwidth,
                "loaded": timings[name].loaded or peaks.loaded,
                "foreign_load": worst_load(timings[name]),
            }


def realisation(bench: Bench) -> Iterator[Row]:
    """Full depth and 3/4, 1/2, 1/4 of the layers."""
    layers = bench.llm.spec.num_layers
    budgets = dict.fromkeys(max(1, layers * part // 4) for part in (3, 2, 1))
    yield from bench.judged({f"uniform:{k}": bench.run(f"uniform:{k}") for k in budgets}, False)


def mixed(bench: Bench) -> Iterator[Row]:
    """Batches whose rows run different layers."""
    layers, batch = bench.llm.spec.num_layers, bench.batch
    quarter, half = max(1, layers // 4), max(1, layers // 2)

    def nested(budget: int) -> Any:
        return routes.uniform(layers, budget)

    spread = [nested(1 + i * (layers - 1) // max(1, batch - 1)) for i in range(batch)]
    tables = {
        "budgets 1..L": spread,
        "bimodal": [nested(quarter), nested(layers)],
        "one straggler": [nested(layers), *[nested(quarter)] * (batch - 1)],
    }
    cases = {name: bench.run(Routes(table)) for name, table in tables.items()}
    yield from bench.judged({**cases, f"random:{half}": bench.run(f"random:{half}")}, False)


def confidence(bench: Bench) -> Iterator[Row]:
    """Exits that nobody takes, and that everybody takes at once: the two ends of any threshold."""
    cases = {
        "exits never taken": bench.run("confidence:top_prob=1"),
        "first exit taken": bench.run("confidence:top_prob=0"),
    }
    rows = list(bench.judged(cases, True))
    full, never, always = (row["seconds"] for row in rows)
    gain = never - always
    for row in rows:
        row["note"] = (
            f"break-even: {100 * (never - full) / gain:.0f} % of the tokens leave at the first exit"
            if gain > 0
            else "no gain at any rate"
        )
        yield row


def serving(bench: Bench) -> Iterator[Row]:
    """Sampling and streaming beside plain greedy decoding."""
    cases = {
        "greedy": bench.run("full"),
        "temperature 1": bench.run("full", sampling=SamplingParams(1.0)),
        "top-k 50, top-p 0.9": bench.run("full", sampling=SamplingParams(1.0, 50, 0.9)),
        "streaming": bench.run("full", on_token=lambda request, token: None),
    }
    timings = interleave(cases, bench.repeats)
    for name in cases:
        passes = bench.new_tokens - 1
        seconds = timings[name].each(decode_seconds)
        yield {
            "case": name,
            "seconds": sorted(seconds)[len(seconds) // 2] / passes,
            "low": min(seconds) / passes,
            "high": max(seconds) / passes,
            "speedup": timings.ratio("greedy", name, decode_seconds).median,
            "loaded": timings[name].loaded,
            "foreign_load": worst_load(timings[name]),
        }


def smaller(bench: Bench, models: dict[int, LLM]) -> Iterator[Row]:
    """Routed passes beside models that only have so many layers: what could be had by other means.

    models: by number of layers. speedup is of the route against the model of its depth.
    """
    cases = {}
    for layers, llm in models.items():
        cases[f"uniform:{layers}"] = bench.run(f"uniform:{layers}")
        other = Bench(llm, bench.batch, bench.new_tokens, bench.repeats)
        cases[f"{layers}-layer model"] = other.run("full")
    timings = interleave(cases, bench.repeats)
    passes = bench.new_tokens - 1
    for layers in models:
        for name in (f"uniform:{layers}", f"{layers}-layer model"):
            seconds = Spread.of(timings[name].each(decode_seconds))
            yield {
                "case": name,
                "seconds": seconds.median / passes,
                "low": seconds.p20 / passes,
                "high": seconds.p80 / passes,
                "speedup": timings.ratio(f"{layers}-layer model", name, decode_seconds).median,
                "loaded": timings[name].loaded,
                "foreign_load": worst_load(timings[name]),
            }


GROUPS = {
    "realisation": realisation,
    "mixed": mixed,
    "confidence": confidence,
    "serving": serving,
}
