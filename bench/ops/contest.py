"""Times of one case: the reference, the library and every kernel, in turn and out of the caches."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import torch

from bench.cpu_cases import worst_load
from bench.device_timing import WARM_UPS, time_op
from bench.ops.case import Case
from bench.ops.grid import Spec
from bench.ops.parity import Parity
from dynkern.evaluation.load_meter import LOAD_LIMIT, MIN_WINDOW, LoadMeter
from dynkern.evaluation.timing import Spread, interleave
from dynkern.ops import OPS, use_backend
from dynkern.ops.backends import _RUNS_ON

BASELINES = ("reference", "library")
KERNELS = ("cpu", "triton", "cuda")
# calls that share a clock reading: entering a backend and reading the clock take microseconds
BURST_SECONDS = 2e-3
MOST_CALLS = 512
# untimed calls ahead of a burst: threads of whoever ran before (OpenMP's wait for 10 milliseconds
# in a loop) would take a core from a short one
LEAD_IN_SECONDS = 20e-3
# calls of each round on a GPU, each with its caches emptied
GPU_CALLS = 20


@dataclass(frozen=True)
class Clock:
    """How long is timed. repeats: rounds; window: seconds of each that are metered at once; limit:
    cores that others may use meanwhile.
    """

    repeats: int = 3
    window: float = MIN_WINDOW
    limit: float = LOAD_LIMIT


@dataclass(frozen=True)
class Outcome:
    """One contestant. seconds: of a call, round by round; empty where `fault` says what is wrong
    with its results, or why it did not run.
    """

    backend: str
    seconds: tuple[float, ...] = ()
    fault: str = ""
    loaded: bool = False
    foreign_load: float = 0.0
    rejected: int = 0


@dataclass(frozen=True)
class Contest:
    """A case's outcomes: the reference, the library, then kernels."""

    spec: Spec
    device: torch.device
    outcomes: dict[str, Outcome]
    bytes: float
    flops: float

    @property
    def red(self) -> list[Outcome]:
        """Those whose results are wrong."""
        return [outcome for outcome in self.outcomes.values() if outcome.fault]

    def speedup(self, backend: str, over: str) -> Spread | None:
        """How many times as fast, formed within each round; None where one was not timed."""
        ours, theirs = (self.outcomes[name].seconds for name in (backend, over))
        if not ours or not theirs:
            return None
        return Spread.of([b / a for a, b in zip(ours, theirs, strict=True)])


def kernels_of(op: str, device: torch.device, wanted: Sequence[str]) -> dict[str, str | None]:
    """Kernels of an op for that device, each with why it cannot run here, or None."""
    found = {}
    for backend, kernel in OPS[op].kernels.items():
        if backend in wanted and device.type in _RUNS_ON[backend] and backend != "reference":
            found[backend] = kernel.missing()
    return found


def contestants(case: Case, device: torch.device, wanted: Sequence[str]) -> list[str]:
    """Who can run this case here, baselines first."""
    args = case.arguments(case.pool[0], case.layers[0])
    found = list(BASELINES)
    for backend, missing in kernels_of(case.spec.op, device, wanted).items():
        refuses = OPS[case.spec.op].kernels[backend].refuses
        if missing is None and not (refuses and refuses(*args)):
            found.append(backend)
    return found


def hold(case: Case, device: torch.device, wanted: Sequence[str], clock: Clock | None) -> Contest:
    """Check every contestant, then time those that are right. clock: None to check alone."""
    names = contestants(case, device, wanted)
    parity = Parity(case)
    faults = {name: parity.fault(name) for name in names if name != "reference"}
    del parity
    sound = [name for name in names if not faults.get(name)]
    timed: dict[str, Outcome] = {}
    if clock is not None:
        time_all = _time_on_gpu if device.type == "cuda" else _time_in_turn
        timed = time_all(case, device, sound, clock)
    outcomes = {
        name: timed.get(name) or Outcome(name, fault=faults.get(name) or "") for name in names
    }
    return Contest(case.spec, device, outcomes, case.bytes, case.flops)


class _Turns:
    """Calls of a case. Sets go round among all contestants, so that each finds one that the caches
    have long lost; layers go round for each alone, so that each sees all of them.
    """

    def __init__(self, case: Case) -> None:
        self.case, self.sets = case, cycle(case.pool)

    def calls(self, name: str, layers: Sequence[Any] | None = None) -> Iterator[Callable[[], Any]]:
        """Endlessly one call after the other, over all layers or some."""
        case, op = self.case, OPS[self.case.spec.op].torch_op
        for layer in cycle(case.layers if layers is None else layers):
            s = next(self.sets)
            if name == "library":
                yield lambda s=s, layer=layer: case.library(s, layer)
            else:
                args = case.arguments(s, layer)
                yield lambda args=args: op(*args)

    def burst(self, name: str, count: int) -> Callable[[], float]:
        """A run of `count` calls, behind a lead-in; its own seconds of one."""
        calls = self.calls(name)

        def run() -> float:
            some = [next(calls) for _ in range(count)]
            with use_backend(_backend(name)), torch.inference_mode():
                ready = time.perf_counter() + LEAD_IN_SECONDS
                while time.perf_counter() < ready:
                    next(calls)()
                start = time.perf_counter()
                for call in some:
                    call()
                return (time.perf_counter() - start) / count

        return run

    def round_up(self, count: int) -> int:
        """To whole rounds of layers, where these differ."""
        layers = len(self.case.layers)
        return -(-count // layers) * layers


def _backend(name: str) -> str:
    return "auto" if name == "library" else name


def _time_in_turn(
    case: Case, device: torch.device, names: Sequence[str], clock: Clock
) -> dict[str, Outcome]:
    turns = _Turns(case)
    bursts = {}
    for name in names:
        once = turns.burst(name, 1)()
        if once < 10 * BURST_SECONDS:  # the first call is no measure of a short one
            once = turns.burst(name, 2)()
        count = min(MOST_CALLS, max(1, round(BURST_SECONDS / once)))
        bursts[name] = turns.burst(name, turns.round_up(count))
    timings = interleave(bursts, clock.repeats, limit=clock.limit, min_window=clock.window)
    outcomes = {}
    for name in names:
        kept = timings[name]
        # what the bursts themselves measured: without the making of their arguments
        seconds = kept.each(lambda value: value)
        load = worst_load(kept)
        outcomes[name] = Outcome(name, seconds, "", kept.loaded, load, kept.rejected)
    return outcomes


def _time_on_gpu(
    case: Case, device: torch.device, names: Sequence[str], clock: Clock
) -> dict[str, Outcome]:
    turns = _Turns(case)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    count = max(3, GPU_CALLS // len(case.layers))
    with LoadMeter() as meter:
        for _ in range(clock.repeats):
            for name in names:
                # layers apart: the median of unlike ones would be one of them
                medians = []
                for layer in case.layers:
                    calls = turns.calls(name, [layer])
                    some = iter([next(calls) for _ in range(count + WARM_UPS)])
                    with use_backend(_backend(name)), torch.inference_mode():
                        times = time_op(lambda some=some: next(some)(), device, count)
                    medians.append(times.median)
                seconds[name].append(sum(medians) / len(medians))
    # the clock is the GPU's own: what else the host does is told, and rejects nothing
    return {
        name: Outcome(name, tuple(found), foreign_load=meter.load.worst)
        for name, found in seconds.items()
    }
