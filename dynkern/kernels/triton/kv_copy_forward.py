"""kv_copy_forward: k_cache[lane[l,i], :, p] = k_cache[lane[s,i], :, p]; s = source[l,i] >= 0.

k_cache, v_cache: [lanes, H, T, Dh]; lane, source: int32 [L, B]; p = position[i]. One launch over
rows, layers and pieces of a row's heads. Bits are moved, whatever the dtype. Not yet run on a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dynkern.kernels.triton.common import block, expect_contiguous, launch
from dynkern.kernels.triton.tuning import ceil_div

# elements of one program; 16 bytes a thread for 16-bit elements in 4 warps
_PIECE = 1024
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@triton.jit
def _copy(
    k_ptr,
    v_ptr,
    lane_ptr,
    source_ptr,
    position_ptr,
    n_rows,
    n_lanes,
    heads,
    positions,
    head_size,
    BLOCK: tl.constexpr,
):
    """Grid: rows, layers, pieces. Indices out of range copy nothing, as in csrc/cuda."""
    row, layer = tl.program_id(0), tl.program_id(1)
    source = tl.load(source_ptr + layer * n_rows + row)
    if source < 0:
        return
    to = tl.load(lane_ptr + layer * n_rows + row).to(tl.int64)
    origin = tl.load(lane_ptr + source * n_rows + row).to(tl.int64)
    position = tl.load(position_ptr + row)
    if (to < 0) | (origin < 0) | (to >= n_lanes) | (origin >= n_lanes):
        return
    if (position < 0) | (position >= positions):
        return
    e = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    head, d = e // head_size, e % head_size
    at = (head.to(tl.int64) * positions + position) * head_size + d
    inside = head < heads
    origin = origin * heads * positions * head_size
    to = to * heads * positions * head_size
    # both loads before either store: two requests in flight
    k = tl.load(k_ptr + origin + at, mask=inside)
    v = tl.load(v_ptr + origin + at, mask=inside)
    tl.store(k_ptr + to + at, k, mask=inside)
    tl.store(v_ptr + to + at, v, mask=inside)


def kv_copy_forward(
    k_cache: Tensor, v_cache: Tensor, lane: Tensor, source: Tensor, position: Tensor
) -> None:
    """The op (ops/kv_copy_forward.py); both caches must be contiguous."""
    expect_contiguous("k_cache", k_cache)
    expect_contiguous("v_cache", v_cache)
    lanes, heads, positions, head_size = k_cache.shape
    layers, rows = lane.shape
    bits = _BITS[k_cache.element_size()]
    piece = min(_PIECE, block(heads * head_size, 16))
    grid = rows, layers, ceil_div(heads * head_size, piece)
    launch(
        _copy,
        grid if k_cache.numel() else (0,),
        k_cache.view(bits),
        v_cache.view(bits),
        lane.contiguous(),
        source.contiguous(),
        position,
        rows,
        lanes,
        heads,
        positions,
        head_size,
        BLOCK=piece,
        num_warps=4,
    )
