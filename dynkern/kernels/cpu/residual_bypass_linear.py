"""residual_bypass_linear on csrc/cpu: its two ops one after the other."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from dynkern.kernels.composed import bypass_linear
from dynkern.kernels.cpu.ragged_linear import ragged_linear
from dynkern.kernels.cpu.residual_bypass_layer_norm import residual_bypass_layer_norm
from dynkern.kernels.cpu.rule import refusal


def _clone(h: Tensor) -> Tensor:
    """Without torch's threads, which would take a core from the linear (csrc/cpu/copy_kv.cpp)."""
    if not h.is_contiguous():
        return h.clone()
    copy = torch.empty_like(h)
    ctypes.memmove(copy.data_ptr(), h.data_ptr(), h.numel() * h.element_size())
    return copy


residual_bypass_linear = bypass_linear(residual_bypass_layer_norm, ragged_linear, _clone)
refuses = refusal(
    residual_bypass_linear, floats="h delta norm_weight norm_bias weight bias", written="h"
)
