"""Peaks on a clock that ticks at every look, and the high-water mark of memory."""

from __future__ import annotations

import gc
import itertools
import math
import sys

import numpy as np
import pytest
import torch

from dynkern.evaluation import peaks
from dynkern.evaluation.load_meter import LoadReading
from dynkern.evaluation.peaks import CPU_FLOOR_BYTES, PeakMemory, measure_peaks
from dynkern.kernels import native


def ticking(step: float) -> dict:
    """interleave options under which every case takes `step` seconds."""
    ticks = itertools.count()
    return {
        "clock": lambda: next(ticks) * step,
        "read": lambda: LoadReading(0.0, 0.0, 0.0),
        "min_window": 0.0,
    }


def test_peaks_are_work_over_time():
    size = CPU_FLOOR_BYTES + (1 << 20)
    found = measure_peaks(size, torch.float32, matrix_size=32, **ticking(0.5))
    assert found.bandwidth == size / 0.5
    assert found.flops == 2 * 32**3 / 0.5
    assert found.n_threads == torch.get_num_threads()
    assert found.working_set_bytes == size and found.device
    assert not found.loaded and found.metered


def test_small_sets_are_read_at_the_size_that_can_be_timed():
    found = measure_peaks(1000, torch.bfloat16, matrix_size=16, **ticking(1.0))
    assert found.working_set_bytes == CPU_FLOOR_BYTES
    assert found.bandwidth == CPU_FLOOR_BYTES


def test_the_fastest_read_and_product_count(monkeypatch):
    clock = {"now": 0.0}

    def taking(seconds: float):
        def run() -> None:
            clock["now"] += seconds

        return run

    readers = {"slow": (taking(4.0), 8.0), "fast": (taking(2.0), 8.0)}
    products = {"a": (taking(1.0), 10.0), "b": (taking(1.0), 30.0)}
    monkeypatch.setattr(peaks, "_readers", lambda size, device: readers)
    monkeypatch.setattr(peaks, "_products", lambda n, dtype, device: products)
    found = measure_peaks(
        1,
        torch.float32,
        clock=lambda: clock["now"],
        read=lambda: LoadReading(clock["now"], 2 * clock["now"], 0.0),
    )
    assert (found.bandwidth, found.reader, found.flops) == (4.0, "fast", 30.0)
    assert found.loaded and found.metered


def test_readers_read_what_they_claim():
    for name, (run, moved) in peaks._readers(3 * 8192, torch.device("cpu")).items():
        assert moved == 3 * 8192, name
        assert math.isfinite(float(torch.as_tensor(run()).sum()))
    if native.cpu_missing() is None:
        plain, _ = peaks._readers(3 * 8192, torch.device("cpu"))["plain read"]
        assert plain() == 3 * 2048  # ones, every one of them read


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, torch.float32), "working_set_bytes: got 0"),
        ((8, torch.int8), "dtype: got torch.int8"),
        ((8, torch.float32, "meta"), "device: got 'meta'"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        measure_peaks(*arguments)


@pytest.mark.skipif(sys.platform != "linux", reason="the high-water mark is Linux's")
def test_peak_memory_sees_what_was_freed_again():
    gc.collect()  # or what earlier tests left may be freed meanwhile
    with PeakMemory() as memory:
        np.ones(256 << 20, dtype=np.uint8)
    if memory.bytes is None:
        pytest.skip("/proc/self/clear_refs cannot be written here")
    # the kernel batches its counters, hence the slack
    assert memory.bytes - memory.start_bytes > 192 << 20
    with PeakMemory() as after:
        pass
    assert after.bytes < memory.bytes


def test_peak_memory_is_none_where_it_cannot_be_reset(monkeypatch):
    monkeypatch.setattr(peaks, "_reset_high_water_mark", lambda: False)
    with PeakMemory() as memory:
        pass
    assert memory.bytes is None and memory.start_bytes is None


@pytest.mark.gpu
def test_peaks_and_memory_of_a_gpu():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    with PeakMemory("cuda") as memory:
        found = measure_peaks(1 << 20, torch.bfloat16, "cuda", matrix_size=1024, repeats=1)
    assert found.bandwidth > 0 and found.flops > 0
    assert memory.bytes >= memory.start_bytes + peaks.GPU_FLOOR_BYTES
