"""ragged_linear: y[j] = act(x[row_index[j]] · weightᵀ + bias) for j < n_active.

x: [R, K]; weight: [N, K]; y: [C, N]. Two kernels: `_skinny` for up to tuning.SKINNY_ROWS rows, with
the weights as the tall operand of the tensor core and the reduction split over programs whose last
one combines, in the order of the splits (so the sum does not depend on who is last); `_tall` for
more. kv_project is the same product with its rows scattered into the caches. Not yet run on a GPU.
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
    dot,
    gather,
    last_contiguous,
    launch,
    tickets,
)
from dynkern.kernels.triton.tuning import ceil_div


@triton.jit
def activate(y, ACTIVATION: tl.constexpr):
    if ACTIVATION == "relu":
        return tl.maximum(y, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif ACTIVATION == "gelu":
        return 0.5 * y * (1.0 + tl.erf(y * 0.7071067811865476))
    else:
        return y


@triton.jit
def store_outputs(
    y, j, n, n_rows, n_out, out_ptr, v_ptr, lane_ptr, position_ptr, heads, head_size, positions
):
    """y at rows j and outputs n (two blocks that broadcast) to out[j, n]; or, where there are
    lanes, to the caches: the first half of the outputs to K (out_ptr), the second to V.
    """
    inside = (j < n_rows) & (n < n_out)
    if lane_ptr is None:
        tl.store(out_ptr + j.to(tl.int64) * n_out + n, y.to(out_ptr.dtype.element_ty), mask=inside)
    else:
        lane = tl.load(lane_ptr + j, mask=j < n_rows, other=-1).to(tl.int64)
        position = tl.load(position_ptr + j, mask=j < n_rows, other=0)
        hidden = heads * head_size
        is_k = n < hidden
        column = tl.where(is_k, n, n - hidden)
        head, d = column // head_size, column % head_size
        at = ((lane * heads + head) * positions + position) * head_size + d
        held = inside & (lane >= 0)
        value = y.to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + at, value, mask=held & is_k)
        tl.store(v_ptr + at, value, mask=held & (n >= hidden))


@triton.jit
def partials_of(partial_ptr, group, SPLITS: tl.constexpr, N: tl.constexpr, M: tl.constexpr):
    """Where split 0 of a group of programs keeps its sums [N, M]; the others follow."""
    own = tl.arange(0, N)[:, None] * M + tl.arange(0, M)[None, :]
    return partial_ptr + group.to(tl.int64) * (SPLITS * N * M) + own


@triton.jit
def summed_splits(partials, SPLITS: tl.constexpr, N: tl.constexpr, M: tl.constexpr):
    """The splits' sums, always in the same order."""
    acc = tl.zeros((N, M), dtype=tl.float32)
    for split in range(SPLITS):
        acc += tl.load(partials + split * (N * M), cache_modifier=".cg")
    return acc


@triton.jit
def _skinny(
    x_ptr,
    weight_ptr,
    bias_ptr,
    row_index_ptr,
    n_active_ptr,
    out_ptr,
    partial_ptr,
    ticket_ptr,
    v_ptr,
    lane_ptr,
    position_ptr,
    capacity,
    n_out,
    n_in,
    stride_x,
    stride_w,
    chunk,
    heads,
    head_size,
    positions,
    ACTIVATION: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Grid: tiles of outputs, splits of the inputs, tiles of rows."""
    n_rows = active_rows(n_active_ptr, capacity)
    row_tile = tl.program_id(2)
    if row_tile * BLOCK_M >= n_rows:
        return
    tile, split = tl.program_id(0), tl.program_id(1)
    j = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = gather(row_index_ptr, j, j < n_rows)
    x_rows = x_ptr + rows[None, :] * stride_x
    w_rows = weight_ptr + n[:, None].to(tl.int64) * stride_w
    acc = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    end = tl.minimum((split + 1) * chunk, n_in)
    for start in range(split * chunk, end, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        w = tl.load(w_rows + k[None, :], mask=(n[:, None] < n_out) & (k[None, :] < n_in), other=0.0)
        x = tl.load(
            x_rows + k[:, None], mask=(k[:, None] < n_in) & (j[None, :] < n_rows), other=0.0
        )
        acc = dot(w, x, acc)
    if SPLITS > 1:
        group = row_tile * tl.num_programs(0) + tile
        partials = partials_of(partial_ptr, group, SPLITS, BLOCK_N, BLOCK_M)
        tl.store(partials + split * (BLOCK_N * BLOCK_M), acc)
        if not arrived_last(ticket_ptr + group, SPLITS):
            return
        acc = summed_splits(partials, SPLITS, BLOCK_N, BLOCK_M)
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + n, mask=n < n_out, other=0.0).to(tl.float32)[:, None]
    store_outputs(
        activate(acc, ACTIVATION),
        j[None, :],
        n[:, None],
        n_rows,
        n_out,
        out_ptr,
        v_ptr,
        lane_ptr,
        position_ptr,
        heads,
        head_size,
        positions,
    )


@triton.jit
def _tall(
    x_ptr,
    weight_ptr,
    bias_ptr,
    row_index_ptr,
    n_active_ptr,
    out_ptr,
    v_ptr,
    lane_ptr,
    position_ptr,
    capacity,
    n_out,
    n_in,
    stride_x,
    stride_w,
    heads,
    head_size,
    positions,
    ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Grid: tiles of rows times tiles of outputs, GROUP tiles of rows beside each other."""
    n_rows = active_rows(n_active_ptr, capacity)
    tiles = tl.cdiv(n_out, BLOCK_N)
    program = tl.program_id(0)
    # programs that run at the same time share tiles of x and of the weights in L2
    group = program // (GROUP * tiles)
    row_tiles = tl.cdiv(capacity, BLOCK_M)
    height = tl.minimum(row_tiles - group * GROUP, GROUP)
    within = program % (GROUP * tiles)
    row_tile = group * GROUP + within % height
    tile = within // height
    if row_tile * BLOCK_M >= n_rows:
        return
    j = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = gather(row_index_ptr, j, j < n_rows)
    x_rows = x_ptr + rows[:, None] * stride_x
    w_rows = weight_ptr + n[None, :].to(tl.int64) * stride_w
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, n_in, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x = tl.load(
            x_rows + k[None, :], mask=(k[None, :] < n_in) & (j[:, None] < n_rows), other=0.0
        )
        w = tl.load(w_rows + k[:, None], mask=(n[None, :] < n_out) & (k[:, None] < n_in), other=0.0)
        acc = dot(x, w, acc)
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + n, mask=n < n_out, other=0.0).to(tl.float32)[None, :]
    store_outputs(
        activate(acc, ACTIVATION),
        j[:, None],
        n[None, :],
        n_rows,
        n_out,
        out_ptr,
        v_ptr,
        lane_ptr,
        position_ptr,
        heads,
        head_size,
        positions,
    )


def ragged_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    row_index: Tensor | None,
    n_active: Tensor | None,
    activation: str,
) -> Tensor:
    """The op (ops/ragged_linear.py); row_index may also be int64."""
    capacity = x.shape[0] if row_index is None else row_index.shape[0]
    out = torch.empty((capacity, weight.shape[0]), dtype=x.dtype, device=x.device)
    most = tuning.INVARIANT_ROWS
    if n_active is None and capacity > most and is_batch_invariant():
        for start in range(0, capacity, most):
            part = out[start : start + most]
            rows = x if row_index is not None else x[start : start + most]
            index = None if row_index is None else row_index[start : start + most]
            _launch(rows, weight, bias, index, None, activation, len(part), part)
        return out
    _launch(x, weight, bias, row_index, n_active, activation, capacity, out)
    return out


def kv_project(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    k_cache: Tensor,
    v_cache: Tensor,
    lane: Tensor,
    position: Tensor,
    n_active: Tensor | None,
) -> None:
    """The op kv_project; rows of a negative lane are left out."""
    places = v_cache, lane, position
    _launch(x, weight, bias, None, n_active, "none", x.shape[0], k_cache, places)


def split_scratch(
    like: Tensor, groups: int, tile: tuning.Tile
) -> tuple[Tensor | None, Tensor | None]:
    """Room for the sums of every split, and a ticket for each group of programs; None for one."""
    if tile.splits == 1:
        return None, None
    size = groups * tile.splits * tile.outputs * tile.rows
    return torch.empty(size, dtype=torch.float32, device=like.device), tickets(like, groups)


def _launch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    row_index: Tensor | None,
    n_active: Tensor | None,
    activation: str,
    capacity: int,
    out: Tensor,
    places: tuple[Tensor | None, Tensor | None, Tensor | None] = (None, None, None),
) -> None:
    x, weight = last_contiguous(x), last_contiguous(weight)
    n_out, n_in = weight.shape
    heads, positions, head_size = out.shape[1:] if places[0] is not None else (1, 1, 1)
    cache = heads, head_size, positions
    tile = tuning.linear(capacity, n_out, n_in, x.element_size())
    row_tiles, tiles = ceil_div(capacity, tile.rows), ceil_div(n_out, tile.outputs)
    shape = {"ACTIVATION": activation, "BLOCK_M": tile.rows}
    shape |= {"BLOCK_N": tile.outputs, "BLOCK_K": tile.inputs}
    shape |= {"num_warps": tile.num_warps, "num_stages": tile.num_stages}
    inputs = x, weight, bias, row_index, n_active, out
    sizes = capacity, n_out, n_in, x.stride(0), weight.stride(0)
    if tuning.is_tall(capacity):
        grid = (row_tiles * tiles,)
        launch(_tall, grid, *inputs, *places, *sizes, *cache, GROUP=8, **shape)
        return
    partial, ticket = split_scratch(x, row_tiles * tiles, tile)
    chunk = ceil_div(ceil_div(n_in, tile.splits), tile.inputs) * tile.inputs
    grid = tiles, tile.splits, row_tiles
    launch(
        _skinny,
        grid,
        *inputs,
        partial,
        ticket,
        *places,
        *sizes,
        chunk,
        *cache,
        SPLITS=tile.splits,
        **shape,
    )
