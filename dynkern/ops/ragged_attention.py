"""ragged_attention: causal attention over packed prompts, and one decode step over the cache."""

from __future__ import annotations

import torch
from torch import Tensor

from dynkern.kernels import native
from dynkern.kernels.cpu import ragged_attention as cpu
from dynkern.kernels.reference.ragged_attention import (
    ragged_attention_decode as decode_reference,
)
from dynkern.kernels.reference.ragged_attention import (
    ragged_attention_prefill as prefill_reference,
)
from dynkern.ops.backends import Kernel, define_op, triton_kernel
from dynkern.ops.checks import expect_dtype, expect_rows, expect_shape


def _check_prefill(q, k, v, cu_seqlens, scale):
    expect_shape("q", q, (None, None, None))
    for name, tensor in (("k", k), ("v", v)):
        expect_shape(name, tensor, tuple(q.shape))
        expect_dtype(name, tensor, q.dtype)
    expect_shape("cu_seqlens", cu_seqlens, (None,))
    expect_dtype("cu_seqlens", cu_seqlens, torch.int32)


def _fake_prefill(q, k, v, cu_seqlens, scale):
    return q.new_empty(q.shape[0], q.shape[1] * q.shape[2])


_prefill = define_op(
    "ragged_attention.prefill(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens, float scale) "
    "-> Tensor",
    check=_check_prefill,
    fake=_fake_prefill,
    reference=prefill_reference,
    cpu=Kernel(cpu.ragged_attention_prefill, native.cpu_missing, cpu.prefill_refuses),
    triton=triton_kernel("ragged_attention", "ragged_attention_prefill"),
)


def ragged_attention_prefill(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, scale: float
) -> Tensor:
    """y[t] = Σ_u softmax_u(scale · q[t]·k[u]) v[u] over u ≤ t of the same row.

    q, k, v: [N, H, Dh], the rows' tokens one after another. cu_seqlens: int32 [R + 1], row r owns
    tokens cu_seqlens[r] .. cu_seqlens[r + 1] - 1. Returns [N, H · Dh]. Raises ValueError on
    shapes and dtypes.
    """
    return _prefill.torch_op(q, k, v, cu_seqlens, scale)


def _check_decode(q, k, v, k_cache, v_cache, lane, length, row_index, n_active, scale):
    expect_shape("q", q, (None, None, None))
    capacity, heads, size = q.shape
    expect_shape("k", k, (capacity, heads, size))
    expect_shape("v", v, (capacity, heads, size))
    expect_shape("k_cache", k_cache, (None, heads, None, size))
    expect_shape("v_cache", v_cache, tuple(k_cache.shape))
    for name, tensor in (("k", k), ("v", v), ("k_cache", k_cache), ("v_cache", v_cache)):
        expect_dtype(name, tensor, q.dtype)
    expect_shape("lane", lane, (None,))
    expect_dtype("lane", lane, torch.int32)
    expect_shape("length", length, (lane.shape[0],))
    expect_dtype("length", length, torch.int32)
    expect_rows(row_index, n_active, capacity)


def _fake_decode(q, k, v, k_cache, v_cache, lane, length, row_index, n_active, scale):
    return q.new_empty(q.shape[0], q.shape[1] * q.shape[2])


_decode = define_op(
    "ragged_attention.decode(Tensor q, Tensor k, Tensor v, Tensor(a!) k_cache, "
    "Tensor(b!) v_cache, Tensor lane, Tensor length, Tensor row_index, Tensor? n_active, "
    "float scale) -> Tensor",
    check=_check_decode,
    fake=_fake_decode,
    reference=decode_reference,
    cpu=Kernel(cpu.ragged_attention_decode, native.cpu_missing, cpu.decode_refuses),
    triton=triton_kernel("ragged_attention", "ragged_attention_decode"),
)


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
    """Append k, v to each active row's lane and attend over its own length[i] + 1 entries.

    With i = row_index[j], c = lane[i], p = length[i], for j < n_active:
    k_cache[c, :, p] = k[j]; v_cache[c, :, p] = v[j];
    y[j] = Σ_{u ≤ p} softmax_u(scale · q[j]·k_cache[c, :, u]) v_cache[c, :, u].

    q, k, v: [C, H, Dh]. k_cache, v_cache: [lanes, H, T, Dh], written in place. lane, length:
    int32 [B], of this layer; lanes of active rows are distinct and length < T (the engine sees to
    it: a check here would wait for the device). row_index: int32 [C]; n_active: one int32 element
    or None. Returns [C, H · Dh]; rows from n_active on are unspecified. Entries from p + 1 on are
    never read. Raises ValueError on shapes and dtypes.
    """
    return _decode.torch_op(q, k, v, k_cache, v_cache, lane, length, row_index, n_active, scale)
