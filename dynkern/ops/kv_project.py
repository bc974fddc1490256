"""kv_project: K/V of tokens that skipped a layer (kv_fill project and deferred)."""

from __future__ import annotations

import torch
from torch import Tensor

from dynkern.kernels import native
from dynkern.kernels.cpu import kv_project as cpu
from dynkern.kernels.reference.kv_project import kv_project as reference
from dynkern.ops.backends import Kernel, define_op, triton_kernel
from dynkern.ops.checks import expect_dtype, expect_rows, expect_shape


def _check(x, weight, bias, k_cache, v_cache, lane, position, n_active):
    expect_shape("k_cache", k_cache, (None, None, None, None))
    expect_shape("v_cache", v_cache, tuple(k_cache.shape))
    expect_shape("weight", weight, (2 * k_cache.shape[1] * k_cache.shape[3], None))
    expect_shape("x", x, (None, weight.shape[1]))
    for name, tensor in (("weight", weight), ("k_cache", k_cache), ("v_cache", v_cache)):
        expect_dtype(name, tensor, x.dtype)
    if bias is not None:
        expect_shape("bias", bias, (weight.shape[0],))
        expect_dtype("bias", bias, x.dtype)
    for name, tensor in (("lane", lane), ("position", position)):
        expect_shape(name, tensor, (x.shape[0],))
        expect_dtype(name, tensor, torch.int32)
    expect_rows(None, n_active)


def _fake(x, weight, bias, k_cache, v_cache, lane, position, n_active):
    return None


_op = define_op(
    "kv_project(Tensor x, Tensor weight, Tensor? bias, Tensor(a!) k_cache, Tensor(b!) v_cache, "
    "Tensor lane, Tensor position, Tensor? n_active) -> ()",
    check=_check,
    fake=_fake,
    reference=reference,
    cpu=Kernel(cpu.kv_project, native.cpu_missing, cpu.refuses),
    triton=triton_kernel("ragged_linear", "kv_project"),
)


def kv_project(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    k_cache: Tensor,
    v_cache: Tensor,
    lane: Tensor,
    position: Tensor,
    n_active: Tensor | None = None,
) -> None:
    """[k; v] = weight · x[j] + bias for j < n_active; k_cache[lane[j], :, position[j]] = k.

    x: [C, D], attention inputs (normed where the layer norms first). weight: [2D, D], the k rows
    above the v rows; bias: [2D] or None. k_cache, v_cache: [lanes, H, T, Dh] with H · Dh = D,
    written in place. lane, position: int32 [C], pairs distinct, so that one row may bring several
    tokens. n_active: one int32 element or None for all. Raises ValueError on shapes and dtypes.
    """
    _op.torch_op(x, weight, bias, k_cache, v_cache, lane, position, n_active)
