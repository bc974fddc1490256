"""residual_bypass_layer_norm.gate: the fused residual-bypass with the next layer's gate."""

from __future__ import annotations

import torch
from torch import Tensor

from dynkern.kernels import native
from dynkern.kernels.cpu import residual_bypass_layer_norm as cpu
from dynkern.kernels.reference.residual_bypass_layer_norm import (
    residual_bypass_layer_norm_gate as reference,
)
from dynkern.ops.backends import OPS, Kernel, define_op, triton_kernel
from dynkern.ops.checks import expect_dtype, expect_shape


def _check(
    h,
    delta,
    delta_rows,
    n_delta,
    weight,
    bias,
    row_index,
    n_active,
    norm,
    eps,
    gate_weight,
    gate_bias,
    uniform,
):
    plain = OPS["residual_bypass_layer_norm"]
    plain.check(h, delta, delta_rows, n_delta, weight, bias, row_index, n_active, norm, eps)
    expect_shape("gate_weight", gate_weight, (2, h.shape[1]))
    expect_dtype("gate_weight", gate_weight, h.dtype)
    expect_shape("gate_bias", gate_bias, (2,))
    expect_dtype("gate_bias", gate_bias, h.dtype)
    if uniform is not None:
        expect_shape("uniform", uniform, (h.shape[0],))


def _fake(h, delta, delta_rows, n_delta, weight, bias, row_index, n_active, norm, eps, *gate):
    rows = h.shape[0]
    y = h.new_empty(row_index.shape[0], h.shape[1])
    return y, h.new_empty(rows, 2), h.new_empty(rows, dtype=torch.bool)


_op = define_op(
    "residual_bypass_layer_norm.gate(Tensor(a!) h, Tensor? delta, Tensor? delta_rows, "
    "Tensor? n_delta, Tensor? weight, Tensor? bias, Tensor row_index, Tensor? n_active, str norm, "
    "float eps, Tensor gate_weight, Tensor gate_bias, Tensor? uniform) -> (Tensor, Tensor, Tensor)",
    check=_check,
    fake=_fake,
    reference=reference,
    cpu=Kernel(cpu.residual_bypass_layer_norm_gate, native.cpu_missing, cpu.gate_refuses),
    triton=triton_kernel("residual_bypass_layer_norm", "residual_bypass_layer_norm_gate"),
)


def residual_bypass_layer_norm_gate(
    h: Tensor,
    delta: Tensor | None,
    delta_rows: Tensor | None,
    n_delta: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    row_index: Tensor,
    n_active: Tensor | None,
    norm: str,
    eps: float,
    gate_weight: Tensor,
    gate_bias: Tensor,
    uniform: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """residual_bypass_layer_norm, and `gate` of one linear layer for every row of the new h.

    Arguments up to eps as for residual_bypass_layer_norm; gate_weight: [2, D], gate_bias: [2],
    uniform: [B] or None, as for gate. Returns y [C', D] (rows from n_active on unspecified), logits
    [B, 2] and keep bool [B]. Raises ValueError on shapes, dtypes and an unknown norm.
    """
    return _op.torch_op(
        h,
        delta,
        delta_rows,
        n_delta,
        weight,
        bias,
        row_index,
        n_active,
        norm,
        eps,
        gate_weight,
        gate_bias,
        uniform,
    )
