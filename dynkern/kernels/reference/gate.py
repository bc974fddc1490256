"""Reference of gate."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from dynkern.kernels.reference.rows import linear


def gate(
    h: Tensor, weights: list[Tensor], biases: list[Tensor], uniform: Tensor | None
) -> tuple[Tensor, Tensor]:
    x = h
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        x = linear(x if layer == 0 else F.relu(x), weight, bias)
    difference = x[:, 1] - x[:, 0]
    keep = difference > 0 if uniform is None else uniform < difference.sigmoid()
    return x, keep
