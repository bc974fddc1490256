"""residual_bypass_layer_norm on csrc/cpu."""

from __future__ import annotations

import torch
from torch import Tensor

from dynkern.kernels.composed import bypass_gate
from dynkern.kernels.cpu.gate import gate
from dynkern.kernels.cpu.rule import refusal
from dynkern.kernels.cpu.structs import (
    DTYPE_CODES,
    ResidualBypassLayerNorm,
    call,
    matrix,
    pointer,
)

_NORMS = {"pre": 0, "post": 1, "none": 2}


def residual_bypass_layer_norm(
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
) -> Tensor:
    rows, hidden = h.shape
    capacity = row_index.shape[0]
    out = h.new_empty(capacity, hidden)
    arguments = ResidualBypassLayerNorm(
        *matrix(h),
        *matrix(delta),
        pointer(delta_rows),
        pointer(n_delta) if delta is not None else None,
        pointer(weight),
        pointer(bias),
        row_index.data_ptr(),
        pointer(n_active),
        out.data_ptr(),
        rows,
        0 if delta is None else delta.shape[0],
        capacity,
        hidden,
        DTYPE_CODES[h.dtype],
        0 if weight is None else DTYPE_CODES[weight.dtype],
        0 if bias is None else DTYPE_CODES[bias.dtype],
        _NORMS[norm],
        torch.get_num_threads(),
        eps,
    )
    call("residual_bypass_layer_norm", arguments)
    return out


# one after the other: a call costs a CPU little, and h is in its caches
residual_bypass_layer_norm_gate = bypass_gate(residual_bypass_layer_norm, gate)
refuses = refusal(residual_bypass_layer_norm, floats="h delta weight bias", written="h")
gate_refuses = refusal(
    residual_bypass_layer_norm_gate,
    floats="h delta weight bias gate_weight gate_bias uniform",
    written="h",
)
