"""ragged_attention on csrc/cpu: prefill and decode."""

from __future__ import annotations

import torch
from torch import Tensor

from dynkern.kernels.cpu.rule import refusal
from dynkern.kernels.cpu.structs import (
    DTYPE_CODES,
    AttentionDecode,
    AttentionPrefill,
    call,
    matrix,
    pointer,
)


def ragged_attention_prefill(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, scale: float
) -> Tensor:
    tokens, heads, size = q.shape
    out = q.new_empty(tokens, heads * size)
    arguments = AttentionPrefill(
        *matrix(q),
        *matrix(k),
        *matrix(v),
        cu_seqlens.data_ptr(),
        out.data_ptr(),
        tokens,
        cu_seqlens.shape[0] - 1,
        heads,
        size,
        DTYPE_CODES[q.dtype],
        torch.get_num_threads(),
        scale,
    )
    call("ragged_attention_prefill", arguments)
    return out


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
    capacity, heads, size = q.shape
    out = q.new_empty(capacity, heads * size)
    arguments = AttentionDecode(
        *matrix(q),
        *matrix(k),
        *matrix(v),
        *matrix(k_cache),
        *matrix(v_cache),
        lane.data_ptr(),
        length.data_ptr(),
        row_index.data_ptr(),
        pointer(n_active),
        out.data_ptr(),
        capacity,
        lane.shape[0],
        *k_cache.shape,
        DTYPE_CODES[q.dtype],
        torch.get_num_threads(),
        scale,
    )
    call("ragged_attention_decode", arguments)
    return out


prefill_refuses = refusal(ragged_attention_prefill, floats="q k v")
decode_refuses = refusal(
    ragged_attention_decode, floats="q k v k_cache v_cache", written="k_cache v_cache"
)
