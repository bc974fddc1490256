"""judge(): runs and parts of the same rounds, on engines whose cost is known."""

from __future__ import annotations

import pytest

from dynkern.cost import PassCount
from dynkern.evaluation.calibration import Calibration
from dynkern.evaluation.judgement import Judgement, judge
from dynkern.evaluation.timing import interleave
from dynkern.runtime.request import RunResult, RunStats
from support.machine import FakeEngine, FakeMachine

LAYERS, ROWS = 12, 8
FULL = PassCount(ROWS, (ROWS,) * LAYERS)
HALF = PassCount(ROWS, (ROWS,) * 6 + (0,) * 6)
MOST = PassCount(ROWS, (ROWS,) * 12)


def judged(engine: FakeEngine, count: PassCount, repeats: int = 3) -> Judgement:
    def case(passes: PassCount):
        def run() -> RunResult:
            began = engine.machine.clock()
            engine.run(*[passes] * 5)
            seconds = engine.machine.clock() - began
            return RunResult([], RunStats(seconds_decode=seconds, passes=[passes] * 5))

        return run

    calibration = Calibration(engine, [1, ROWS])
    cases = {**calibration.cases, "full": case(FULL), "routed": case(count)}
    timings = interleave(cases, repeats, **engine.machine.options)
    return judge(timings, calibration, "routed", "full")


def test_an_ideal_engine_realises_all():
    seen = judged(FakeEngine(FakeMachine()), HALF)
    assert seen.realisation == pytest.approx(1.0)
    assert seen.saved_fraction == pytest.approx(1.0)
    assert seen.speedup.median == pytest.approx(seen.predicted_speedup)


def test_masking_saves_nothing_though_speed_drifts():
    machine = FakeMachine(slowness=lambda now: 1.0 + 0.4 * (now // 20 % 2))
    seen = judged(FakeEngine(machine, masks=True), HALF, repeats=5)
    assert seen.speedup.median == pytest.approx(1.0, abs=0.01)
    assert seen.saved_fraction == pytest.approx(0.0, abs=0.02)


def test_a_drift_between_rounds_cancels():
    # every round takes about 10 s; the machine is half as fast in each second one
    machine = FakeMachine(slowness=lambda now: 2.0 if int(now // 15) % 2 else 1.0)
    seen = judged(FakeEngine(machine), HALF, repeats=9)
    assert seen.realisation == pytest.approx(1.0, abs=0.02)
    assert seen.seconds.high > 1.5 * seen.seconds.low


def test_nothing_to_save_is_not_available():
    assert judged(FakeEngine(FakeMachine()), MOST).saved_fraction is None
