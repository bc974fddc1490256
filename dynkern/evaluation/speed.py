"""The timing pass: policies interleaved, against own full depth, beside their possible time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dynkern.cost import roofline_efficiency, roofline_of_passes
from dynkern.evaluation.calibration import Calibration
from dynkern.evaluation.judgement import judge
from dynkern.evaluation.measured_cost import counts_up_to
from dynkern.evaluation.peaks import PeakMemory, Peaks, measure_peaks
from dynkern.evaluation.probe import EngineProbe
from dynkern.evaluation.timing import Spread, Timings, interleave
from dynkern.llm import LLM
from dynkern.policies import is_planned
from dynkern.runtime.executors.kv_fill import DEFERRED_TOKENS
from dynkern.runtime.request import Policy, RunResult

Report = Callable[[int, int, str], None]


@dataclass(frozen=True)
class TimingPlan:
    """What is timed. prompts: ids, natural lengths; the first batch_size of them also at forced
    equal lengths, where the decode speed-up is read. run: keyword arguments of LLM.run.
    """

    prompts: Sequence[Sequence[int]]
    policies: dict[str, Policy]
    batch_size: int
    max_new_tokens: int
    repeats: int
    run: dict[str, Any]

    @property
    def forced_prompts(self) -> list[Sequence[int]]:
        """One batch for the runs of forced length."""
        return list(self.prompts[: self.batch_size])


@dataclass(frozen=True)
class SpeedReport:
    """columns: the timing columns of results.json for each policy; stamp: how they were made."""

    columns: dict[str, dict[str, Any]]
    stamp: dict[str, Any]


def measure_speed(llm: LLM, plan: TimingPlan, report: Report) -> SpeedReport:
    """Time every policy of the plan; "full" must be among them. The engine keeps the cost model
    that comes of it. report(done, total, label).
    """
    peaks = measure_peaks(llm.weight_bytes, llm.engine.weights.dtype, llm.device, progress=report)
    calibration = _calibration(llm, plan)
    memory: dict[str, int | None] = {}
    forced = interleave(
        {**calibration.cases, **{spec: _forced(llm, plan, spec) for spec in plan.policies}},
        plan.repeats,
        progress=report,
    )
    model = calibration.model(forced)
    # from here on, and after this pass, schedules are chosen by it
    llm.engine.cost_model = model
    natural = interleave(
        {spec: _natural(llm, plan, spec, memory) for spec in plan.policies},
        plan.repeats,
        progress=report,
    )
    columns = {
        spec: {
            **_natural_columns(natural, spec),
            **_decode_columns(llm, forced, spec, calibration, peaks),
            "peak_memory_bytes": memory[spec],
            "loaded": natural[spec].loaded or forced[spec].loaded or model.loaded,
        }
        for spec in plan.policies
    }
    stamp = {
        "natural": natural.stamp(),
        "forced": forced.stamp(),
        "timed_prompts": len(plan.prompts),
        "forced_rows": len(plan.forced_prompts),
        "peaks": asdict(peaks),
        "cost_model": asdict(model),
    }
    return SpeedReport(columns, stamp)


def _natural(
    llm: LLM, plan: TimingPlan, spec: str, memory: dict[str, int | None]
) -> Callable[[], RunResult]:
    def run() -> RunResult:
        with PeakMemory(llm.device) as peak:
            result = llm.run(
                plan.prompts,
                plan.policies[spec],
                max_new_tokens=plan.max_new_tokens,
                batch_size=plan.batch_size,
                **plan.run,
            )
        memory[spec] = None if peak.bytes is None else max(peak.bytes, memory.get(spec) or 0)
        return result

    return run


def _forced(llm: LLM, plan: TimingPlan, spec: str) -> Callable[[], RunResult]:
    return lambda: llm.run(
        plan.forced_prompts,
        plan.policies[spec],
        max_new_tokens=plan.max_new_tokens,
        batch_size=plan.batch_size,
        force_length=True,
        **plan.run,
    )


def _calibration(llm: LLM, plan: TimingPlan) -> Calibration:
    rows = len(plan.forced_prompts)
    counts = counts_up_to(rows)
    middle = plan.max_new_tokens // 2
    lengths = [len(prompt) + middle for prompt in plan.forced_prompts]
    fills = plan.run.get("kv_fill") in ("project", "deferred")
    fills = fills and not all(is_planned(policy) for policy in plan.policies.values())
    fill_counts = None
    if fills and plan.run["kv_fill"] == "deferred":
        fill_counts = [*counts, rows * DEFERRED_TOKENS]
    probe = EngineProbe.after(llm.engine, plan.forced_prompts, middle, with_fill=fills)
    length = sum(lengths) / len(lengths)
    return Calibration(probe, counts, fill_row_counts=fill_counts, length=length)


def _natural_columns(timings: Timings[RunResult], spec: str) -> dict[str, Any]:
    case = timings[spec]
    gain = timings.ratio("full", spec)
    seconds = case.spread.median
    return {
        "seconds": seconds,
        "seconds_spread": [case.spread.low, case.spread.high],
        "seconds_prefill": Spread.of(case.each(lambda r: r.stats.seconds_prefill)).median,
        "seconds_decode": Spread.of(case.each(lambda r: r.stats.seconds_decode)).median,
        "tokens_per_second": case.values[-1][-1].stats.new_tokens / seconds,
        "speedup": gain.median,
        "speedup_spread": [gain.low, gain.high],
    }


def _decode_columns(
    llm: LLM, timings: Timings[Any], spec: str, calibration: Calibration, peaks: Peaks
) -> dict[str, Any]:
    passes = timings[spec].values[-1][-1].stats.passes
    if not passes:
        return {}
    judged = judge(timings, calibration, spec, "full")
    weights = llm.engine.weights
    roofline = roofline_of_passes(
        llm.spec,
        passes,
        weights.element_size,
        weights.dtype.itemsize,
        peaks.bandwidth,
        peaks.flops,
    )
    return {
        "speedup_decode": judged.speedup.median,
        "speedup_decode_spread": [judged.speedup.low, judged.speedup.high],
        "predicted_speedup": judged.predicted_speedup,
        "realisation": judged.realisation,
        "saved_fraction": judged.saved_fraction,
        "roofline_efficiency": roofline_efficiency(roofline, judged.seconds.median),
    }
