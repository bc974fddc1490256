"""The measures judge engines whose cost is known: calibrate, time, score."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynkern import cost
from dynkern.cost import PassCount
from dynkern.evaluation.calibration import calibrate
from dynkern.evaluation.timing import Timings, interleave
from support.machine import FakeEngine, FakeMachine

ROWS = (1, 2, 4, 8)
LAYERS = 12


@dataclass
class Verdict:
    speedup: float
    predicted: float
    realisation: float
    saved: float | None
    timings: Timings


def judge(engine: FakeEngine, passes: list[PassCount]) -> Verdict:
    options = engine.machine.options
    model = calibrate(engine, ROWS, repeats=3, **options)
    full = [count.at_full_depth() for count in passes]
    timings = interleave(
        {"full": lambda: engine.run(*full), "routed": lambda: engine.run(*passes)}, **options
    )
    t_full, t = timings["full"].spread.median, timings["routed"].spread.median
    possible = model.possible_time(passes)
    return Verdict(
        timings.ratio("full", "routed").median,
        cost.speedup(t_full, possible),
        cost.realisation(possible, t),
        cost.saved_fraction(t_full, t, possible),
        timings,
    )


def routed(rows: int = 8, kept: int = 6) -> PassCount:
    return PassCount(rows, tuple(rows if layer < kept else 0 for layer in range(LAYERS)))


MIXED = [routed(), PassCount(8, (8, 4, 1, 0, 3, 7, 0, 0, 2, 6, 5, 8)), routed(2, 3)]


def test_calibration_recovers_the_parts():
    engine = FakeEngine(FakeMachine())
    model = calibrate(engine, ROWS, length=96.0, **engine.machine.options)
    for n in range(1, 9):
        assert model.fixed(n) == pytest.approx(engine.fixed(n))
        assert model.layer(n) == pytest.approx(engine.layer(n))
        assert model.fill(n) == pytest.approx(engine.fill(n))
    assert (model.length, model.loaded, model.metered) == (96.0, False, True)
    with pytest.raises(ValueError, match="^rows: got 9"):
        model.layer(9)


def test_calibration_without_fill_and_with_counts_of_its_own():
    engine = FakeEngine(FakeMachine())
    options = engine.machine.options
    assert calibrate(engine, [8, 1, 8], fill_row_counts=[3, 128], **options).fill.rows == (3, 128)
    engine.kv_fill_part = None
    model = calibrate(engine, [8, 1, 8], **options)
    assert model.fill is None and model.layer.rows == (1, 8)


def test_calibration_under_load_is_stamped():
    engine = FakeEngine(FakeMachine(foreign=lambda now: 1.0))
    assert calibrate(engine, [1], **engine.machine.options).loaded


def test_calibration_never_finds_negative_layers():
    class HeadOnly(FakeEngine):
        def full_pass(self, n_rows: int) -> None:
            self.machine.work(0.9 * self.fixed(n_rows))

    engine = HeadOnly(FakeMachine())
    assert calibrate(engine, [1, 2], **engine.machine.options).layer.seconds == (0.0, 0.0)


@pytest.mark.parametrize("counts", [[], [0, 1], [-2]])
def test_calibration_refuses_bad_row_counts(counts):
    with pytest.raises(ValueError, match="^row_counts: got"):
        calibrate(FakeEngine(FakeMachine()), counts)


def test_ideal_engine_realises_and_saves_everything():
    verdict = judge(FakeEngine(FakeMachine()), MIXED)
    assert verdict.realisation == pytest.approx(1.0)
    assert verdict.saved == pytest.approx(1.0)
    assert verdict.speedup == pytest.approx(verdict.predicted)
    assert verdict.speedup > 1.3


def test_engine_that_computes_everything_and_masks_saves_nothing():
    verdict = judge(FakeEngine(FakeMachine(), masks=True), MIXED)
    assert verdict.saved == pytest.approx(0.0, abs=1e-9)
    assert verdict.speedup == pytest.approx(1.0)
    # what was possible is known all the same, since tau never comes from a routed pass
    assert verdict.predicted > 1.3
    assert verdict.realisation == pytest.approx(1 / verdict.predicted)


@given(st.integers(0, 11), st.floats(0.0, 2.0))
def test_overhead_per_skipped_layer_lands_where_arithmetic_says(kept, share):
    engine = FakeEngine(FakeMachine(), LAYERS)
    tau = engine.layer(8)
    engine.overhead = share * tau
    verdict = judge(engine, [routed(8, kept)])
    skipped = LAYERS - kept
    possible = engine.fixed(8) + kept * tau
    assert verdict.realisation == pytest.approx(possible / (possible + skipped * share * tau))
    assert verdict.saved == pytest.approx(1 - share, abs=1e-9)


def test_slow_full_depth_shows_in_roofline_efficiency_alone():
    @dataclass
    class Shape:
        vocab_size: int = 1000
        num_layers: int = LAYERS
        hidden_size: int = 64
        ffn_size: int = 256
        embed_size: int = 64
        bias: bool = True
        norm_affine: bool = True
        final_norm: bool = True

    def efficiencies(verdict: Verdict) -> tuple[float, float]:
        cases = {"full": routed(8, LAYERS), "routed": routed(8, 4)}
        return tuple(
            cost.roofline_efficiency(
                cost.roofline_of_passes(Shape(), [count], 4, 4, 10e6, 1e12),
                verdict.timings[name].spread.median,
            )
            for name, count in cases.items()
        )

    fast = judge(FakeEngine(FakeMachine()), [routed(8, 4)])
    slow = judge(FakeEngine(FakeMachine(), factor=10.0), [routed(8, 4)])
    for name in ("speedup", "predicted", "realisation", "saved"):
        assert getattr(slow, name) == pytest.approx(getattr(fast, name))
    assert slow.speedup > 2
    assert efficiencies(slow) == pytest.approx([e / 10 for e in efficiencies(fast)])
    assert max(efficiencies(slow)) < 0.1


def test_too_little_to_save_is_not_judged():
    # the first pass skips one row in one layer, the second nothing
    for layer_rows in ((7,) + (8,) * 11, (8,) * 12):
        verdict = judge(FakeEngine(FakeMachine()), [PassCount(8, layer_rows)])
        assert verdict.saved is None
        assert verdict.realisation == pytest.approx(1.0)


def test_fill_belongs_to_the_possible_time():
    count = PassCount(8, (8,) * 6 + (0,) * 6, fill_rows=(0,) * 6 + (8,) * 6)
    verdict = judge(FakeEngine(FakeMachine()), [count])
    bare = judge(FakeEngine(FakeMachine()), [routed(8, 6)])
    assert verdict.realisation == pytest.approx(1.0) and verdict.saved == pytest.approx(1.0)
    assert verdict.predicted < bare.predicted


def test_slow_drift_of_the_machine_hardly_moves_the_verdict():
    drifting = FakeMachine(slowness=lambda now: 1 + now / 200)
    verdict, calm = judge(FakeEngine(drifting), MIXED), judge(FakeEngine(FakeMachine()), MIXED)
    assert drifting.slowness(drifting.now) > 1.03
    assert verdict.speedup == pytest.approx(calm.speedup, rel=0.01)


def test_mixed_batch_beside_full_depth():
    engine = FakeEngine(FakeMachine(), overhead=0.05)
    verdict = judge(engine, [routed(8, 6)])
    full, mixed = (verdict.timings[name].spread.median for name in ("full", "routed"))
    report = cost.mixed_batch(full, mixed)
    assert report.ratio > 1.02 and not report.within
    assert verdict.saved < 0
