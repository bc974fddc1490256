"""residual_bypass_linear: y[j] = act(LN(h'[row_index[j]]) · weightᵀ + bias), h' = h plus delta.

h, h': [B, D]; delta: [C, D]; weight: [N, D]; y: [C', N]. Every program adds and norms its few rows
for itself, which costs it one more read of them from L2, and no launch and no pass over y for the
norm; h' goes to memory of its own, its rows shared out among the programs, so that none writes what
another one reads. For up to tuning.SKINNY_ROWS rows; above, the two kernels one after the other.
Not yet run on a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dynkern.kernels.invariance import is_batch_invariant
from dynkern.kernels.triton import tuning
from dynkern.kernels.triton.common import (
    active_rows,
    arrived_last,
    block,
    dot,
    expect_contiguous,
    gather,
    last_contiguous,
    launch,
)
from dynkern.kernels.triton.ragged_linear import (
    activate,
    partials_of,
    ragged_linear,
    split_scratch,
    summed_splits,
)
from dynkern.kernels.triton.residual_bypass_layer_norm import (
    added,
    find,
    layer_norm,
    residual_bypass_layer_norm,
)
from dynkern.kernels.triton.tuning import ceil_div


@triton.jit
def summed(h_at, delta_at, ran, mask, ROUND: tl.constexpr):
    """h plus delta where the row ran, float32; ROUND: as it will be stored."""
    x = tl.load(h_at, mask=mask, other=0.0).to(tl.float32)
    if delta_at is not None:
        x += tl.load(delta_at, mask=mask & ran, other=0.0).to(tl.float32)
        if ROUND:
            x = x.to(h_at.dtype.element_ty).to(tl.float32)
    return x


@triton.jit
def _write_rows(
    h_ptr,
    delta_ptr,
    delta_rows_ptr,
    n_delta,
    weight_ptr,
    bias_ptr,
    h_out_ptr,
    n_h,
    hidden,
    stride_delta,
    eps,
    POST: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DELTAS: tl.constexpr,
):
    """This program's share of the new residual stream, skipped rows included."""
    program = tl.program_id(0) + tl.program_id(1) * tl.num_programs(0)
    program += tl.program_id(2) * tl.num_programs(0) * tl.num_programs(1)
    programs = tl.num_programs(0) * tl.num_programs(1) * tl.num_programs(2)
    d = tl.arange(0, BLOCK_D)
    for i in range(program, n_h, programs):
        at = (tl.zeros((), dtype=tl.int64) + i) * hidden + d
        x = tl.load(h_ptr + at, mask=d < hidden, other=0.0).to(tl.float32)
        if delta_ptr is not None:
            slot = find(delta_rows_ptr, n_delta, i, tl.arange(0, BLOCK_DELTAS))
            x = added(x, delta_ptr, slot, stride_delta, d, hidden)
            if POST:
                x = tl.where(slot >= 0, layer_norm(x, weight_ptr, bias_ptr, d, hidden, eps), x)
        tl.store(h_out_ptr + at, x.to(h_out_ptr.dtype.element_ty), mask=d < hidden)


@triton.jit
def _bypass_linear(
    h_ptr,
    delta_ptr,
    delta_rows_ptr,
    n_delta_ptr,
    norm_weight_ptr,
    norm_bias_ptr,
    row_index_ptr,
    n_active_ptr,
    weight_ptr,
    bias_ptr,
    h_out_ptr,
    y_ptr,
    partial_ptr,
    ticket_ptr,
    n_h,
    n_deltas,
    capacity,
    n_out,
    hidden,
    stride_delta,
    stride_w,
    chunk,
    eps,
    NORM: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DELTAS: tl.constexpr,
):
    """Grid: tiles of outputs, splits of the inputs, tiles of rows."""
    n_delta = 0
    if delta_ptr is not None:
        n_delta = active_rows(n_delta_ptr, n_deltas)
    _write_rows(
        h_ptr,
        delta_ptr,
        delta_rows_ptr,
        n_delta,
        norm_weight_ptr,
        norm_bias_ptr,
        h_out_ptr,
        n_h,
        hidden,
        stride_delta,
        eps,
        NORM == "post",
        BLOCK_D,
        BLOCK_DELTAS,
    )
    n_rows = active_rows(n_active_ptr, capacity)
    row_tile = tl.program_id(2)
    if row_tile * BLOCK_M >= n_rows:
        return
    tile, split = tl.program_id(0), tl.program_id(1)
    j = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = gather(row_index_ptr, j, j < n_rows)
    ran = j < 0
    delta_rows = None
    if delta_ptr is not None:
        slots = tl.arange(0, BLOCK_DELTAS)
        listed = tl.load(delta_rows_ptr + slots, mask=slots < n_delta, other=-1)
        slot = tl.max(tl.where(listed[None, :] == rows[:, None], slots[None, :], -1), 1)
        ran = slot >= 0
        delta_rows = delta_ptr + slot.to(tl.int64)[None, :] * stride_delta
    h_rows = h_ptr + rows[None, :] * hidden
    is_row = j[None, :] < n_rows
    post: tl.constexpr = NORM == "post"
    has_norm: tl.constexpr = (NORM == "pre") or (post and delta_ptr is not None)
    mean = tl.zeros((BLOCK_M,), dtype=tl.float32)
    scatter = tl.zeros((BLOCK_M,), dtype=tl.float32)
    if has_norm:
        # one pass: means and squares about them, joined step by step, lose nothing to a large mean
        for start in range(0, hidden, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)[:, None]
            inside = (k < hidden) & is_row
            delta_at = None
            if delta_ptr is not None:
                delta_at = delta_rows + k
            x = summed(h_rows + k, delta_at, ran[None, :], inside, not post)
            size = tl.minimum(BLOCK_K, hidden - start).to(tl.float32)
            step_mean = tl.sum(x, 0) / size
            centred = tl.where(k < hidden, x - step_mean[None, :], 0.0)
            apart = step_mean - mean
            share = size / (start + size)
            mean += apart * share
            scatter += tl.sum(centred * centred, 0) + apart * apart * share * start
    shrink = tl.rsqrt(scatter / hidden + eps)
    w_rows = weight_ptr + n[:, None].to(tl.int64) * stride_w
    dtype: tl.constexpr = h_ptr.dtype.element_ty
    acc = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    end = tl.minimum((split + 1) * chunk, hidden)
    for start in range(split * chunk, end, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        inside = (k[:, None] < hidden) & is_row
        delta_at = None
        if delta_ptr is not None:
            delta_at = delta_rows + k[:, None]
        x = summed(h_rows + k[:, None], delta_at, ran[None, :], inside, not post)
        if has_norm:
            normed = (x - mean[None, :]) * shrink[None, :]
            if norm_weight_ptr is not None:
                scale = tl.load(norm_weight_ptr + k, mask=k < hidden, other=0.0)
                normed *= scale.to(tl.float32)[:, None]
            if norm_bias_ptr is not None:
                shift = tl.load(norm_bias_ptr + k, mask=k < hidden, other=0.0)
                normed += shift.to(tl.float32)[:, None]
            if post:
                normed = tl.where(ran[None, :], normed, x)
            x = tl.where(inside, normed, 0.0)
        w = tl.load(
            w_rows + k[None, :], mask=(n[:, None] < n_out) & (k[None, :] < hidden), other=0.0
        )
        acc = dot(w, x.to(dtype), acc)
    if SPLITS > 1:
        group = row_tile * tl.num_programs(0) + tile
        partials = partials_of(partial_ptr, group, SPLITS, BLOCK_N, BLOCK_M)
        tl.store(partials + split * (BLOCK_N * BLOCK_M), acc)
        if not arrived_last(ticket_ptr + group, SPLITS):
            return
        acc = summed_splits(partials, SPLITS, BLOCK_N, BLOCK_M)
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + n, mask=n < n_out, other=0.0).to(tl.float32)[:, None]
    y = activate(acc, ACTIVATION).to(dtype)
    y_at = y_ptr + j[None, :].to(tl.int64) * n_out + n[:, None]
    tl.store(y_at, y, mask=is_row & (n[:, None] < n_out))


def residual_bypass_linear(
    h: Tensor,
    delta: Tensor | None,
    delta_rows: Tensor | None,
    n_delta: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    row_index: Tensor,
    n_active: Tensor | None,
    norm: str,
    eps: float,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
) -> tuple[Tensor, Tensor]:
    """The op (ops/residual_bypass_linear.py); h must be contiguous."""
    expect_contiguous("h", h)
    capacity, (rows, hidden) = len(row_index), h.shape
    n_deltas = 0 if delta is None else len(delta)
    many = max(rows, capacity, n_deltas) > tuning.SKINNY_ROWS or is_batch_invariant()
    if many or capacity == 0:
        out = h.clone()
        bypass = delta, delta_rows, n_delta, norm_weight, norm_bias, row_index, n_active
        x = residual_bypass_layer_norm(out, *bypass, norm, eps)
        return out, ragged_linear(x, weight, bias, None, n_active, activation)
    weight = last_contiguous(weight)
    stride_delta = 0
    if delta is not None:
        delta = last_contiguous(delta)
        stride_delta = delta.stride(0)
    n_out = weight.shape[0]
    out, y = torch.empty_like(h), h.new_empty((capacity, n_out))
    tile = tuning.bypass_linear(capacity, n_out, hidden, h.element_size())
    row_tiles, tiles = ceil_div(capacity, tile.rows), ceil_div(n_out, tile.outputs)
    partial, ticket = split_scratch(h, row_tiles * tiles, tile)
    launch(
        _bypass_linear,
        (tiles, tile.splits, row_tiles),
        *(h, delta, delta_rows, n_delta, norm_weight, norm_bias, row_index, n_active),
        *(weight, bias, out, y, partial, ticket),
        *(rows, n_deltas, capacity, n_out, hidden, stride_delta, weight.stride(0)),
        ceil_div(ceil_div(hidden, tile.splits), tile.inputs) * tile.inputs,
        eps,
        NORM=norm,
        ACTIVATION=activation,
        SPLITS=tile.splits,
        BLOCK_M=tile.rows,
        BLOCK_N=tile.outputs,
        BLOCK_K=tile.inputs,
        BLOCK_D=block(hidden),
        BLOCK_DELTAS=block(n_deltas or 1, 16),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
    return out, y
