"""ragged_linear: ragged layer routing, a linear layer over the rows that run it."""

from __future__ import annotations

from torch import Tensor

from dynkern.kernels import native
from dynkern.kernels.cpu import ragged_linear as cpu
from dynkern.kernels.reference.ragged_linear import ragged_linear as reference
from dynkern.ops.backends import Kernel, define_op, triton_kernel
from dynkern.ops.checks import expect_dtype, expect_rows, expect_shape

ACTIVATIONS = ("none", "relu", "gelu")


def _check(x, weight, bias, row_index, n_active, activation):
    expect_shape("weight", weight, (None, None))
    expect_shape("x", x, (None, weight.shape[1]))
    expect_dtype("weight", weight, x.dtype)
    if bias is not None:
        expect_shape("bias", bias, (weight.shape[0],))
        expect_dtype("bias", bias, x.dtype)
    expect_rows(row_index, n_active)
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"activation: got {activation!r}, expected one of {', '.join(ACTIVATIONS)}"
        )


def _fake(x, weight, bias, row_index, n_active, activation):
    capacity = x.shape[0] if row_index is None else row_index.shape[0]
    return x.new_empty(capacity, weight.shape[0])


_op = define_op(
    "ragged_linear(Tensor x, Tensor weight, Tensor? bias, Tensor? row_index, Tensor? n_active, "
    "str activation) -> Tensor",
    check=_check,
    fake=_fake,
    reference=reference,
    cpu=Kernel(cpu.ragged_linear, native.cpu_missing, cpu.refuses),
    triton=triton_kernel("ragged_linear"),
    cuda=Kernel(native.ragged_linear_cuda, native.cuda_missing, native.ragged_linear_cuda_refuses),
)


def ragged_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    row_index: Tensor | None = None,
    n_active: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """y[j] = act(x[row_index[j]] · weightᵀ + bias) for j < n_active.

    x: [R, K]. weight: [N, K], bias: [N] or None, both in x's dtype. row_index: int32 [C], or None
    for x[j] itself (C = R). n_active: one int32 element on the device, or None for all C rows.
    activation: "none", "relu" or "gelu" (exact). Returns y [C, N]; rows from n_active on are
    unspecified, and no weight is read for them. Raises ValueError on shapes, dtypes, activation.
    """
    return _op.torch_op(x, weight, bias, row_index, n_active, activation)
