"""`pytest bench/ops --benchmark-only`: pytest-benchmark keeps, compares and prints what the suite's
own clock measures.

pytest-benchmark times one test after the other, with the host's clock. A contest needs more: its
contestants in turn, so that drift cancels; load that is metered; the GPU's events. So a case is
measured once, and each test's clock is moved on by what its contestant took, round by round.
`--benchmark-disable` checks results and times nothing.
"""

from __future__ import annotations

import pytest


class MeasuredClock:
    """A clock that stands still but for `advance`."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


CLOCK = MeasuredClock()


@pytest.mark.benchmark(timer=CLOCK)
def test_op(benchmark, contests, spec, device, contestant):
    benchmark.group = str(spec)
    contest = contests.of(spec, device)
    if contest is None:
        pytest.skip(f"left out: {contests.suite.left_out[str(spec)]}")
    outcome = contest.outcomes.get(contestant)
    if outcome is None:
        pytest.skip(f"{contestant} does not run this case here")
    assert not outcome.fault, f"not timed: {outcome.fault}"
    clock = contests.suite.clock
    assert len(outcome.seconds) == (clock.repeats if clock else 0)
    benchmark.extra_info |= contests.rows.get(contestant, {})
    rounds = iter(outcome.seconds or [0.0])
    benchmark.pedantic(lambda: CLOCK.advance(next(rounds)), rounds=max(1, len(outcome.seconds)))
