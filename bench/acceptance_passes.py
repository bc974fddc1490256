"""Decode passes of GPU acceptance: beside their possible time, and other ways to run them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from dynkern.cost import roofline_efficiency, roofline_of_passes
from dynkern.evaluation.calibration import Calibration
from dynkern.evaluation.judgement import judge
from dynkern.evaluation.peaks import Peaks
from dynkern.evaluation.probe import EngineProbe
from dynkern.evaluation.timing import Spread, interleave
from dynkern.policies import policy
from dynkern.runtime.engine import Engine, RunOptions
from dynkern.runtime.request import Request, RunResult

PROMPT_TOKENS = 64


def random_prompts(engine: Engine, rows: int) -> list[tuple[int, ...]]:
    """Fresh prompts without special tokens."""
    drawn = torch.randint(4, engine.spec.vocab_size, (rows, PROMPT_TOKENS)).tolist()
    return [tuple(prompt) for prompt in drawn]


def decode_run(
    engine: Engine, specs: str | Sequence[str], rows: int, new_tokens: int
) -> Callable[[], RunResult]:
    """A run of `rows` rows that all pick new_tokens tokens."""
    made: dict[str, Any] = {}
    each = [specs] * rows if isinstance(specs, str) else specs
    requests = [
        Request(
            i,
            prompt,
            made.setdefault(spec, policy(spec)),
            new_tokens,
            frozenset([2]),
            force_length=True,
        )
        for i, (prompt, spec) in enumerate(zip(random_prompts(engine, rows), each, strict=True))
    ]
    return lambda: engine.run(requests, RunOptions(batch_size=rows))


def planned_cases(num_layers: int) -> dict[str, str]:
    """Nested routes at three quarters, half and a quarter of the layers."""
    budgets = [max(1, num_layers * k // 4) for k in (3, 2, 1)]
    return {f"uniform:{budget}": f"uniform:{budget}" for budget in budgets}


def mixed_cases(num_layers: int, rows: int) -> dict[str, list[str]]:
    """Rows of one batch that run different layers: random ones, and budgets spread over 1..L."""
    half = max(1, num_layers // 2)
    spread = [f"uniform:{1 + i * num_layers // rows}" for i in range(rows)]
    return {f"random:{half}": [f"random:{half}"] * rows, "uniform:1..L": spread}


def token_cases(num_layers: int) -> dict[str, str]:
    """Policies that decide on the device: drawn, and exits that nobody or everybody takes."""
    half, first = max(1, num_layers // 2), max(0, num_layers // 3 - 1)
    return {
        f"random-step:{half}": f"random-step:{half}",
        "stochastic:0.5": "stochastic:0.5",
        "confidence, none leaves": f"confidence:top_prob=1.0,exits={first}+{half}",
        "confidence, all leave": f"confidence:top_prob=0.0,exits={first}+{half}",
    }


def measure_passes(
    engine: Engine,
    cases: dict[str, Any],
    rows: int,
    new_tokens: int,
    repeats: int,
    peaks: Peaks,
    with_fill: bool = False,
    **timing: Any,
) -> list[dict[str, Any]]:
    """A row for full depth and for each case, beside its possible time in the same rounds."""
    cases = {"full": "full", **cases}
    counts = sorted({1, rows, *(n for n in (4, 16, 64, 256) if n < rows)})
    probe = EngineProbe(engine, [PROMPT_TOKENS + new_tokens // 2], with_fill)
    calibration = Calibration(probe, counts)
    runs = {name: decode_run(engine, specs, rows, new_tokens) for name, specs in cases.items()}
    timings = interleave({**calibration.cases, **runs}, repeats, **timing)
    element = engine.weights.token_embedding.element_size()
    found = []
    for name in cases:
        passes = timings[name].values[-1][-1].stats.passes
        judged = judge(timings, calibration, name, "full")
        seconds = judged.seconds
        roofline = roofline_of_passes(
            engine.spec, passes, element, element, peaks.bandwidth, peaks.flops
        )
        found.append(
            {
                "case": f"decode {name}",
                "engine": engine.executor.name,
                "rows": rows,
                "seconds": seconds.median / len(passes),
                "p20": seconds.p20 / len(passes),
                "p80": seconds.p80 / len(passes),
                "speedup": judged.speedup.median,
                "realisation": judged.realisation,
                "roofline_efficiency": roofline_efficiency(roofline, seconds.median),
                "loaded": bool(timings.loaded),
            }
        )
    return found


def seconds_per_pass(run: Callable[[], RunResult]) -> Callable[[], float]:
    """A run, to its seconds for each decode pass."""

    def timed() -> float:
        stats = run().stats
        return stats.seconds_decode / len(stats.passes)

    return timed


def compare(
    name: str, rows: int, ways: dict[str, Callable[[], float]], repeats: int, **timing: Any
) -> list[dict[str, Any]]:
    """A row for each way to run the same passes, in turn; speedup: the last way's over this one's.

    ways: by engine name, each handing back seconds per pass; the last is the yardstick.
    timing: options of `interleave`.
    """
    timings = interleave(ways, repeats, **timing)
    spreads = {way: Spread.of(timings[way].each(float)) for way in ways}
    yardstick = list(spreads.values())[-1].median
    return [
        {
            "case": name,
            "engine": way,
            "rows": rows,
            "seconds": spread.median,
            "p20": spread.p20,
            "p80": spread.p80,
            "speedup": yardstick / spread.median,
            "loaded": bool(timings.loaded),
        }
        for way, spread in spreads.items()
    ]
