"""Ops that are others one after the other, for backends without kernels of their own for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

Kernel = Callable[..., Any]


def bypass_gate(bypass: Kernel, gate: Kernel) -> Kernel:
    """residual_bypass_layer_norm.gate from residual_bypass_layer_norm and gate."""

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
        uniform: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        lists = delta, delta_rows, n_delta
        y = bypass(h, *lists, weight, bias, row_index, n_active, norm, eps)
        return y, *gate(h, [gate_weight], [gate_bias], uniform)

    return residual_bypass_layer_norm_gate


def bypass_linear(bypass: Kernel, linear: Kernel, clone: Kernel = Tensor.clone) -> Kernel:
    """residual_bypass_linear from residual_bypass_layer_norm and ragged_linear. clone: of h."""

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
        h = clone(h)
        lists = delta, delta_rows, n_delta
        x = bypass(h, *lists, norm_weight, norm_bias, row_index, n_active, norm, eps)
        return h, linear(x, weight, bias, None, n_active, activation)

    return residual_bypass_linear
