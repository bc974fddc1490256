"""kv_copy_forward: K/V of skipped layers copied from the nearest layer that ran."""

from __future__ import annotations

import torch
from torch import Tensor

from dynkern.kernels import native
from dynkern.kernels.cpu.rule import refusal
from dynkern.kernels.reference.kv_copy_forward import kv_copy_forward as reference
from dynkern.ops.backends import Kernel, define_op, triton_kernel
from dynkern.ops.checks import expect_dtype, expect_shape


def _check(k_cache, v_cache, lane, source, position):
    expect_shape("k_cache", k_cache, (None, None, None, None))
    expect_shape("v_cache", v_cache, tuple(k_cache.shape))
    expect_dtype("v_cache", v_cache, k_cache.dtype)
    expect_shape("lane", lane, (None, None))
    expect_shape("source", source, tuple(lane.shape))
    expect_shape("position", position, (lane.shape[1],))
    for name, tensor in (("lane", lane), ("source", source), ("position", position)):
        expect_dtype(name, tensor, torch.int32)


def _fake(k_cache, v_cache, lane, source, position):
    return None


_op = define_op(
    "kv_copy_forward(Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor lane, Tensor source, "
    "Tensor position) -> ()",
    check=_check,
    fake=_fake,
    reference=reference,
    cpu=Kernel(
        native.kv_copy_forward_cpu,
        native.cpu_missing,
        refusal(native.kv_copy_forward_cpu, contiguous="k_cache v_cache lane source"),
    ),
    triton=triton_kernel("kv_copy_forward", any_dtype=True),
    cuda=Kernel(native.kv_copy_forward_cuda, native.cuda_missing),
)


def kv_copy_forward(
    k_cache: Tensor, v_cache: Tensor, lane: Tensor, source: Tensor, position: Tensor
) -> None:
    """k_cache[lane[l,i], :, p] = k_cache[lane[s,i], :, p]; s = source[l,i] ≥ 0, p = position[i].

    All layers and rows in one call, v_cache alike. k_cache, v_cache: [lanes, H, T, Dh], written in
    place. lane, source: int32 [L, B]; position: int32 [B]. source -1 writes nothing; a lane of -1
    (no cache held) reads and writes nothing; a source is never itself a target, so order is free.
    Raises ValueError on shapes and dtypes.
    """
    _op.torch_op(k_cache, v_cache, lane, source, position)
