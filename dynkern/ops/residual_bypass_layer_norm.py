"""residual_bypass_layer_norm: the fused residual-bypass, one read and one write of the stream."""

from __future__ import annotations

from torch import Tensor

from dynkern.kernels import native
from dynkern.kernels.cpu import residual_bypass_layer_norm as cpu
from dynkern.kernels.reference.residual_bypass_layer_norm import (
    residual_bypass_layer_norm as reference,
)
from dynkern.ops.backends import Kernel, define_op, triton_kernel
from dynkern.ops.checks import expect_dtype, expect_rows, expect_shape

NORMS = ("pre", "post", "none")


def _check(h, delta, delta_rows, n_delta, weight, bias, row_index, n_active, norm, eps):
    expect_shape("h", h, (None, None))
    hidden = h.shape[1]
    if norm not in NORMS:
        raise ValueError(f"norm: got {norm!r}, expected one of {', '.join(NORMS)}")
    if (delta is None) != (delta_rows is None):
        raise ValueError("delta_rows: expected exactly when delta is given")
    if delta is not None:
        expect_shape("delta", delta, (None, hidden))
        expect_dtype("delta", delta, h.dtype)
        expect_rows(delta_rows, n_delta, delta.shape[0], ("delta_rows", "n_delta"))
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None:
            expect_shape(name, tensor, (hidden,))
    expect_rows(row_index, n_active)


def _fake(h, delta, delta_rows, n_delta, weight, bias, row_index, n_active, norm, eps):
    return h.new_empty(row_index.shape[0], h.shape[1])


_op = define_op(
    "residual_bypass_layer_norm(Tensor(a!) h, Tensor? delta, Tensor? delta_rows, Tensor? n_delta, "
    "Tensor? weight, Tensor? bias, Tensor row_index, Tensor? n_active, str norm, float eps) "
    "-> Tensor",
    check=_check,
    fake=_fake,
    reference=reference,
    cpu=Kernel(cpu.residual_bypass_layer_norm, native.cpu_missing, cpu.refuses),
    triton=triton_kernel("residual_bypass_layer_norm"),
)


def residual_bypass_layer_norm(
    h: Tensor,
    delta: Tensor | None,
    delta_rows: Tensor | None,
    n_delta: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    row_index: Tensor,
    n_active: Tensor | None,
    norm: str = "pre",
    eps: float = 1e-5,
) -> Tensor:
    """Add a sublayer's output to the rows that ran it, then hand the next sublayer its rows.

    norm "pre":  h[delta_rows[j]] += delta[j] for j < n_delta;  y[j] = LN(h[row_index[j]]).
    norm "post": h[delta_rows[j]] = LN(h[delta_rows[j]] + delta[j]);  y[j] = h[row_index[j]].
    norm "none": as "pre" without the norm.
    Rows of h outside delta_rows[:n_delta] are untouched: they skipped the sublayer.

    h: [B, D], written in place. delta: [C, D] in h's dtype or None (nothing to add), with
    delta_rows int32 [C] of distinct rows. weight, bias: [D] or None (no affine part).
    row_index: int32 [C']. n_delta, n_active: one int32 element on the device, or None for all.
    Returns y [C', D]; rows from n_active on are unspecified. The norm runs in at least float32
    and is rounded once. Raises ValueError on shapes, dtypes and an unknown norm.
    """
    return _op.torch_op(h, delta, delta_rows, n_delta, weight, bias, row_index, n_active, norm, eps)
