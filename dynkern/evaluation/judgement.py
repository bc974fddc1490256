"""Judgement of decode runs: their time beside what the same round's parts make possible."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dynkern.cost import realisation, saved_fraction, speedup
from dynkern.evaluation.calibration import Calibration
from dynkern.evaluation.timing import Spread, Timings
from dynkern.runtime.request import RunResult


@dataclass(frozen=True)
class Judgement:
    """Medians over rounds. seconds: decode passes of one run. speedup: full depth over this case.
    predicted_speedup: full depth over possible time. saved_fraction: None ("n/a") where in most
    rounds less than 5 % could be saved.
    """

    seconds: Spread
    speedup: Spread
    predicted_speedup: float
    realisation: float
    saved_fraction: float | None


def decode_seconds(result: RunResult) -> float:
    """Seconds of a run's decode passes."""
    return result.stats.seconds_decode


def judge(timings: Timings[Any], calibration: Calibration, case: str, full: str) -> Judgement:
    """Judge the runs of `case` against those of `full` and the calibration in the same rounds.

    The cases' values are RunResults with at least one routed pass each.
    """
    measured = timings[case].each(decode_seconds)
    at_full = timings[full].each(decode_seconds)
    predicted, realised, saved = [], [], []
    for index, (seconds, full_seconds) in enumerate(zip(measured, at_full, strict=True)):
        passes = timings[case].values[index][-1].stats.passes
        possible = calibration.model(timings, index).possible_time(passes)
        predicted.append(speedup(full_seconds, possible))
        realised.append(realisation(possible, seconds))
        saved.append(saved_fraction(full_seconds, seconds, possible))
    known = [share for share in saved if share is not None]
    return Judgement(
        seconds=Spread.of(measured),
        speedup=timings.ratio(full, case, decode_seconds),
        predicted_speedup=Spread.of(predicted).median,
        realisation=Spread.of(realised).median,
        saved_fraction=Spread.of(known).median if 2 * len(known) > len(saved) else None,
    )
