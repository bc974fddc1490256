"""LoadMeter: how much of the machine others used while something was timed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

try:
    import resource
except ImportError:  # not on Windows
    resource = None

LOAD_LIMIT = 0.15  # cores
# /proc/stat counts in ticks of 10 ms. In 0.1 s one stray tick reads as 0.1 core, which a handful
# turns into a false alarm (0.2 to 0.6 core seen beside an idle machine); in 0.5 s, user and system
# each a tick off make 0.04 core, well under the limit (0.02 seen).
MIN_WINDOW = 0.5
NOT_METERED = "load not metered"


@dataclass(frozen=True)
class LoadReading:
    """CPU seconds since some fixed moment: this process, all processes, taken by the host."""

    own: float
    busy: float | None
    steal: float | None


def read_load() -> LoadReading:
    """Read the counters. busy and steal are None where there is no /proc/stat (not Linux)."""
    if resource is None:
        own = time.process_time()
    else:
        # getrusage, not os.times(): microseconds instead of ticks
        usages = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        own = sum(usage.ru_utime + usage.ru_stime for usage in usages)
    try:
        with open("/proc/stat", encoding="ascii") as stat:
            fields = stat.readline().split()[1:]
        # the last two columns (guests) are contained in user and nice
        user, nice, system, _, _, irq, softirq, steal = map(int, fields[:8])
    except (OSError, ValueError):
        return LoadReading(own, None, None)
    ticks = os.sysconf("SC_CLK_TCK")
    return LoadReading(own, (user + nice + system + irq + softirq) / ticks, steal / ticks)


@dataclass(frozen=True)
class Load:
    """A window of time. own, foreign, steal: mean cores used by this process, used by others,
    taken by the host; the last two None where they cannot be metered.
    """

    seconds: float
    own: float
    foreign: float | None
    steal: float | None

    @property
    def metered(self) -> bool:
        """Whether other processes could be seen."""
        return self.foreign is not None

    @property
    def worst(self) -> float:
        """The larger of foreign and steal, in cores; 0 where not metered."""
        return max(self.foreign or 0.0, self.steal or 0.0)


class LoadMeter:
    """`with LoadMeter() as meter: …`, then `meter.load`.

    Windows under MIN_WINDOW are too short to judge: one tick of /proc/stat is 10 ms.
    """

    load: Load

    def __init__(
        self,
        clock: Callable[[], float] = time.perf_counter,
        read: Callable[[], LoadReading] = read_load,
    ) -> None:
        self._clock, self._read = clock, read

    def __enter__(self) -> LoadMeter:
        self._before, self._start = self._read(), self._clock()
        return self

    def elapsed(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._start

    def __exit__(self, *exc: object) -> None:
        seconds, after, before = self.elapsed(), self._read(), self._before
        length = max(seconds, 1e-9)
        own = after.own - before.own
        foreign = steal = None
        if None not in (after.busy, before.busy):
            busy = after.busy - before.busy
            # some sandboxes serve a frozen /proc/stat: five ticks of our own must show in it
            if own < 0.05 or busy > 0:
                foreign = max(0.0, busy - own) / length
                steal = max(0.0, after.steal - before.steal) / length
        self.load = Load(seconds, own / length, foreign, steal)
