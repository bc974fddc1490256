"""Reference of residual_bypass_linear."""

from __future__ import annotations

from torch import Tensor

from dynkern.kernels.reference.ragged_linear import ragged_linear
from dynkern.kernels.reference.residual_bypass_layer_norm import residual_bypass_layer_norm


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
    bias: Tensor | None,
    activation: str,
) -> tuple[Tensor, Tensor]:
    h = h.clone()
    x = residual_bypass_layer_norm(
        h, delta, delta_rows, n_delta, norm_weight, norm_bias, row_index, n_active, norm, eps
    )
    return h, ragged_linear(x, weight, bias, None, n_active, activation)
