"""residual_bypass_linear: residual_bypass_layer_norm and the linear layer behind it, as one."""

from __future__ import annotations

from torch import Tensor

from dynkern.kernels import native
from dynkern.kernels.cpu import residual_bypass_linear as cpu
from dynkern.kernels.reference.residual_bypass_linear import residual_bypass_linear as reference
from dynkern.ops.backends import OPS, Kernel, define_op, triton_kernel
from dynkern.ops.checks import expect_dtype, expect_shape


def _check(
    h,
    delta,
    delta_rows,
    n_delta,
    norm_weight,
    norm_bias,
    row_index,
    n_active,
    norm,
    eps,
    weight,
    bias,
    activation,
):
    expect_shape("h", h, (None, None))
    hidden = h.shape[1]
    for name, tensor in (("norm_weight", norm_weight), ("norm_bias", norm_bias)):
        if tensor is not None:
            expect_shape(name, tensor, (hidden,))
    bypass = OPS["residual_bypass_layer_norm"]
    bypass.check(h, delta, delta_rows, n_delta, None, None, row_index, n_active, norm, eps)
    expect_shape("weight", weight, (None, hidden))
    expect_dtype("weight", weight, h.dtype)
    OPS["ragged_linear"].check(h, weight, bias, row_index, n_active, activation)


def _fake(h, delta, delta_rows, n_delta, norm_weight, norm_bias, row_index, *rest):
    weight = rest[3]
    return h.new_empty(h.shape), h.new_empty(row_index.shape[0], weight.shape[0])


_op = define_op(
    "residual_bypass_linear(Tensor h, Tensor? delta, Tensor? delta_rows, Tensor? n_delta, "
    "Tensor? norm_weight, Tensor? norm_bias, Tensor row_index, Tensor? n_active, str norm, "
    "float eps, Tensor weight, Tensor? bias, str activation) -> (Tensor, Tensor)",
    check=_check,
    fake=_fake,
    reference=reference,
    cpu=Kernel(cpu.residual_bypass_linear, native.cpu_missing, cpu.refuses),
    triton=triton_kernel("residual_bypass_linear"),
)


def residual_bypass_linear(
    h: Tensor,
    delta: Tensor | None,
    delta_rows: Tensor | None,
    n_delta: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    row_index: Tensor,
    n_active: Tensor | None,
    norm: str,
    eps: float,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str = "none",
) -> tuple[Tensor, Tensor]:
    """x, h' = residual_bypass_layer_norm(...); y[j] = act(x[j] · weightᵀ + bias) for j < n_active.

    Arguments up to eps as for residual_bypass_layer_norm, but h [B, D] is left as it is and the new
    residual stream is handed back: programs that read a row then need not wait for the one that
    writes it, and a decoder layer is five launches. weight: [N, D], bias: [N] or None, in h's
    dtype; activation as for ragged_linear. Returns h' [B, D] and y [C', N]; rows of y from n_active
    on are unspecified. Raises ValueError on shapes, dtypes, an unknown norm or activation.
    """
    return _op.torch_op(
        h,
        delta,
        delta_rows,
        n_delta,
        norm_weight,
        norm_bias,
        row_index,
        n_active,
        norm,
        eps,
        weight,
        bias,
        activation,
    )
