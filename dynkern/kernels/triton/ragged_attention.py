"""ragged_attention: one decode step over the K/V cache, and causal attention over packed prompts.

Decode: k_cache[c, :, p] = k[j], v alike; y[j] = Σ_{u ≤ p} softmax_u(scale · q[j]·k_cache[c, :, u])
v_cache[c, :, u], with i = row_index[j], c = lane[i], p = length[i]. A row's head is split over
programs by its own length; the last one combines them in order. Entry p is taken from k and v and
written by the one program whose split it is in: nobody reads what another program writes.

Prefill: y[t] = Σ_{u ≤ t} softmax_u(scale · q[t]·k[u]) v[u] within t's row of cu_seqlens; programs
find their row by a scan over cu_seqlens, so the host needs no lengths. Not yet run on a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dynkern.kernels.triton import tuning
from dynkern.kernels.triton.common import (
    active_rows,
    arrived_last,
    block,
    dot,
    expect_contiguous,
    last_contiguous,
    launch,
    tickets,
)
from dynkern.kernels.triton.tuning import ceil_div

_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _decode(
    q_ptr,
    k_ptr,
    v_ptr,
    k_cache_ptr,
    v_cache_ptr,
    lane_ptr,
    length_ptr,
    row_index_ptr,
    n_active_ptr,
    y_ptr,
    partial_ptr,
    ticket_ptr,
    capacity,
    heads,
    positions,
    head_size,
    stride_q,
    stride_q_head,
    stride_k,
    stride_k_head,
    stride_v,
    stride_v_head,
    scale,
    SPLITS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Grid: rows, heads, splits."""
    j, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if j >= active_rows(n_active_ptr, capacity):
        return
    i = tl.load(row_index_ptr + j).to(tl.int64)
    position = tl.load(length_ptr + i)
    # splits of whole steps; those beyond the row's own length have nothing to do
    chunk = tl.cdiv(tl.cdiv(position + 1, SPLITS), BLOCK_T) * BLOCK_T
    live = tl.cdiv(position + 1, chunk)
    if split >= live:
        return
    d = tl.arange(0, BLOCK_D)
    inside = d < head_size
    row = j.to(tl.int64)
    q = tl.load(q_ptr + row * stride_q + head * stride_q_head + d, mask=inside, other=0.0)
    q = q.to(tl.float32) * (scale * _LOG2_E)
    lane = tl.load(lane_ptr + i).to(tl.int64)
    cached = (lane * heads + head) * positions * head_size
    k_new = tl.load(k_ptr + row * stride_k + head * stride_k_head + d, mask=inside, other=0.0)
    v_new = tl.load(v_ptr + row * stride_v + head * stride_v_head + d, mask=inside, other=0.0)
    is_own = split == live - 1
    new_at = cached + position.to(tl.int64) * head_size + d
    tl.store(k_cache_ptr + new_at, k_new, mask=inside & is_own)
    tl.store(v_cache_ptr + new_at, v_new, mask=inside & is_own)
    score = tl.sum(q * k_new.to(tl.float32), 0)
    best = tl.where(is_own, score, float("-inf"))
    total = tl.where(is_own, 1.0, 0.0)
    acc = tl.where(is_own, v_new.to(tl.float32), 0.0)
    end = tl.minimum((split + 1) * chunk, position)
    for start in range(split * chunk, end, BLOCK_T):
        u = start + tl.arange(0, BLOCK_T)
        at = cached + u[:, None].to(tl.int64) * head_size + d[None, :]
        mask = (u[:, None] < end) & inside[None, :]
        k = tl.load(k_cache_ptr + at, mask=mask, other=0.0).to(tl.float32)
        v = tl.load(v_cache_ptr + at, mask=mask, other=0.0).to(tl.float32)
        scores = tl.where(u < end, tl.sum(q[None, :] * k, 1), float("-inf"))
        higher = tl.maximum(best, tl.max(scores, 0))
        chance = tl.exp2(scores - higher)
        shrink = tl.exp2(best - higher)
        total = total * shrink + tl.sum(chance, 0)
        acc = acc * shrink + tl.sum(chance[:, None] * v, 0)
        best = higher
    if SPLITS > 1:
        group = row * heads + head
        partials = partial_ptr + group * SPLITS * (BLOCK_D + 2)
        own = partials + split * (BLOCK_D + 2)
        tl.store(own + d, acc)
        tl.store(own + BLOCK_D, best)
        tl.store(own + BLOCK_D + 1, total)
        if not arrived_last(ticket_ptr + group, live):
            return
        s = tl.arange(0, SPLITS)
        offsets = s * (BLOCK_D + 2)
        bests = tl.load(
            partials + offsets + BLOCK_D, mask=s < live, other=float("-inf"), cache_modifier=".cg"
        )
        totals = tl.load(
            partials + offsets + BLOCK_D + 1, mask=s < live, other=0.0, cache_modifier=".cg"
        )
        parts = tl.load(
            partials + offsets[:, None] + d[None, :],
            mask=s[:, None] < live,
            other=0.0,
            cache_modifier=".cg",
        )
        shrink = tl.exp2(bests - tl.max(bests, 0))
        total = tl.sum(totals * shrink, 0)
        acc = tl.sum(parts * shrink[:, None], 0)
    y = (acc / total).to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + (row * heads + head) * head_size + d, y, mask=inside)


@triton.jit
def _prefill(
    q_ptr,
    k_ptr,
    v_ptr,
    cu_seqlens_ptr,
    y_ptr,
    n_seqs,
    heads,
    head_size,
    stride_q,
    stride_q_head,
    stride_k,
    stride_k_head,
    stride_v,
    stride_v_head,
    scale,
    BLOCK_R: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Grid: as many tiles of queries as there can be, heads."""
    program, head = tl.program_id(0), tl.program_id(1)
    r = tl.arange(0, BLOCK_R)
    starts = tl.load(cu_seqlens_ptr + r, mask=r < n_seqs, other=0)
    ends = tl.load(cu_seqlens_ptr + r + 1, mask=r < n_seqs, other=0)
    tiles = tl.cdiv(ends - starts, BLOCK_M)
    through = tl.cumsum(tiles, 0)
    if program >= tl.max(through, 0):
        return
    # the row in whose tiles this program's number falls
    is_row = (through - tiles <= program) & (program < through)
    start = tl.sum(tl.where(is_row, starts, 0), 0)
    length = tl.sum(tl.where(is_row, ends - starts, 0), 0)
    first = (program - tl.sum(tl.where(is_row, through - tiles, 0), 0)) * BLOCK_M
    d = tl.arange(0, BLOCK_D)
    t = first + tl.arange(0, BLOCK_M)
    inside = (t[:, None] < length) & (d[None, :] < head_size)
    q_at = (start + t[:, None]).to(tl.int64) * stride_q + head * stride_q_head + d[None, :]
    q = tl.load(q_ptr + q_at, mask=inside, other=0.0)
    best = tl.full((BLOCK_M,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((BLOCK_M,), dtype=tl.float32)
    acc = tl.zeros((BLOCK_M, BLOCK_D), dtype=tl.float32)
    k_head = k_ptr + start.to(tl.int64) * stride_k + head * stride_k_head
    v_head = v_ptr + start.to(tl.int64) * stride_v + head * stride_v_head
    for begin in range(0, tl.minimum(first + BLOCK_M, length), BLOCK_N):
        u = begin + tl.arange(0, BLOCK_N)
        k_at = u[None, :].to(tl.int64) * stride_k + d[:, None]
        k = tl.load(k_head + k_at, mask=(u[None, :] < length) & (d[:, None] < head_size), other=0.0)
        scores = dot(q, k, tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)) * (scale * _LOG2_E)
        # entry 0 is seen by every query, so no row of scores is all -inf
        scores = tl.where(u[None, :] <= t[:, None], scores, float("-inf"))
        higher = tl.maximum(best, tl.max(scores, 1))
        chance = tl.exp2(scores - higher[:, None])
        shrink = tl.exp2(best - higher)
        total = total * shrink + tl.sum(chance, 1)
        v_at = u[:, None].to(tl.int64) * stride_v + d[None, :]
        v = tl.load(v_head + v_at, mask=(u[:, None] < length) & (d[None, :] < head_size), other=0.0)
        acc = dot(chance.to(q_ptr.dtype.element_ty), v, acc * shrink[:, None])
        best = higher
    y = (acc / total[:, None]).to(y_ptr.dtype.element_ty)
    y_at = ((start + t[:, None]).to(tl.int64) * heads + head) * head_size + d[None, :]
    tl.store(y_ptr + y_at, y, mask=inside)


def ragged_attention_decode(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lane: Tensor,
    length: Tensor,
    row_index: Tensor,
    n_active: Tensor | None,
    scale: float,
) -> Tensor:
    """The op ragged_attention.decode; both caches must be contiguous."""
    expect_contiguous("k_cache", k_cache)
    expect_contiguous("v_cache", v_cache)
    q, k, v = (last_contiguous(t) for t in (q, k, v))
    capacity, heads, head_size = q.shape
    positions = k_cache.shape[2]
    y = torch.empty((capacity, heads * head_size), dtype=q.dtype, device=q.device)
    width = block(head_size, 16)
    plan = tuning.decode_attention(capacity, heads, positions, width, q.element_size())
    partial = ticket = None
    if plan.splits > 1:
        shape = capacity, heads, plan.splits, width + 2
        partial = torch.empty(shape, dtype=torch.float32, device=q.device)
        ticket = tickets(q, capacity * heads)
    launch(
        _decode,
        (capacity, heads, plan.splits),
        *(q, k, v, k_cache, v_cache, lane, length, row_index, n_active, y, partial, ticket),
        *(capacity, heads, positions, head_size),
        *(size for t in (q, k, v) for size in t.stride()[:2]),
        scale,
        SPLITS=plan.splits,
        BLOCK_T=plan.entries,
        BLOCK_D=width,
        num_warps=plan.num_warps,
        num_stages=2,
    )
    return y


def ragged_attention_prefill(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, scale: float
) -> Tensor:
    """The op ragged_attention.prefill."""
    q, k, v = (last_contiguous(t) for t in (q, k, v))
    tokens, heads, head_size = q.shape
    n_seqs = len(cu_seqlens) - 1
    y = torch.empty((tokens, heads * head_size), dtype=q.dtype, device=q.device)
    width = block(head_size, 16)
    plan = tuning.prefill_attention(width, q.element_size())
    # every row may end in a tile that is not full
    tiles = ceil_div(tokens, plan.queries) + n_seqs - 1 if tokens else 0
    launch(
        _prefill,
        (tiles, heads),
        *(q, k, v, cu_seqlens, y, n_seqs, heads, head_size),
        *(size for t in (q, k, v) for size in t.stride()[:2]),
        scale,
        BLOCK_R=block(max(n_seqs, 1), 16),
        BLOCK_M=plan.queries,
        BLOCK_N=plan.keys,
        BLOCK_D=width,
        num_warps=plan.num_warps,
        num_stages=plan.num_stages,
    )
    return y
