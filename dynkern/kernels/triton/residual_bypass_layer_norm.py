"""residual_bypass_layer_norm: h[delta_rows[j]] += delta[j]; y[j] = LN(h[row_index[j]]).

h: [B, D], in place; delta: [C, D]; y: [C', D]. `_bypass` is the fused form: one program owns a row
of h, finds its places in both row lists by a scan, adds, norms and writes, so that h is read and
written once and no program reads what another one writes. It can take the next layer's gate along.
For more than tuning.SCANNED_ROWS rows the scans would cost more than they save: `_add`, then
`_norm`. "post" norms the sum and hands out h; "none" only adds. Not yet run on a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dynkern.kernels.triton import tuning
from dynkern.kernels.triton.common import (
    active_rows,
    block,
    expect_contiguous,
    gather,
    last_contiguous,
    launch,
)


@triton.jit
def layer_norm(x, weight_ptr, bias_ptr, d, hidden, eps):
    """Of one float32 row, zero from `hidden` on; two passes in registers."""
    inside = d < hidden
    mean = tl.sum(x, 0) / hidden
    centred = tl.where(inside, x - mean, 0.0)
    y = centred * tl.rsqrt(tl.sum(centred * centred, 0) / hidden + eps)
    if weight_ptr is not None:
        y *= tl.load(weight_ptr + d, mask=inside, other=0.0).to(tl.float32)
    if bias_ptr is not None:
        y += tl.load(bias_ptr + d, mask=inside, other=0.0).to(tl.float32)
    return y


@triton.jit
def find(row_index_ptr, n, i, slots):
    """The last j < n with row_index[j] = i, or -1."""
    rows = tl.load(row_index_ptr + slots, mask=slots < n, other=-1)
    return tl.max(tl.where(rows == i, slots, -1), 0)


@triton.jit
def added(x, delta_ptr, slot, stride_delta, d, hidden):
    """x plus delta[slot], x itself for slot -1."""
    ran = (d < hidden) & (slot >= 0)
    at = delta_ptr + slot.to(tl.int64) * stride_delta + d
    return x + tl.load(at, mask=ran, other=0.0).to(tl.float32)


@triton.jit
def _bypass(
    h_ptr,
    delta_ptr,
    delta_rows_ptr,
    n_delta_ptr,
    weight_ptr,
    bias_ptr,
    row_index_ptr,
    n_active_ptr,
    y_ptr,
    gate_weight_ptr,
    gate_bias_ptr,
    uniform_ptr,
    logits_ptr,
    keep_ptr,
    n_deltas,
    capacity,
    hidden,
    stride_delta,
    eps,
    NORM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DELTAS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    """Grid: rows of h."""
    i = tl.program_id(0)
    slot = -1
    if delta_ptr is not None:
        n_delta = active_rows(n_delta_ptr, n_deltas)
        slot = find(delta_rows_ptr, n_delta, i, tl.arange(0, BLOCK_DELTAS))
    places = tl.arange(0, BLOCK_ROWS)
    n_active = active_rows(n_active_ptr, capacity)
    wanted = tl.load(row_index_ptr + places, mask=places < n_active, other=-1) == i
    left = tl.sum(wanted.to(tl.int32), 0)
    if gate_weight_ptr is None:
        if (slot < 0) & (left == 0):
            return
    d = tl.arange(0, BLOCK_D)
    inside = d < hidden
    h_row = h_ptr + i.to(tl.int64) * hidden + d
    dtype: tl.constexpr = h_ptr.dtype.element_ty
    x = tl.load(h_row, mask=inside, other=0.0).to(tl.float32)
    if delta_ptr is not None:
        x = added(x, delta_ptr, slot, stride_delta, d, hidden)
        if NORM == "post":
            x = tl.where(slot >= 0, layer_norm(x, weight_ptr, bias_ptr, d, hidden, eps), x)
        # what later layers read is rounded, so this norm and gate read it rounded
        x = x.to(dtype).to(tl.float32)
        tl.store(h_row, x.to(dtype), mask=inside & (slot >= 0))
    y = x
    if NORM == "pre":
        y = layer_norm(x, weight_ptr, bias_ptr, d, hidden, eps)
    while left > 0:  # once, unless a row is asked for twice
        j = tl.min(tl.where(wanted, places, BLOCK_ROWS), 0)
        tl.store(y_ptr + j.to(tl.int64) * hidden + d, y.to(dtype), mask=inside)
        wanted = wanted & (places != j)
        left -= 1
    if gate_weight_ptr is not None:
        store_gate(
            x, i, gate_weight_ptr, gate_bias_ptr, uniform_ptr, logits_ptr, keep_ptr, d, hidden
        )


@triton.jit
def store_gate(x, i, weight_ptr, bias_ptr, uniform_ptr, logits_ptr, keep_ptr, d, hidden):
    """Logits of row i, rounded, and its keep bit: run > skip, or a uniform draw below its odds."""
    inside = d < hidden
    dtype: tl.constexpr = logits_ptr.dtype.element_ty
    skip_weight = tl.load(weight_ptr + d, mask=inside, other=0.0).to(tl.float32)
    run_weight = tl.load(weight_ptr + hidden + d, mask=inside, other=0.0).to(tl.float32)
    skip = tl.sum(x * skip_weight, 0) + tl.load(bias_ptr).to(tl.float32)
    run = tl.sum(x * run_weight, 0) + tl.load(bias_ptr + 1).to(tl.float32)
    skip = skip.to(dtype)
    run = run.to(dtype)
    at = i.to(tl.int64)
    tl.store(logits_ptr + at * 2, skip)
    tl.store(logits_ptr + at * 2 + 1, run)
    lead = run.to(tl.float32) - skip.to(tl.float32)
    if uniform_ptr is None:
        tl.store(keep_ptr + at, (lead > 0).to(tl.uint8))
    else:
        chance = 1.0 / (1.0 + tl.exp(-lead))
        tl.store(keep_ptr + at, (tl.load(uniform_ptr + at).to(tl.float32) < chance).to(tl.uint8))


@triton.jit
def _add(
    h_ptr,
    delta_ptr,
    delta_rows_ptr,
    n_delta_ptr,
    weight_ptr,
    bias_ptr,
    n_deltas,
    hidden,
    stride_delta,
    eps,
    NORM: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Grid: rows of delta."""
    j = tl.program_id(0)
    if j >= active_rows(n_delta_ptr, n_deltas):
        return
    d = tl.arange(0, BLOCK_D)
    h_row = h_ptr + tl.load(delta_rows_ptr + j).to(tl.int64) * hidden + d
    x = tl.load(h_row, mask=d < hidden, other=0.0).to(tl.float32)
    x = added(x, delta_ptr, j, stride_delta, d, hidden)
    if NORM == "post":
        x = layer_norm(x, weight_ptr, bias_ptr, d, hidden, eps)
    tl.store(h_row, x.to(h_ptr.dtype.element_ty), mask=d < hidden)


@triton.jit
def _norm(
    h_ptr,
    weight_ptr,
    bias_ptr,
    row_index_ptr,
    n_active_ptr,
    y_ptr,
    capacity,
    hidden,
    eps,
    NORM: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Grid: rows of y."""
    j = tl.program_id(0)
    if j >= active_rows(n_active_ptr, capacity):
        return
    d = tl.arange(0, BLOCK_D)
    row = gather(row_index_ptr, j, j < capacity)
    x = tl.load(h_ptr + row * hidden + d, mask=d < hidden, other=0.0).to(tl.float32)
    if NORM == "pre":
        x = layer_norm(x, weight_ptr, bias_ptr, d, hidden, eps)
    at = y_ptr + j.to(tl.int64) * hidden + d
    tl.store(at, x.to(y_ptr.dtype.element_ty), mask=d < hidden)


def residual_bypass_layer_norm(
    h: Tensor,
    delta: Tensor | None,
    delta_rows: Tensor | None,
    n_delta: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    row_index: Tensor,
    n_active: Tensor | None,
    norm: str,
    eps: float,
) -> Tensor:
    """The op (ops/residual_bypass_layer_norm.py); h must be contiguous."""
    expect_contiguous("h", h)
    rows, hidden = h.shape
    capacity = row_index.shape[0]
    y = torch.empty((capacity, hidden), dtype=h.dtype, device=h.device)
    width = block(hidden)
    shape = {"NORM": norm, "BLOCK_D": width, "num_warps": tuning.row_warps(width)}
    if delta is not None and max(rows, capacity) <= tuning.SCANNED_ROWS:
        _launch_bypass(
            h, delta, delta_rows, n_delta, weight, bias, row_index, n_active, y, shape, eps
        )
        return y
    affine = weight, bias
    if delta is not None:
        delta = last_contiguous(delta)
        sums = h, delta, delta_rows, n_delta, *affine, len(delta), hidden, delta.stride(0), eps
        launch(_add, (len(delta),), *sums, **shape)
    launch(_norm, (capacity,), h, *affine, row_index, n_active, y, capacity, hidden, eps, **shape)
    return y


def residual_bypass_layer_norm_gate(
    h: Tensor,
    delta: Tensor | None,
    delta_rows: Tensor | None,
    n_delta: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    row_index: Tensor,
    n_active: Tensor | None,
    norm: str,
    eps: float,
    gate_weight: Tensor,
    gate_bias: Tensor,
    uniform: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The op residual_bypass_layer_norm.gate: the gate of every row in the same launch."""
    expect_contiguous("h", h)
    rows, hidden = h.shape
    y = torch.empty((row_index.shape[0], hidden), dtype=h.dtype, device=h.device)
    logits = torch.empty((rows, 2), dtype=h.dtype, device=h.device)
    keep = torch.empty(rows, dtype=torch.bool, device=h.device)
    width = block(hidden)
    shape = {"NORM": norm, "BLOCK_D": width, "num_warps": tuning.row_warps(width)}
    gate = gate_weight.contiguous(), gate_bias, uniform, logits, keep.view(torch.uint8)
    _launch_bypass(
        h, delta, delta_rows, n_delta, weight, bias, row_index, n_active, y, shape, eps, gate
    )
    return y, logits, keep


def _launch_bypass(
    h: Tensor,
    delta: Tensor | None,
    delta_rows: Tensor | None,
    n_delta: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    row_index: Tensor,
    n_active: Tensor | None,
    y: Tensor,
    shape: dict,
    eps: float,
    gate: tuple[Tensor | None, ...] = (None,) * 5,
) -> None:
    n_deltas, stride = 0, 0
    if delta is not None:
        delta = last_contiguous(delta)
        n_deltas, stride = len(delta), delta.stride(0)
    lists = h, delta, delta_rows, n_delta, weight, bias, row_index, n_active, y
    sizes = n_deltas, len(row_index), h.shape[1], stride, eps
    blocks = {
        "BLOCK_DELTAS": block(n_deltas or 1, 16),
        "BLOCK_ROWS": block(len(row_index) or 1, 16),
    }
    launch(_bypass, (len(h),), *lists, *gate, *sizes, **blocks, **shape)
