"""Reference of residual_bypass_layer_norm."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from dynkern.kernels.composed import bypass_gate
from dynkern.kernels.reference.gate import gate
from dynkern.kernels.reference.rows import accumulator, count, pad


def _layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    wide = accumulator(x)
    weight = None if weight is None else weight.to(wide)
    bias = None if bias is None else bias.to(wide)
    return F.layer_norm(x.to(wide), x.shape[-1:], weight, bias, eps).to(x.dtype)


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
    if delta is not None:
        n = count(n_delta, delta.shape[0])
        target = delta_rows[:n]
        if norm == "post":
            summed = h.index_select(0, target) + delta[:n]
            h.index_copy_(0, target.long(), _layer_norm(summed, weight, bias, eps))
        else:
            h.index_add_(0, target, delta[:n])
    rows = h.index_select(0, row_index[: count(n_active, row_index.shape[0])])
    y = _layer_norm(rows, weight, bias, eps) if norm == "pre" else rows
    return pad(y, row_index.shape[0])


residual_bypass_layer_norm_gate = bypass_gate(residual_bypass_layer_norm, gate)
