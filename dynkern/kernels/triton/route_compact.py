"""route_compact: row_index[l] = the kept rows of layer l, ascending, then the others, ascending.

keep: bool [L, B]; row_index: int32 [L, B]; n_active: int32 [L]. One program a layer.
Not yet run on a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dynkern.kernels.triton.common import block, launch

# rows of a step: one step up to here
_MAX_BLOCK = 4096


@triton.jit
def _compact(keep_ptr, row_index_ptr, n_active_ptr, n_rows, BLOCK: tl.constexpr):
    layer = tl.program_id(0)
    keep_ptr += layer.to(tl.int64) * n_rows
    row_index_ptr += layer.to(tl.int64) * n_rows
    lanes = tl.arange(0, BLOCK)
    total = 0
    for start in range(0, n_rows, BLOCK):
        i = start + lanes
        total += tl.sum(tl.load(keep_ptr + i, mask=i < n_rows, other=0).to(tl.int32))
    tl.store(n_active_ptr + layer, total)
    before = 0  # kept rows ahead of this step
    for start in range(0, n_rows, BLOCK):
        i = start + lanes
        kept = tl.load(keep_ptr + i, mask=i < n_rows, other=0).to(tl.int32)
        rank = before + tl.cumsum(kept, 0) - kept
        tl.store(row_index_ptr + tl.where(kept != 0, rank, total + i - rank), i, mask=i < n_rows)
        before += tl.sum(kept)


def route_compact(keep: Tensor) -> tuple[Tensor, Tensor]:
    """The op (ops/route_compact.py)."""
    layers, rows = keep.shape
    row_index = torch.empty((layers, rows), dtype=torch.int32, device=keep.device)
    # without rows no program writes the counts, but every count is 0
    n_active = torch.zeros(layers, dtype=torch.int32, device=keep.device)
    width = min(_MAX_BLOCK, block(rows, 16)) if rows else 16
    bits = keep.contiguous().view(torch.uint8)
    grid = (layers if rows else 0,)
    launch(_compact, grid, bits, row_index, n_active, rows, BLOCK=width, num_warps=4)
    return row_index, n_active
