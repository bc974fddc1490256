"""RecordedGraphs: what a CUDA graph keeps, on the CPU, for tests and dry runs.

A capture is a list of ops with the tensors they were called with. A replay runs them again over the
same memory: host code, and every number in it, is frozen. Replays, copies and marks wait in a queue
until somebody waits for a mark, so that a host that reads too early reads poison.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# what a device answers only once it has worked off its queue, or what the host hands over
_ANSWERS = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
_FROM_HOST = ("aten::lift_fresh", "aten::_local_scalar_dense")
_COPIES = ("aten::copy_", "aten::_foreach_copy_")
_INDEXED = ("aten::index.Tensor", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")


class HostSync(RuntimeError):
    """Captured work would have waited for the device, or copied from the host."""


def refuse_host(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise HostSync where an op of a pass needs the host."""
    name = func._schema.name
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    full_name = f"{name}.{func._schema.overload_name}" if func._schema.overload_name else name
    masks = name in _INDEXED or full_name in _INDEXED
    if masks:
        # only a mask's result has a size that the device must tell
        asks = any(t.dtype == torch.bool for t in tree_leaves(args[1]) if isinstance(t, Tensor))
    else:
        asks = any(tag in func.tags for tag in _ANSWERS)
    if name == "aten::_to_copy":
        asks |= kwargs.get("device") not in (None, args[0].device)
    # a number in a tensor of no dimension may go along as an argument of a launch, not be copied
    asks |= name in _FROM_HOST
    asks |= len({t.device for t in tensors if t.dim() or name in _COPIES}) > 1
    if asks:
        raise HostSync(f"{full_name} waits for the device or copies from the host")


class Recorder(TorchDispatchMode):
    """Lists the ops that run inside, and refuses those that need the host."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple, dict, list[Tensor | None]]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        refuse_host(func, args, kwargs)
        if func._can_decompose() and func.namespace == "aten":
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        given = {_storage(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        made = [
            t if isinstance(t, Tensor) and _storage(t) not in given else None
            for t in tree_leaves(result)
        ]
        # a view of what is there needs no second look
        if func._schema.is_mutable or any(t is not None for t in made):
            self.calls.append((func, args, kwargs, made))
        return result

    @property
    def names(self) -> list[str]:
        """Names of the ops, in order."""
        return [func._schema.name for func, *_ in self.calls]


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


class _Recording:
    def __init__(self, calls: list, queue: _Queue) -> None:
        self.calls, self._queue = calls, queue

    def replay(self) -> None:
        self._queue.put(self._run)

    def _run(self) -> None:
        for func, args, kwargs, made in self.calls:
            again = tree_leaves(func(*args, **kwargs))
            for target, source in zip(made, again, strict=True):
                if target is not None:
                    target.copy_(source)


class _Queue:
    """Work that waits."""

    def __init__(self) -> None:
        self._waiting: deque[Any] = deque()

    def put(self, work: Any) -> None:
        self._waiting.append(work)

    def run(self, until: Any = None) -> None:
        """Work the queue off, up to `until` if it is there."""
        if until is not None and until not in self._waiting:
            return
        while self._waiting:
            work = self._waiting.popleft()
            if work is until:
                return
            if callable(work):
                work()


class _Mark:
    def __init__(self, graphs: RecordedGraphs) -> None:
        self._graphs = graphs

    def record(self) -> None:
        self._graphs.marks += 1
        self._graphs._queue.put(self)

    def wait(self) -> None:
        self._graphs._queue.run(until=self)


class RecordedGraphs:
    """See Graphs. captured: graphs so far; marks: how often one was recorded."""

    runs_reference = True

    def __init__(self) -> None:
        self._queue = _Queue()
        self._inside = False
        self.captured = self.marks = 0

    @contextmanager
    def working(self) -> Iterator[None]:
        self._inside = True
        try:
            yield
        finally:
            self._inside = False
            self._queue.run()

    def capture(self, work: Callable[[], None]) -> _Recording:
        if not self._inside:
            raise RuntimeError("capture: outside of `working`")
        self._queue.run()
        work()
        with Recorder() as recorder:
            work()
        self.captured += 1
        for *_, made in recorder.calls:
            for tensor in made:
                if tensor is not None and tensor.is_floating_point():
                    # a capture computes nothing that a replay could find
                    tensor.fill_(float("nan"))
        return _Recording(recorder.calls, self._queue)

    def host_bytes(self, size: int) -> Tensor:
        return torch.full((size,), 0xFF, dtype=torch.uint8)

    def read_back(self, target: Tensor, source: Tensor) -> None:
        target.fill_(0xFF)
        self._queue.put(lambda: target.copy_(source))

    def mark(self) -> _Mark:
        return _Mark(self)
