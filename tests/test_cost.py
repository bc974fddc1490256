"""cost.py: times by rows, possible time, the measures, and the roofline counted by hand."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynkern import cost
from dynkern.cost import CostModel, LayerTimes, PartCost, PassCount

SECONDS = st.floats(0, 10, allow_nan=False)


@dataclass
class Shape:
    vocab_size: int = 7
    num_layers: int = 3
    hidden_size: int = 4
    ffn_size: int = 5
    embed_size: int = 4
    bias: bool = True
    norm_affine: bool = True
    final_norm: bool = True


# -- LayerTimes ----------------------------------------------------------------------------------


def test_layer_times_interpolate_between_measured_rows():
    tau = LayerTimes((1, 2, 8), (1.0, 1.5, 4.5))
    assert [tau(n) for n in (0, 1, 2, 5, 8)] == [0.0, 1.0, 1.5, 3.0, 4.5]


@pytest.mark.parametrize("n", [-1, 1, 9])
def test_layer_times_refuse_what_was_not_measured(n):
    with pytest.raises(ValueError, match=rf"^rows: got {n}, expected .* 2 to 8$"):
        LayerTimes((2, 8), (1.0, 2.0))(n)


@pytest.mark.parametrize(
    ("rows", "seconds", "message"),
    [
        ((), (), "rows: got"),
        ((0, 1), (0.0, 1.0), "rows: got"),
        ((2, 2), (1.0, 1.0), "rows: got"),
        ((1, 2), (1.0,), "seconds: got 1 for 2"),
        ((1,), (-1.0,), "seconds: got"),
        ((1,), (math.nan,), "seconds: got"),
    ],
)
def test_layer_times_refuse_bad_measurements(rows, seconds, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        LayerTimes(rows, seconds)


@given(st.lists(SECONDS, min_size=1, max_size=8))
def test_layer_times_are_the_nearest_monotone_series(seconds):
    times = LayerTimes(tuple(range(1, len(seconds) + 1)), tuple(seconds)).seconds

    def mean(a: int, b: int) -> float:
        return math.fsum(seconds[a : b + 1]) / (b + 1 - a)

    count = len(seconds)
    for i in range(count):
        # the min-max formula of isotonic regression
        fit = max(min(mean(a, b) for b in range(i, count)) for a in range(i + 1))
        assert times[i] == pytest.approx(fit, abs=1e-9)


@given(st.lists(SECONDS, min_size=2, max_size=6), st.data())
def test_layer_times_never_fall(seconds, data):
    rows = tuple(3 * i + 1 for i in range(len(seconds)))
    tau = LayerTimes(rows, tuple(seconds))
    a, b = sorted(data.draw(st.integers(rows[0], rows[-1])) for _ in range(2))
    assert tau(a) <= tau(b) + 1e-9


# -- possible time -------------------------------------------------------------------------------


def make_model(**parts) -> CostModel:
    rows = (1, 2, 4, 8)
    return CostModel(
        fixed=LayerTimes(rows, (10.0, 11.0, 13.0, 17.0)),
        layer=LayerTimes(rows, (1.0, 1.25, 2.0, 4.0)),
        **parts,
    )


def test_pass_time_adds_fixed_layers_fill_and_heads():
    fill = LayerTimes((1, 8), (0.25, 0.5))
    head = LayerTimes((1, 2, 4), (6.0, 7.0, 8.0))
    model = make_model(fill=fill, head=head)
    count = PassCount(rows=4, layer_rows=(4, 0, 2, 0), fill_rows=(0, 1, 0, 8), head_rows=6)
    # 13 fixed, 2 + 1.25 layers, 0.25 + 0.5 fill, one head call of 4 rows and one of 2
    assert model.pass_time(count) == 13 + 3.25 + 0.75 + 15
    assert model.possible_time([count, count]) == 2 * 32.0


def test_pass_time_takes_the_fixed_part_for_unmeasured_heads():
    count = PassCount(rows=2, layer_rows=(2,), head_rows=3)
    assert make_model().pass_time(count) == 11 + 1.25 + 11 + 10


def test_pass_time_refuses_unmeasured_fill():
    with pytest.raises(ValueError, match="^fill: not measured"):
        make_model().pass_time(PassCount(2, (2, 0), fill_rows=(0, 2)))


def test_full_depth_of_a_pass_fills_nothing():
    count = PassCount(4, (4, 0, 2), fill_rows=(0, 4, 2), head_rows=3, length=9.5)
    assert count.union == 2
    assert count.at_full_depth() == PassCount(4, (4, 4, 4), length=9.5)
    assert make_model().full_time([count]) == 13 + 3 * 2.0


@given(st.integers(1, 8), st.lists(st.integers(0, 8), min_size=1, max_size=5))
def test_skipping_never_costs_more_than_full_depth(rows, layer_rows):
    count = PassCount(rows, tuple(min(n, rows) for n in layer_rows))
    model = make_model()
    assert model.pass_time(count) <= model.full_time([count])


# -- measures ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("measured", "fraction"), [(40.0, 1.0), (100.0, 0.0), (70.0, 0.5), (130.0, -0.5), (34.0, 1.1)]
)
def test_saved_fraction(measured, fraction):
    assert cost.saved_fraction(100.0, measured, 40.0) == pytest.approx(fraction)


def test_saved_fraction_is_not_available_below_five_percent():
    assert cost.saved_fraction(100.0, 96.0, 95.1) is None
    assert cost.saved_fraction(100.0, 100.0, 120.0) is None
    assert cost.saved_fraction(100.0, 95.0, 95.0) == pytest.approx(1.0)


def test_ratios():
    assert cost.realisation(possible=3.0, measured=4.0) == 0.75
    assert cost.speedup(full=6.0, measured=4.0) == 1.5
    assert cost.roofline_efficiency(roofline=1.0, measured=4.0) == 0.25


def test_mixed_batch_is_reported_not_asserted():
    slow, fine = cost.mixed_batch(10.0, 10.3), cost.mixed_batch(10.0, 10.1)
    assert (slow.ratio, slow.within) == (pytest.approx(1.03), False)
    assert (fine.ratio, fine.within) == (pytest.approx(1.01), True)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_measures_refuse_times_that_are_none(bad):
    calls = {
        "possible": lambda: cost.realisation(bad, 1.0),
        "measured": lambda: cost.saved_fraction(1.0, bad, 1.0),
        "full": lambda: cost.speedup(bad, 1.0),
        "roofline": lambda: cost.roofline_efficiency(bad, 1.0),
        "bandwidth": lambda: cost.roofline_time([], bad, 1.0),
        "peak": lambda: cost.roofline_time([], 1.0, bad),
    }
    for name, call in calls.items():
        with pytest.raises(ValueError, match=f"^{name}: got"):
            call()


def test_expected_union_of_independent_rows():
    assert cost.expected_union(0.5, 8) == pytest.approx(0.99609375)
    assert cost.expected_union(0.25, 1) == 0.25
    assert cost.expected_union(0.5, 0) == 0.0
    with pytest.raises(ValueError, match="^keep: got 1.5"):
        cost.expected_union(1.5, 2)
    with pytest.raises(ValueError, match="^rows: got -1"):
        cost.expected_union(0.5, -1)


@given(st.integers(0, 6), st.integers(1, 5))
def test_expected_union_counts_outcomes(numerator, rows):
    keep = numerator / 6
    # every combination of rows running (1) or skipping (0), weighted by its probability
    total = 0.0
    for outcome in range(1, 2**rows):
        running = outcome.bit_count()
        total += keep**running * (1 - keep) ** (rows - running)
    assert cost.expected_union(keep, rows) == pytest.approx(total)


# -- roofline ------------------------------------------------------------------------------------


class Tally:
    """Counts a pass step by step: which weights were touched, what moved, what was computed."""

    def __init__(self) -> None:
        self.weights: dict[str, set[tuple]] = {}
        self.kv: dict[str, float] = {}
        self.flops: dict[str, float] = {}

    def linear(self, part: str, name: str, n_out: int, n_in: int, bias: bool, first: int = 0):
        touched = self.weights.setdefault(part, set())
        for o in range(first, n_out):
            for i in range(n_in):
                touched.add((name, o, i))
                self.flops[part] = self.flops.get(part, 0) + 2
            if bias:
                touched.add((name, "bias", o))

    def vector(self, part: str, name: str, size: int) -> None:
        self.weights.setdefault(part, set()).update((name, i) for i in range(size))

    def cost(self, part: str, weight_bytes: float, kv_bytes: float) -> PartCost:
        moved = len(self.weights.get(part, ())) * weight_bytes + self.kv.get(part, 0) * kv_bytes
        return PartCost(part, moved, self.flops.get(part, 0))


def count_by_loops(s: Shape, count: PassCount) -> Tally:
    t, d, e = Tally(), s.hidden_size, s.embed_size

    def norm(part: str, name: str) -> None:
        if s.norm_affine:
            t.vector(part, f"{name} weight", d)
            t.vector(part, f"{name} bias", d)

    def head(part: str, call: int) -> None:
        if s.final_norm:
            norm(part, f"final norm, call {call}")
        if e != d:
            t.linear(part, f"project out, call {call}", e, d, bias=False)
        t.linear(part, f"head, call {call}", s.vocab_size, e, bias=False)

    for row in range(count.rows):
        t.vector("embedding", f"token of row {row}", e)
        t.vector("embedding", f"position of row {row}", d)
        if e != d:
            t.linear("embedding", "project in", d, e, bias=False)
        head("head", 0)
    for layer in range(s.num_layers):
        linears, attention = f"layer {layer} linears", f"layer {layer} attention"
        for _ in range(count.layer_rows[layer]):
            norm(linears, "attention norm")
            norm(linears, "ffn norm")
            t.linear(linears, "qkv", 3 * d, d, s.bias)
            t.linear(linears, "out", d, d, s.bias)
            t.linear(linears, "fc1", s.ffn_size, d, s.bias)
            t.linear(linears, "fc2", d, s.ffn_size, s.bias)
            for _ in range(int(count.length) + 1):  # entries read, and the one written
                for _ in range(2 * d):  # elements of a key, then of a value
                    t.kv[attention] = t.kv.get(attention, 0) + 1
                    t.flops[attention] = t.flops.get(attention, 0) + 2
        for _ in range(count.fill_rows[layer] if count.fill_rows else 0):
            norm(linears, "attention norm")
            t.linear(linears, "qkv", 3 * d, d, s.bias, first=d)
            t.kv[linears] = t.kv.get(linears, 0) + 2 * d
    for row in range(count.head_rows):
        head("exit heads", row // count.rows)
    return t


SHAPES = st.builds(
    Shape,
    vocab_size=st.integers(1, 6),
    num_layers=st.just(3),
    hidden_size=st.integers(1, 4),
    ffn_size=st.integers(1, 5),
    embed_size=st.integers(1, 4),
    bias=st.booleans(),
    norm_affine=st.booleans(),
    final_norm=st.booleans(),
)


@given(SHAPES, st.integers(1, 3), st.integers(0, 4), st.integers(0, 5), st.data())
def test_part_costs_equal_a_count_by_loops(shape, rows, length, head_rows, data):
    layer_rows = tuple(data.draw(st.integers(0, rows)) for _ in range(3))
    fills = tuple(data.draw(st.integers(0, rows - n)) for n in layer_rows)
    fill_rows = fills if data.draw(st.booleans()) else ()
    count = PassCount(rows, layer_rows, fill_rows, head_rows, float(length))
    tally = count_by_loops(shape, count)
    parts = cost.part_costs(shape, count, weight_bytes=2, kv_bytes=4)
    assert parts == [tally.cost(part.name, 2, 4) for part in parts]
    everything = {*tally.weights, *tally.kv, *tally.flops}
    assert everything <= {part.name for part in parts}


def test_weights_are_read_once_however_many_rows_run():
    shape = Shape(hidden_size=64, ffn_size=256)
    one, eight = (cost.part_costs(shape, PassCount(n, (n, 0, n)), 2.0, 2.0)[1] for n in (1, 8))
    assert one.bytes == eight.bytes == (12 * 64**2 + 13 * 64) * 2.0
    assert eight.flops == 8 * one.flops


def test_roofline_takes_the_slower_limit_part_by_part():
    parts = [PartCost("streamed", 100.0, 1.0), PartCost("computed", 1.0, 300.0)]
    assert cost.roofline_time(parts, bandwidth=10.0, peak=100.0) == 10.0 + 3.0


def test_roofline_of_passes_sums_them():
    shape, counts = Shape(), [PassCount(2, (2, 0, 1), length=3.0), PassCount(1, (1, 1, 1))]
    together = cost.roofline_of_passes(shape, counts, 4, 4, 50.0, 70.0)
    apart = [cost.roofline_time(cost.part_costs(shape, c, 4, 4), 50.0, 70.0) for c in counts]
    assert together == pytest.approx(sum(apart))


def test_part_costs_refuse_counts_of_another_model():
    with pytest.raises(ValueError, match="^layer_rows: got 2 layers, expected 3"):
        cost.part_costs(Shape(), PassCount(1, (1, 1)), 4, 4)
    with pytest.raises(ValueError, match="^fill_rows: got 1 layers, expected 3"):
        cost.part_costs(Shape(), PassCount(1, (1, 1, 1), fill_rows=(1,)), 4, 4)


def test_cost_imports_no_torch():
    code = "import sys, dynkern.cost; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
