"""residual_bypass_linear on csrc/cpu: its two ops one after the other."""

from __future__ import annotations

from torch import Tensor

from dynkern.kernels.cpu.ragged_linear import ragged_linear
from dynkern.kernels.cpu.residual_bypass_layer_norm import residual_bypass_layer_norm
from dynkern.kernels.cpu.rule import refusal


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


refuses = refusal(
    residual_bypass_linear, floats="h delta norm_weight norm_bias weight bias", written="h"
)
