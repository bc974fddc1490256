"""Interleaving and load rejection on a fake clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynkern.evaluation.load_meter import LoadMeter, LoadReading, read_load
from dynkern.evaluation.timing import MIN_WINDOW, Spread, interleave
from support.machine import FakeMachine


def busy_between(start: float, end: float, cores: float = 0.5):
    return lambda now: cores if start <= now < end else 0.0


def recorder(machine: FakeMachine, log: list[str], name: str, seconds: float):
    def case() -> float:
        log.append(name)
        machine.work(seconds)
        return seconds / 4

    return case


# -- load ----------------------------------------------------------------------------------------


def test_load_meter_tells_own_foreign_and_stolen_cores_apart():
    machine = FakeMachine(foreign=lambda now: 0.25, stolen=lambda now: 0.125)
    with LoadMeter(**machine.options) as meter:
        machine.work(2.0)
        assert meter.elapsed() == 2.0
    load = meter.load
    assert (load.seconds, load.own, load.foreign, load.steal) == (2.0, 1.0, 0.25, 0.125)
    assert load.metered and load.worst == 0.25


@pytest.mark.parametrize("busy", [None, 7.0])
def test_load_meter_says_where_it_cannot_see(busy):
    # None: no /proc/stat; a constant: a sandbox's frozen one
    machine = FakeMachine()
    with LoadMeter(machine.clock, lambda: LoadReading(machine.own, busy, busy)) as meter:
        machine.work(1.0)
    assert (meter.load.foreign, meter.load.steal, meter.load.metered) == (None, None, False)
    assert meter.load.own == 1.0


def test_read_load_counts_upwards():
    first = read_load()
    sum(i * i for i in range(200_000))
    second = read_load()
    assert second.own > first.own
    if first.busy is not None:
        assert second.busy >= first.busy and second.steal >= first.steal


def test_read_load_without_proc_stat(monkeypatch):
    def missing(*args, **kwargs):
        raise FileNotFoundError

    monkeypatch.setattr("builtins.open", missing)
    reading = read_load()
    assert reading.own > 0 and reading.busy is None and reading.steal is None


# -- order and windows ---------------------------------------------------------------------------


def test_cases_take_turns_after_one_warm_up_each():
    machine, log = FakeMachine(), []
    cases = {name: recorder(machine, log, name, 1.0) for name in "AB"}
    timings = interleave(cases, repeats=3, **machine.options)
    assert "".join(log) == "AB" + "ABABAB"
    assert timings["A"].seconds == (1.0, 1.0, 1.0)
    assert timings["B"].values == ((0.25,), (0.25,), (0.25,))
    assert timings.stamp() == {"load": "metered", "loaded": [], "rejected": 0}


def test_short_cases_share_a_window_long_enough_to_meter():
    machine, log = FakeMachine(), []
    seconds = {"A": 0.0625, "B": 0.03125, "C": 0.03125}
    cases = {name: recorder(machine, log, name, s) for name, s in seconds.items()}
    labels: list[str] = []
    timings = interleave(
        cases, repeats=2, progress=lambda *step: labels.append(step[2]), **machine.options
    )
    assert "".join(log) == "ABC" + "ABC" * 4 * 2
    assert labels[3:] == [f"A and 2 more: round {r} of 2" for r in (1, 2)] + ["done"]
    for name, s in seconds.items():
        assert timings[name].seconds == (s, s)
        assert [load.seconds for load in timings[name].loads] == [MIN_WINDOW] * 2


@given(st.lists(st.floats(0.001, 2.0), min_size=1, max_size=8))
def test_every_window_is_long_enough(durations):
    machine, log = FakeMachine(), []
    cases = {f"{i}": recorder(machine, log, f"{i} ", s) for i, s in enumerate(durations)}
    timings = interleave(cases, repeats=1, **machine.options)
    for i, s in enumerate(durations):
        case = timings[f"{i}"]
        assert case.loads[0].seconds >= MIN_WINDOW
        assert case.seconds[0] == pytest.approx(s)
        assert case.each(lambda value: value)[0] == pytest.approx(s / 4)


def test_a_short_case_at_the_end_shares_the_window_before_it():
    machine, log = FakeMachine(), []
    cases = {name: recorder(machine, log, name, s) for name, s in [("A", 1.0), ("B", 0.125)]}
    timings = interleave(cases, repeats=2, **machine.options)
    assert "".join(log) == "AB" * 3
    assert timings["A"].loads[0].seconds == timings["B"].loads[0].seconds == 1.125


def test_a_slow_warm_up_does_not_shorten_the_window():
    machine = FakeMachine(slowness=lambda now: 1000.0 if now == 0 else 1.0)
    timings = interleave({"A": lambda: machine.work(0.01)}, repeats=1, **machine.options)
    assert timings["A"].loads[0].seconds >= MIN_WINDOW
    assert timings["A"].seconds[0] == pytest.approx(0.01)


# -- rejection -----------------------------------------------------------------------------------


def test_loaded_runs_are_rejected_counted_and_repeated():
    # warm-ups end at 2; A's first run, from 2 to 3, is disturbed
    machine, log = FakeMachine(foreign=busy_between(2, 3)), []
    cases = {name: recorder(machine, log, name, 1.0) for name in "AB"}
    timings = interleave(cases, repeats=2, **machine.options)
    assert "".join(log) == "AB" + "AAB" + "AB"
    assert (timings["A"].rejected, timings["B"].rejected, timings.rejected) == (1, 0, 1)
    assert timings.loaded == [] and timings["A"].seconds == (1.0, 1.0)
    assert all(load.foreign == 0 for load in timings["A"].loads)


def test_steal_is_rejected_like_foreign_load():
    machine, log = FakeMachine(stolen=busy_between(1, 3, cores=0.2)), []
    timings = interleave({"A": recorder(machine, log, "A", 1.0)}, repeats=2, **machine.options)
    assert timings.rejected == 2 and timings.loaded == [] and len(log) == 1 + 2 + 2


def test_load_at_the_limit_is_accepted():
    machine = FakeMachine(foreign=lambda now: 0.125)
    timings = interleave({"A": lambda: machine.work(1.0)}, limit=0.125, **machine.options)
    assert timings.rejected == 0 and timings.loaded == []


def test_at_the_bound_the_least_loaded_run_is_kept_and_stamped():
    loads = {1.0: 0.9, 2.0: 0.3, 3.0: 0.7}
    machine = FakeMachine(foreign=lambda now: loads.get(now, 0.5))
    cases = {"A": lambda: machine.work(1.0)}
    timings = interleave(cases, repeats=2, max_rejections=2, **machine.options)
    assert [load.foreign for load in timings["A"].loads] == pytest.approx([0.3, 0.5])
    # the bound holds for all rounds together: the second round had no repeat left
    assert timings["A"].rejected == 2 and timings["A"].loaded
    assert timings.stamp() == {"load": "metered", "loaded": ["A"], "rejected": 2}
    assert machine.now == 1 + 3 + 1


def test_only_the_disturbed_case_is_stamped():
    # warm-ups end at 2; B's first run is from 3 to 4
    machine = FakeMachine(foreign=busy_between(3, 4))
    cases = {"A": lambda: machine.work(1.0), "B": lambda: machine.work(1.0)}
    timings = interleave(cases, repeats=2, max_rejections=0, **machine.options)
    assert timings.loaded == ["B"] and timings.rejected == 0


def test_cases_in_one_window_are_rejected_together():
    machine, log = FakeMachine(foreign=busy_between(0.125, 0.5)), []
    cases = {name: recorder(machine, log, name, 0.0625) for name in "AB"}
    timings = interleave(cases, repeats=1, **machine.options)
    assert timings["A"].rejected == timings["B"].rejected == 1
    assert "".join(log) == "AB" + "AB" * 4 * 2


def test_unmetered_runs_are_kept_and_stamped():
    machine = FakeMachine(foreign=lambda now: 5.0)
    timings = interleave(
        {"A": lambda: machine.work(1.0)},
        clock=machine.clock,
        read=lambda: LoadReading(machine.own, None, None),
    )
    assert timings.stamp() == {"load": "load not metered", "loaded": [], "rejected": 0}


# -- spread and ratios ---------------------------------------------------------------------------


def test_ratios_are_formed_within_a_round_so_that_drift_cancels():
    # every round is slower than the one before
    machine = FakeMachine()
    rounds = {"count": 0}

    def first() -> None:
        rounds["count"] += 1
        machine.work(3.0)

    machine.slowness = lambda now: 1 + rounds["count"] / 3
    timings = interleave({"A": first, "B": lambda: machine.work(1.0)}, repeats=5, **machine.options)
    assert timings["A"].spread.high > 1.5 * timings["A"].spread.low
    ratio = timings.ratio("A", "B")
    assert (ratio.low, ratio.median, ratio.high) == pytest.approx((3.0, 3.0, 3.0))


def test_pairing_beats_medians_taken_apart_under_slow_drift():
    machine = FakeMachine(slowness=lambda now: 1 + now / 50)
    cases = {"A": lambda: machine.work(1.0), "B": lambda: machine.work(1.0)}
    timings = interleave(cases, repeats=9, **machine.options)
    first, last = timings["A"].seconds[0], timings["A"].seconds[-1]
    assert last / first > 1.3
    # within a round the drift is one run's worth, 2 %
    assert timings.ratio("B", "A").median == pytest.approx(1.0, abs=0.03)


def test_ratio_of_a_time_that_the_case_reports():
    machine = FakeMachine()

    def case(seconds: float, decode: float):
        def run() -> float:
            machine.work(seconds)
            return decode

        return run

    timings = interleave({"A": case(5.0, 3.0), "B": case(3.0, 1.0)}, **machine.options)
    assert timings.ratio("A", "B").median == pytest.approx(5 / 3)
    assert timings.ratio("A", "B", of=lambda decode: decode).median == 3.0


def test_spread():
    spread = Spread.of([5.0, 1.0, 2.0, 4.0, 3.0, 6.0])
    assert (spread.median, spread.low, spread.high, spread.count) == (3.5, 1.0, 6.0, 6)
    assert (spread.p20, spread.p80) == (2.0, 5.0)
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0, 7.0, 7.0, 1)
    with pytest.raises(ValueError, match="^values: got none"):
        Spread.of([])


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20))
def test_spread_is_ordered(values):
    s = Spread.of(values)
    order = [s.low, s.p20, s.median, s.p80, s.high]
    assert all(a <= b + 1e-9 * max(1.0, abs(b)) for a, b in zip(order, order[1:], strict=False))
    assert s.low == min(values) and s.high == max(values)


# -- around it -----------------------------------------------------------------------------------


def test_progress_counts_every_run_and_tells_of_repeats():
    machine, seen = FakeMachine(foreign=busy_between(2, 3)), []
    interleave(
        {"A": lambda: machine.work(1.0), "B": lambda: machine.work(1.0)},
        repeats=1,
        progress=lambda *step: seen.append(step),
        **machine.options,
    )
    assert [done for done, _, _ in seen] == [0, 1, 2, 2, 3, 4]
    assert {total for _, total, _ in seen} == {4}
    assert seen[0][2] == "A: warm-up" and seen[-1][2] == "done"
    assert seen[3][2] == "A: round 1 of 1, again: 0.50 cores were busy elsewhere"


def test_an_interrupt_passes_through():
    machine, calls = FakeMachine(), []

    def case() -> None:
        machine.work(1.0)
        calls.append(machine.now)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interleave({"A": case}, repeats=5, **machine.options)
    assert len(calls) == 3


def test_bad_input():
    with pytest.raises(ValueError, match="^cases: got none"):
        interleave({})
    with pytest.raises(ValueError, match="^repeats: got 0"):
        interleave({"A": lambda: None}, repeats=0)
