"""Interleaved timing that notices other processes.

Contention fakes speed-ups: on two cores one busy neighbour slowed a two-thread torch decode loop
6 to 30 times. So every run is metered, a loaded one rejected and repeated, and what cannot be had
quiet is stamped, never silent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from dynkern.evaluation.load_meter import (
    LOAD_LIMIT,
    MIN_WINDOW,
    NOT_METERED,
    Load,
    LoadMeter,
    LoadReading,
    read_load,
)

T = TypeVar("T")


@dataclass(frozen=True)
class Spread:
    """Median of some values and how far they scatter (p20 and p80 interpolated)."""

    median: float
    low: float
    high: float
    p20: float
    p80: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value, else ValueError."""
        if not values:
            raise ValueError("values: got none, expected at least one")
        ordered = sorted(values)

        def quantile(q: float) -> float:
            place = q * (len(ordered) - 1)
            below = int(place)
            above = min(below + 1, len(ordered) - 1)
            return ordered[below] + (ordered[above] - ordered[below]) * (place - below)

        return cls(
            quantile(0.5), ordered[0], ordered[-1], quantile(0.2), quantile(0.8), len(ordered)
        )


@dataclass(frozen=True)
class CaseTiming(Generic[T]):
    """A case's kept runs, one for each round.

    seconds: of one call (the mean where a short case was called more than once in a run). values:
    what those calls returned. loads: of the window in which the run lay. rejected: runs thrown
    away. loaded: a kept run lay under load, because the bound on repeats was reached.
    """

    name: str
    seconds: tuple[float, ...]
    values: tuple[tuple[T, ...], ...]
    loads: tuple[Load, ...]
    rejected: int
    loaded: bool

    @property
    def spread(self) -> Spread:
        """Of `seconds`."""
        return Spread.of(self.seconds)

    def each(self, of: Callable[[T], float] | None = None) -> tuple[float, ...]:
        """For each round `of` (mean over its calls), such as `lambda r: r.stats.seconds_decode`;
        `seconds` itself by default.
        """
        if of is None:
            return self.seconds
        return tuple(sum(map(of, values)) / len(values) for values in self.values)


@dataclass(frozen=True)
class Timings(Generic[T]):
    """Cases timed in the same rounds."""

    cases: dict[str, CaseTiming[T]]

    def __getitem__(self, name: str) -> CaseTiming[T]:
        return self.cases[name]

    def ratio(
        self, numerator: str, denominator: str, of: Callable[[T], float] | None = None
    ) -> Spread:
        """Ratio of two cases, formed within each round, so that slow drift cancels."""
        above, below = self.cases[numerator].each(of), self.cases[denominator].each(of)
        return Spread.of([a / b for a, b in zip(above, below, strict=True)])

    @property
    def rejected(self) -> int:
        """Runs thrown away, over all cases."""
        return sum(case.rejected for case in self.cases.values())

    @property
    def loaded(self) -> list[str]:
        """Cases of which a kept run lay under load."""
        return [name for name, case in self.cases.items() if case.loaded]

    @property
    def metered(self) -> bool:
        """Whether the load of every kept run could be seen."""
        return all(load.metered for case in self.cases.values() for load in case.loads)

    def stamp(self) -> dict[str, Any]:
        """What a reader of the results must know of their making: load, loaded, rejected."""
        return {
            "load": "metered" if self.metered else NOT_METERED,
            "loaded": self.loaded,
            "rejected": self.rejected,
        }


@dataclass(frozen=True)
class _Window(Generic[T]):
    """One metered stretch of time, and the runs that lie in it."""

    seconds: dict[str, float]
    values: dict[str, tuple[T, ...]]
    load: Load


def interleave(
    cases: Mapping[str, Callable[[], T]],
    repeats: int = 3,
    *,
    limit: float = LOAD_LIMIT,
    max_rejections: int | None = None,
    min_window: float = MIN_WINDOW,
    progress: Callable[[int, int, str], None] | None = None,
    clock: Callable[[], float] = time.perf_counter,
    read: Callable[[], LoadReading] = read_load,
) -> Timings[T]:
    """Time every case once in each of `repeats` rounds (A B A B …), after one warm-up each.

    A case must return only when its work is done (synchronize a GPU inside). Neighbouring cases
    shorter than `min_window` seconds share one metered window, gone through again and again until
    it is that long: the load can be judged then, and each keeps its neighbours' cache state
    instead of running hot. A window under more than `limit` cores of foreign load or steal is
    rejected and repeated at once, at most `max_rejections` times over all rounds (default:
    `repeats`, so that a loaded machine at most doubles the time); from then on a round's least
    loaded attempt is kept and its cases are stamped `loaded`. progress(done, total, label) is
    called ahead of each window with the runs done so far, and at the end.

    Nothing is written, so an interrupt loses only this measurement. ValueError without cases or
    repeats.
    """
    if not cases:
        raise ValueError("cases: got none, expected at least one")
    if repeats < 1:
        raise ValueError(f"repeats: got {repeats}, expected 1 or more")
    max_rejections = repeats if max_rejections is None else max_rejections
    total = (1 + repeats) * len(cases)
    report = progress or (lambda done, total, label: None)

    warm_up = {}
    for name, case in cases.items():
        report(len(warm_up), total, f"{name}: warm-up")
        start = clock()
        case()
        warm_up[name] = clock() - start
    windows = _share_windows(warm_up, min_window)

    done = len(cases)
    kept: dict[str, list[_Window[T]]] = {name: [] for name in cases}
    rejected, loaded = dict.fromkeys(cases, 0), set()
    for repeat in range(repeats):
        for names in windows:
            others = f" and {len(names) - 1} more" if len(names) > 1 else ""
            label = f"{names[0]}{others}: round {repeat + 1} of {repeats}"
            again = ""
            best: _Window[T] | None = None
            while True:
                report(done, total, label + again)
                window = _run_window(cases, names, min_window, clock, read)
                if best is None or window.load.worst < best.load.worst:
                    best = window
                if window.load.worst <= limit:
                    break
                if rejected[names[0]] >= max_rejections:
                    loaded.update(names)
                    break
                for name in names:
                    rejected[name] += 1
                again = f", again: {window.load.worst:.2f} cores were busy elsewhere"
            for name in names:
                kept[name].append(best)
            done += len(names)
    report(done, total, "done")
    return Timings(
        {
            name: CaseTiming(
                name,
                tuple(window.seconds[name] for window in runs),
                tuple(window.values[name] for window in runs),
                tuple(window.load for window in runs),
                rejected[name],
                name in loaded,
            )
            for name, runs in kept.items()
        }
    )


def _share_windows(durations: Mapping[str, float], min_window: float) -> list[list[str]]:
    """Neighbours put together until each window is expected to be long enough."""
    windows: list[list[str]] = [[]]
    length = 0.0
    for name, seconds in durations.items():
        if windows[-1] and length >= min_window:
            windows.append([])
            length = 0.0
        windows[-1].append(name)
        length += seconds
    if len(windows) > 1 and length < min_window:
        rest = windows.pop()
        windows[-1] += rest
    return windows


def _run_window(
    cases: Mapping[str, Callable[[], T]],
    names: Sequence[str],
    min_window: float,
    clock: Callable[[], float],
    read: Callable[[], LoadReading],
) -> _Window[T]:
    seconds = dict.fromkeys(names, 0.0)
    values: dict[str, list[T]] = {name: [] for name in names}
    with LoadMeter(clock, read) as meter:
        while True:
            for name in names:
                start = clock()
                value = cases[name]()
                seconds[name] += clock() - start
                values[name].append(value)
            if meter.elapsed() >= min_window:
                break
    return _Window(
        {name: seconds[name] / len(values[name]) for name in names},
        {name: tuple(values[name]) for name in names},
        meter.load,
    )
