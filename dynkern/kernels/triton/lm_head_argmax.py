"""lm_head_argmax: z = weight · x[j]; token = argmax z, probability, margin, log Σ exp z.

x: [C, E]; weight: [V, E]. `_tiles` takes a tile of the vocabulary to five numbers a row (largest
logit, its id, the second largest, sum of exponentials); `_combine` joins the tiles of a row. The
[C, V] logits are never written. They are not rounded to x's dtype. Not yet run on a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dynkern.kernels.triton import tuning
from dynkern.kernels.triton.common import active_rows, block, dot, last_contiguous, launch
from dynkern.kernels.triton.tuning import ceil_div


@triton.jit
def _tiles(
    x_ptr,
    weight_ptr,
    n_active_ptr,
    best_ptr,
    best_id_ptr,
    second_ptr,
    sum_ptr,
    capacity,
    vocab,
    n_in,
    stride_x,
    stride_w,
    BLOCK_M: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Grid: tiles of rows (beside each other, so that a tile of weights is read once), of ids."""
    n_rows = active_rows(n_active_ptr, capacity)
    row_tile, tile = tl.program_id(0), tl.program_id(1)
    if row_tile * BLOCK_M >= n_rows:
        return
    j = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    v = tile * BLOCK_V + tl.arange(0, BLOCK_V)
    x_rows = x_ptr + j[None, :].to(tl.int64) * stride_x
    w_rows = weight_ptr + v[:, None].to(tl.int64) * stride_w
    z = tl.zeros((BLOCK_V, BLOCK_M), dtype=tl.float32)
    for start in range(0, n_in, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        w = tl.load(w_rows + k[None, :], mask=(v[:, None] < vocab) & (k[None, :] < n_in), other=0.0)
        x = tl.load(
            x_rows + k[:, None], mask=(k[:, None] < n_in) & (j[None, :] < n_rows), other=0.0
        )
        z = dot(w, x, z)
    z = tl.where(v[:, None] < vocab, z, float("-inf"))
    best = tl.max(z, 0)
    # the lowest id on a tie
    best_id = tl.min(tl.where(z == best[None, :], v[:, None], vocab), 0)
    second = tl.max(tl.where(v[:, None] == best_id[None, :], float("-inf"), z), 0)
    total = tl.sum(tl.exp(z - best[None, :]), 0)
    at = j.to(tl.int64) * tl.num_programs(1) + tile
    tl.store(best_ptr + at, best, mask=j < n_rows)
    tl.store(best_id_ptr + at, best_id, mask=j < n_rows)
    tl.store(second_ptr + at, second, mask=j < n_rows)
    tl.store(sum_ptr + at, total, mask=j < n_rows)


@triton.jit
def _combine(
    n_active_ptr,
    best_ptr,
    best_id_ptr,
    second_ptr,
    sum_ptr,
    token_ptr,
    probability_ptr,
    margin_ptr,
    log_sum_ptr,
    capacity,
    vocab,
    tiles,
    BLOCK_TILES: tl.constexpr,
):
    """Grid: rows."""
    j = tl.program_id(0)
    if j >= active_rows(n_active_ptr, capacity):
        return
    tile = tl.arange(0, BLOCK_TILES)
    at = j.to(tl.int64) * tiles + tile
    best = tl.load(best_ptr + at, mask=tile < tiles, other=float("-inf"))
    best_id = tl.load(best_id_ptr + at, mask=tile < tiles, other=0)
    second = tl.load(second_ptr + at, mask=tile < tiles, other=float("-inf"))
    total = tl.load(sum_ptr + at, mask=tile < tiles, other=0.0)
    top = tl.max(best, 0)
    token = tl.min(tl.where(best == top, best_id, vocab), 0)
    others = tl.where(best_id == token, second, tl.maximum(best, second))
    runner_up = tl.max(tl.where(tile < tiles, others, float("-inf")), 0)
    log_sum = top + tl.log(tl.sum(total * tl.exp(best - top), 0))
    probability = tl.exp(top - log_sum)
    tl.store(token_ptr + j, token.to(tl.int64))
    tl.store(probability_ptr + j, probability)
    tl.store(margin_ptr + j, probability - tl.exp(runner_up - log_sum))
    tl.store(log_sum_ptr + j, log_sum)


def lm_head_argmax(
    x: Tensor, weight: Tensor, n_active: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The op (ops/lm_head_argmax.py)."""
    x, weight = last_contiguous(x), last_contiguous(weight)
    capacity, (vocab, n_in) = len(x), weight.shape
    token = torch.empty(capacity, dtype=torch.int64, device=x.device)
    measures = [torch.empty(capacity, dtype=torch.float32, device=x.device) for _ in range(3)]
    if capacity == 0:
        return token, *measures
    tile = tuning.head(capacity, x.element_size())
    tiles = ceil_div(vocab, tile.outputs)
    partials = [
        torch.empty((capacity, tiles), dtype=dtype, device=x.device)
        for dtype in (torch.float32, torch.int32, torch.float32, torch.float32)
    ]
    launch(
        _tiles,
        (ceil_div(capacity, tile.rows), tiles),
        x,
        weight,
        n_active,
        *partials,
        capacity,
        vocab,
        n_in,
        x.stride(0),
        weight.stride(0),
        BLOCK_M=tile.rows,
        BLOCK_V=tile.outputs,
        BLOCK_K=tile.inputs,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
    outputs = token, *measures
    sizes = capacity, vocab, tiles
    launch(
        _combine, (capacity,), n_active, *partials, *outputs, *sizes, BLOCK_TILES=block(tiles, 16)
    )
    return outputs
