"""Reference of ragged_attention: causal over packed prompts, and one step over the K/V cache."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dynkern.kernels.reference.rows import count, pad


def ragged_attention_prefill(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, scale: float
) -> Tensor:
    bounds = cu_seqlens.tolist()
    # without rows a view of q would be returned, and an operator's result may not alias an input
    outputs = [q[:0].flatten(1)]
    for start, end in zip(bounds, bounds[1:], strict=False):
        qr, kr, vr = (t[start:end].transpose(0, 1)[None] for t in (q, k, v))
        y = F.scaled_dot_product_attention(qr, kr, vr, is_causal=True, scale=scale)
        outputs.append(y[0].transpose(0, 1).flatten(1))
    return torch.cat(outputs)


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
    n = count(n_active, row_index.shape[0])
    rows = row_index[:n]
    lanes, lengths = lane.index_select(0, rows).long(), length.index_select(0, rows).long()
    k_cache[lanes, :, lengths] = k[:n]
    v_cache[lanes, :, lengths] = v[:n]
    # row by row over views: a gather of all rows' K/V took three times as long (8 rows, CPU),
    # and would read entries that were never written
    outputs = [q[:0].flatten(1)]
    for j, (at, end) in enumerate(zip(lanes.tolist(), lengths.tolist(), strict=True)):
        keys, values = k_cache[at, None, :, : end + 1], v_cache[at, None, :, : end + 1]
        y = F.scaled_dot_product_attention(q[None, j, :, None], keys, values, scale=scale)
        outputs.append(y.flatten(1))
    return pad(torch.cat(outputs), row_index.shape[0])
