"""What the Triton kernels share: launching, recording launches, tickets, the dot product.

Not yet run on a GPU.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# triton decides the same way when it decorates a kernel
INTERPRETING = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
_TICKETS = 1 << 16

_recorded: ContextVar[list[Launch] | None] = ContextVar("dynkern_triton_launches", default=None)
_tickets: dict[tuple[torch.device, int], list[Tensor]] = {}


@dataclass(frozen=True)
class Launch:
    """One launch as it would go to the device."""

    kernel: Any
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    constants: dict[str, Any]
    num_warps: int
    num_stages: int


@contextmanager
def recording() -> Iterator[list[Launch]]:
    """Inside the block launches are listed and none runs: tensors may be on the device "meta"."""
    launches: list[Launch] = []
    token = _recorded.set(launches)
    try:
        yield launches
    finally:
        _recorded.reset(token)


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    *args: Any,
    num_warps: int = 4,
    num_stages: int = 1,
    **constants: Any,
) -> None:
    """Run a kernel on the device of its first tensor; nothing for an empty grid."""
    if 0 in grid:
        return
    recorded = _recorded.get()
    if recorded is not None:
        recorded.append(Launch(kernel, grid, args, constants, num_warps, num_stages))
        return
    device = next(value.device for value in args if isinstance(value, Tensor))
    # triton launches on the current device, whatever device its tensors are on
    foreign = device.type == "cuda" and device.index != torch.cuda.current_device()
    with torch.cuda.device(device) if foreign else nullcontext():
        kernel[grid](*args, num_warps=num_warps, num_stages=num_stages, **constants)


def tickets(like: Tensor, count: int) -> Tensor:
    """`count` int32 zeros on like's device, for groups of programs whose last one combines.

    It leaves its ticket at zero. Launches of one stream come one after another and share them, so
    graphs captured on one stream must not be replayed at the same time. Never freed, since a graph
    keeps the address. Raises RuntimeError where a stream captures before it has any: the zeros
    would be written by that graph alone, and another one might run first.
    """
    device = like.device
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    held = _tickets.setdefault((device, stream), [])
    if not held or held[-1].numel() < count:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise RuntimeError("tickets: run the op once on the capturing stream, ahead of capture")
        held.append(torch.zeros(max(count, _TICKETS), dtype=torch.int32, device=device))
    return held[-1]


def last_contiguous(tensor: Tensor) -> Tensor:
    """The tensor, copied only where its last dimension is strided."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def expect_contiguous(name: str, tensor: Tensor) -> None:
    """Raise ValueError unless a tensor that is written in place is contiguous."""
    if not tensor.is_contiguous():
        raise ValueError(f"{name}: got strides {tensor.stride()}, expected a contiguous tensor")


def block(size: int, least: int = 1) -> int:
    """The power of two that covers `size`."""
    return max(least, triton.next_power_of_2(size))


@triton.jit
def active_rows(n_ptr, capacity):
    """How many leading rows count: the element at n_ptr, or all where there is none."""
    if n_ptr is None:
        return capacity
    else:
        return tl.minimum(tl.load(n_ptr), capacity)


@triton.jit
def gather(index_ptr, j, mask):
    """index[j] as int64, or j itself where there is no index; 0 outside of the mask."""
    if index_ptr is None:
        return tl.where(mask, j, 0).to(tl.int64)
    else:
        return tl.load(index_ptr + j, mask=mask, other=0).to(tl.int64)


@triton.jit
def dot(a, b, acc):
    """acc + a · b in float32: tensor cores for 16-bit operands, plain float32 (no TF32) else."""
    if INTERPRETING:  # its bfloat16 products are wrong
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def arrived_last(ticket_ptr, expected):
    """Whether this program is the last of `expected` ones to come here; what the others stored
    before is then visible to it, read past L1 (cache_modifier=".cg").
    """
    # the barrier puts every thread's stores ahead of the one thread that takes the ticket
    tl.debug_barrier()
    last = tl.atomic_add(ticket_ptr, 1, sem="acq_rel", scope="gpu") == expected - 1
    if last:
        tl.store(ticket_ptr, 0)
    return last
