"""residual_bypass_linear on csrc/cpu: its two ops one after the other."""

from __future__ import annotations

from dynkern.kernels.composed import bypass_linear
from dynkern.kernels.cpu.ragged_linear import ragged_linear
from dynkern.kernels.cpu.residual_bypass_layer_norm import residual_bypass_layer_norm
from dynkern.kernels.cpu.rule import refusal

residual_bypass_linear = bypass_linear(residual_bypass_layer_norm, ragged_linear)
refuses = refusal(
    residual_bypass_linear, floats="h delta norm_weight norm_bias weight bias", written="h"
)
