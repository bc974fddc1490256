"""sample: token = argmax_v(z[v] / temperature + Gumbel(seed, request, step, v)) over kept entries.

logits: [B, V]; request, step: int64 [B]; token: int64 [B]. One program a row. Kept entries are
those before a cut in the order (score down, id up): top_k's cut is found bit by bit over the scores
and then by halving over ids, and top_p's alike by the mass ahead of an entry. Nothing is sorted,
and no sum depends on the batch. Uniform draws are those of dynkern/rng.py, bit for bit.
Not yet run on a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dynkern import rng
from dynkern.kernels.triton.common import block, last_contiguous, launch
from dynkern.kernels.triton.tuning import ceil_div

_STREAM = tl.constexpr(rng.STREAM_SAMPLE)
# entries of a step
_BLOCK = 4096


@triton.jit
def philox(c0, c1, c2, c3, seed_low, seed_high):
    """Philox-4x32-10 of uint32 counters under a key of two uint32 words (see dynkern/rng.py)."""
    k0 = seed_low
    k1 = seed_high
    for _ in tl.static_range(10):
        high0 = tl.umulhi(c0, 0xD2511F53)
        high1 = tl.umulhi(c2, 0xCD9E8D57)
        low0 = tl.mul(c0, 0xD2511F53, sanitize_overflow=False)
        low1 = tl.mul(c2, 0xCD9E8D57, sanitize_overflow=False)
        c0 = high1 ^ c1 ^ k0
        c1 = low1
        c2 = high0 ^ c3 ^ k1
        c3 = low0
        k0 = tl.add(k0, 0x9E3779B9, sanitize_overflow=False)
        k1 = tl.add(k1, 0xBB67AE85, sanitize_overflow=False)
    return c0, c1, c2, c3


@triton.jit
def uniforms(start, request, step, seed_low, seed_high, BLOCK: tl.constexpr):
    """Draws in (0, 1) of the BLOCK entries from `start`, a multiple of 4, on."""
    c2 = (start // 4 + tl.arange(0, BLOCK // 4)).to(tl.uint32)
    zero = c2 * 0
    c0 = zero + request.to(tl.uint32)
    c1 = zero + step.to(tl.uint32)
    w0, w1, w2, w3 = philox(c0, c1, c2, zero + _STREAM, seed_low, seed_high)
    words = tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))
    draws = ((words >> 8).to(tl.float32) + 0.5) * 5.9604644775390625e-08
    return tl.minimum(draws, 1.0 - 5.9604644775390625e-08)


@triton.jit
def scores(row_ptr, seen_ptr, v, vocab, temperature, penalty, GREEDY: tl.constexpr):
    """Penalised logits over the temperature, -inf beyond the vocabulary."""
    inside = v < vocab
    z = tl.load(row_ptr + v, mask=inside, other=float("-inf")).to(tl.float32)
    if seen_ptr is not None:
        seen = tl.load(seen_ptr + v, mask=inside, other=0) != 0
        z = tl.where(seen, tl.where(z > 0, tl.div_rn(z, penalty), z * penalty), z)
    if not GREEDY:
        z = tl.div_rn(z, temperature)
    return z


@triton.jit
def ranks(z):
    """uint32 numbers in the order of the scores; equal scores, of either zero too, get one."""
    bits = tl.where(z == 0.0, 0.0, z).to(tl.uint32, bitcast=True)
    return tl.where(bits >> 31 != 0, bits ^ 0xFFFFFFFF, bits | 0x80000000)


@triton.jit
def kept_entries(rank, v, cut_rank, cut_id):
    """Whether an entry comes no later than the cut in the order (score down, id up)."""
    return (rank > cut_rank) | ((rank == cut_rank) & (v <= cut_id))


@triton.jit
def tied_id(scores_ptr, vocab, rank, wanted, BLOCK: tl.constexpr):
    """The id of the wanted-th entry of this rank (1 is the first); `vocab` if there are fewer."""
    low = 0
    high = vocab
    while low < high:
        middle = (low + high) // 2
        count = 0
        for start in range(0, middle + 1, BLOCK):
            v = start + tl.arange(0, BLOCK)
            inside = (v <= middle) & (v < vocab)
            z = tl.load(scores_ptr + v, mask=inside, other=float("-inf"))
            count += tl.sum(((ranks(z) == rank) & inside).to(tl.int32), 0)
        low = tl.where(count >= wanted, low, middle + 1)
        high = tl.where(count >= wanted, middle, high)
    return low


@triton.jit
def top_k_cut(scores_ptr, vocab, top_k, BLOCK: tl.constexpr):
    """(rank, id) of a cut that keeps just the first top_k entries."""
    cut = tl.zeros((), dtype=tl.uint32)
    bit = tl.full((), 0x80000000, dtype=tl.uint32)
    reached = 0  # entries of the cut's rank or higher, once there is a cut
    while bit != 0:
        trial = cut | bit
        count = 0
        for start in range(0, vocab, BLOCK):
            v = start + tl.arange(0, BLOCK)
            z = tl.load(scores_ptr + v, mask=v < vocab, other=float("-inf"))
            count += tl.sum(((ranks(z) >= trial) & (v < vocab)).to(tl.int32), 0)
        cut = tl.where(count >= top_k, trial, cut)
        reached = tl.where(count >= top_k, count, reached)
        # just as many as wanted: lower bits tell nothing more
        bit = tl.where(count == top_k, 0, bit >> 1).to(tl.uint32)
    cut_id = vocab
    if reached != top_k:
        ahead = 0
        for start in range(0, vocab, BLOCK):
            v = start + tl.arange(0, BLOCK)
            z = tl.load(scores_ptr + v, mask=v < vocab, other=float("-inf"))
            ahead += tl.sum(((ranks(z) > cut) & (v < vocab)).to(tl.int32), 0)
        cut_id = tied_id(scores_ptr, vocab, cut, top_k - ahead, BLOCK)
    return cut, cut_id


@triton.jit
def mass_above(scores_ptr, vocab, best, k_rank, k_id, above, BLOCK: tl.constexpr):
    """Sum of exp(z - best) over entries of a higher rank than `above` that top_k keeps."""
    mass = 0.0
    for start in range(0, vocab, BLOCK):
        v = start + tl.arange(0, BLOCK)
        z = tl.load(scores_ptr + v, mask=v < vocab, other=float("-inf"))
        rank = ranks(z)
        counts = (rank > above) & kept_entries(rank, v, k_rank, k_id) & (v < vocab)
        mass += tl.sum(tl.where(counts, tl.exp(z - best), 0.0), 0)
    return mass


@triton.jit
def top_p_cut(scores_ptr, vocab, top_p, k_rank, k_id, BLOCK: tl.constexpr):
    """(rank, id) of the last entry, of those that top_k keeps, with less than top_p ahead of it."""
    best = float("-inf")
    for start in range(0, vocab, BLOCK):
        v = start + tl.arange(0, BLOCK)
        z = tl.load(scores_ptr + v, mask=v < vocab, other=float("-inf"))
        best = tl.maximum(best, tl.max(z, 0))
    # rank 0 is that of no number
    zero = tl.zeros((), dtype=tl.uint32)
    limit = top_p * mass_above(scores_ptr, vocab, best, k_rank, k_id, zero, BLOCK)
    # the lowest rank with less than the limit above it
    cut = tl.full((), 0xFFFFFFFF, dtype=tl.uint32)
    bit = tl.full((), 0x80000000, dtype=tl.uint32)
    ahead = 0.0
    while bit != 0:
        trial = cut ^ bit
        mass = mass_above(scores_ptr, vocab, best, k_rank, k_id, trial, BLOCK)
        cut = tl.where(mass < limit, trial, cut)
        ahead = tl.where(mass < limit, mass, ahead)
        bit = bit >> 1
    # of its ties, as many as have less than the limit ahead of them
    bits = tl.where(cut >> 31 != 0, cut ^ 0x80000000, cut ^ 0xFFFFFFFF)
    each = tl.exp(bits.to(tl.float32, bitcast=True) - best)
    wanted = tl.minimum(tl.maximum(tl.ceil((limit - ahead) / each), 1.0), vocab).to(tl.int32)
    return cut, tied_id(scores_ptr, vocab, cut, wanted, BLOCK)


@triton.jit
def _scores(
    logits_ptr,
    seen_ptr,
    scores_ptr,
    vocab,
    stride_logits,
    temperature,
    penalty,
    BLOCK: tl.constexpr,
):
    """What the cuts are searched in, once for all their passes. Grid: rows, pieces."""
    i = tl.program_id(0).to(tl.int64)
    v = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    if seen_ptr is not None:
        seen_ptr += i * vocab
    row_ptr = logits_ptr + i * stride_logits
    z = scores(row_ptr, seen_ptr, v, vocab, temperature, penalty, False)
    tl.store(scores_ptr + i * vocab + v, z, mask=v < vocab)


# a seed of 1 must not make another kernel
@triton.jit(do_not_specialize=["seed_low", "seed_high", "top_k"])
def _sample(
    logits_ptr,
    seen_ptr,
    scores_ptr,
    request_ptr,
    step_ptr,
    token_ptr,
    vocab,
    stride_logits,
    seed_low,
    seed_high,
    temperature,
    top_p,
    penalty,
    top_k,
    GREEDY: tl.constexpr,
    TOP_K: tl.constexpr,
    TOP_P: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid: rows."""
    i = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + i * stride_logits
    if seen_ptr is not None:
        seen_ptr += i * vocab
    if scores_ptr is not None:
        scores_ptr += i * vocab
    k_rank = tl.zeros((), dtype=tl.uint32)
    k_id = vocab
    if TOP_K:
        k_rank, k_id = top_k_cut(scores_ptr, vocab, top_k, BLOCK)
    p_rank = tl.zeros((), dtype=tl.uint32)
    p_id = vocab
    if TOP_P:
        p_rank, p_id = top_p_cut(scores_ptr, vocab, top_p, k_rank, k_id, BLOCK)
    request, step = tl.load(request_ptr + i), tl.load(step_ptr + i)
    low, high = seed_low.to(tl.uint32), seed_high.to(tl.uint32)
    best = float("-inf")
    token = vocab
    for start in range(0, vocab, BLOCK):
        v = start + tl.arange(0, BLOCK)
        if scores_ptr is not None:
            z = tl.load(scores_ptr + v, mask=v < vocab, other=float("-inf"))
            rank = ranks(z)
            kept = kept_entries(rank, v, k_rank, k_id) & kept_entries(rank, v, p_rank, p_id)
            z = tl.where(kept, z, float("-inf"))
        else:
            z = scores(row_ptr, seen_ptr, v, vocab, temperature, penalty, GREEDY)
        if not GREEDY:
            z = z - tl.log(-tl.log(uniforms(start, request, step, low, high, BLOCK)))
        z = tl.where(v < vocab, z, float("-inf"))
        top = tl.max(z, 0)
        first = tl.min(tl.where((z == top) & (v < vocab), v, vocab), 0)
        token = tl.where(top > best, first, token)
        best = tl.maximum(best, top)
    # every score -inf: the first entry, as argmax has it
    tl.store(token_ptr + i, tl.where(token == vocab, 0, token).to(tl.int64))


@triton.jit
def _mark_seen(history_ptr, seen_ptr, length, vocab, stride_history, BLOCK: tl.constexpr):
    """seen[i, history[i, t]] = 1. Grid: rows, pieces of the history."""
    i = tl.program_id(0).to(tl.int64)
    t = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    ids = tl.load(history_ptr + i * stride_history + t, mask=t < length, other=-1)
    one = tl.full((BLOCK,), 1, dtype=tl.uint8)
    tl.store(seen_ptr + i * vocab + ids, one, mask=(ids >= 0) & (ids < vocab))


def sample(
    logits: Tensor,
    history: Tensor | None,
    request: Tensor,
    step: Tensor,
    seed: int,
    temperature: float,
    top_k: int,
    top_p: float,
    repetition_penalty: float,
) -> Tensor:
    """The op (ops/sample.py)."""
    logits = last_contiguous(logits)
    rows, vocab = logits.shape
    token = torch.empty(rows, dtype=torch.int64, device=logits.device)
    seen = None
    if history is not None and repetition_penalty != 1.0:
        history = last_contiguous(history)
        seen = torch.zeros((rows, vocab), dtype=torch.uint8, device=logits.device)
        length = history.shape[1]
        grid = rows, ceil_div(length, 1024)
        width = min(1024, block(max(length, 1), 16))
        launch(_mark_seen, grid, history, seen, length, vocab, history.stride(0), BLOCK=width)
    is_greedy = temperature == 0.0
    has_top_k = not is_greedy and 0 < top_k < vocab
    has_top_p = not is_greedy and top_p < 1.0
    width = min(_BLOCK, block(vocab, 16))
    softened = float(temperature), float(repetition_penalty)
    ranked = None
    if has_top_k or has_top_p:
        ranked = torch.empty((rows, vocab), dtype=torch.float32, device=logits.device)
        grid = rows, ceil_div(vocab, width)
        launch(_scores, grid, logits, seen, ranked, vocab, logits.stride(0), *softened, BLOCK=width)
    launch(
        _sample,
        (rows,),
        *(logits, seen, ranked, request.contiguous(), step.contiguous(), token),
        *(vocab, logits.stride(0), seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF),
        *(softened[0], float(top_p), softened[1], top_k),
        GREEDY=is_greedy,
        TOP_K=has_top_k,
        TOP_P=has_top_p,
        BLOCK=width,
        num_warps=8,
    )
    return token
