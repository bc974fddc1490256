"""A machine and engines whose costs are known, on a clock that only work moves."""

from __future__ import annotations

from collections.abc import Callable

from dynkern.cost import PassCount
from dynkern.evaluation.load_meter import LoadReading


class FakeMachine:
    """`work(seconds)` is all that takes time. foreign, stolen: cores, as functions of the time at
    which the work starts; slowness: factor on the work, likewise.
    """

    def __init__(
        self,
        foreign: Callable[[float], float] = lambda now: 0.0,
        stolen: Callable[[float], float] = lambda now: 0.0,
        slowness: Callable[[float], float] = lambda now: 1.0,
    ) -> None:
        self.foreign, self.stolen, self.slowness = foreign, stolen, slowness
        self.now = self.own = self.busy = self.steal = 0.0

    def work(self, seconds: float) -> None:
        foreign, stolen = self.foreign(self.now), self.stolen(self.now)
        seconds *= self.slowness(self.now)
        self.now += seconds
        self.own += seconds
        self.busy += seconds * (1 + foreign)
        self.steal += seconds * stolen

    def clock(self) -> float:
        return self.now

    def read(self) -> LoadReading:
        return LoadReading(self.own, self.busy, self.steal)

    @property
    def options(self) -> dict[str, Callable]:
        """For interleave and LoadMeter."""
        return {"clock": self.clock, "read": self.read}


class FakeEngine:
    """An engine that takes just what its parts take, times `factor`.

    A layer streams its weights once and then computes row by row. masks: it runs every layer for
    every row, whatever the routes. overhead: seconds lost at each layer that no row runs.
    """

    def __init__(
        self,
        machine: FakeMachine,
        num_layers: int = 12,
        masks: bool = False,
        overhead: float = 0.0,
        factor: float = 1.0,
    ) -> None:
        self.machine, self.num_layers, self.factor = machine, num_layers, factor
        self.masks, self.overhead = masks, overhead

    def fixed(self, n: int) -> float:
        return 0.010 + 0.001 * n

    def layer(self, n: int) -> float:
        return 0.008 + 0.002 * n if n else 0.0

    def fill(self, n: int) -> float:
        return 0.001 + 0.0005 * n if n else 0.0

    def full_pass(self, n_rows: int) -> None:
        self.run(PassCount(n_rows, (n_rows,) * self.num_layers))

    def fixed_part(self, n_rows: int) -> None:
        self.machine.work(self.factor * self.fixed(n_rows))

    def kv_fill_part(self, n_rows: int) -> None:
        self.machine.work(self.factor * self.num_layers * self.fill(n_rows))

    def run(self, *passes: PassCount) -> None:
        for count in passes:
            seconds = self.fixed(count.rows)
            for n in count.layer_rows:
                seconds += self.layer(count.rows if self.masks else n)
                seconds += 0 if n else self.overhead
            seconds += sum(self.fill(n) for n in count.fill_rows)
            self.machine.work(self.factor * seconds)
