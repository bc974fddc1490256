"""Reference of residual_bypass_linear."""

from __future__ import annotations

from dynkern.kernels.composed import bypass_linear
from dynkern.kernels.reference.ragged_linear import ragged_linear
from dynkern.kernels.reference.residual_bypass_layer_norm import residual_bypass_layer_norm

residual_bypass_linear = bypass_linear(residual_bypass_layer_norm, ragged_linear)
