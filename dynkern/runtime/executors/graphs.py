"""What the cuda_graph executor needs of a device: captured work, an order, and read-back.

Conditional graph nodes would leave a layer's launches out altogether where no row runs it; torch
2.9 to 2.13 have no call that captures one, so a layer without rows costs its launches, each of
which leaves at once.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Protocol

import torch
from torch import Tensor


class Graph(Protocol):
    """Captured work."""

    def replay(self) -> None:
        """Queue the work; returns at once."""
        ...


class Mark(Protocol):
    """A point in the order of queued work."""

    def record(self) -> None:
        """Put the mark behind what is queued."""
        ...

    def wait(self) -> None:
        """Return once the device has come to the mark."""
        ...


class Graphs(Protocol):
    """A device's graphs. runs_reference: whether work may read values on the host in an op."""

    runs_reference: bool

    def working(self) -> AbstractContextManager[None]:
        """Work inside the block is queued in one order, after what the caller queued before and
        ahead of what it queues afterwards.
        """
        ...

    def capture(self, work: Callable[[], None]) -> Graph:
        """Run `work` once, then once more without effect, recording it. Inside `working` only.

        `work` must do no harm when it runs: there must be no live row.
        """
        ...

    def host_bytes(self, size: int) -> Tensor:
        """uint8 [size] on the host that `read_back` can write to."""
        ...

    def read_back(self, target: Tensor, source: Tensor) -> None:
        """Queue a copy to the host: valid once a mark behind it was waited for."""
        ...

    def mark(self) -> Mark:
        """A mark to be recorded."""
        ...


class _CudaMark:
    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._event, self._stream = torch.cuda.Event(), stream

    def record(self) -> None:
        self._event.record(self._stream)

    def wait(self) -> None:
        self._event.synchronize()


class CudaGraphs:
    """CUDA graphs on a stream of their own, all of one memory pool.

    They may share the pool since one is replayed after another, and nothing that one leaves in it
    is read by the next: what passes hand on lies in buffers made outside of any capture. Not yet
    run on a GPU.
    """

    runs_reference = False

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    @contextmanager
    def working(self):
        outer = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(outer)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            outer.wait_stream(self._stream)

    def capture(self, work: Callable[[], None]) -> torch.cuda.CUDAGraph:
        # kernels compile, and tickets are made, where nothing is captured
        work()
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
        try:
            work()
        except BaseException:
            with suppress(RuntimeError):
                graph.capture_end()
            raise
        graph.capture_end()
        return graph

    def host_bytes(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def read_back(self, target: Tensor, source: Tensor) -> None:
        target.copy_(source, non_blocking=True)

    def mark(self) -> Mark:
        return _CudaMark(self._stream)
