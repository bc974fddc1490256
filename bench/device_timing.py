"""Times of one op on a device: cold caches, medians with spread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

# larger than any L2 (H200: 60 MB; B200: 126 MB)
FLUSH_BYTES = 256 << 20
WARM_UPS = 3  # calls ahead of those that are timed


@dataclass(frozen=True)
class Times:
    """Seconds of one call: median, and the range of the middle three fifths."""

    median: float
    p20: float
    p80: float
    count: int


def time_op(run: Callable[[], object], device: torch.device, repeats: int) -> Times:
    """Time `run` with the caches emptied ahead of each call; CUDA by events, else by the clock."""
    on_gpu = device.type == "cuda"
    size = FLUSH_BYTES if on_gpu else 1 << 20
    flush = torch.empty(size, dtype=torch.uint8, device=device)
    for _ in range(WARM_UPS):
        run()
    seconds = []
    for _ in range(repeats):
        flush.fill_(1)
        if on_gpu:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            # a queue that is never empty: the launch of `run` itself must not be measured
            torch.cuda._sleep(100_000)
            start.record()
            run()
            end.record()
            end.synchronize()
            seconds.append(start.elapsed_time(end) * 1e-3)
        else:
            began = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - began)
    ordered = sorted(seconds)
    return Times(
        statistics.median(ordered),
        ordered[int(0.2 * (repeats - 1))],
        ordered[int(0.8 * (repeats - 1))],
        repeats,
    )
