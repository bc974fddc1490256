"""Reference of ragged_linear."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from dynkern.kernels.reference.rows import count, linear, pad

_ACTIVATIONS = {"none": lambda x: x, "relu": F.relu, "gelu": F.gelu}


def ragged_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    row_index: Tensor | None,
    n_active: Tensor | None,
    activation: str,
) -> Tensor:
    capacity = x.shape[0] if row_index is None else row_index.shape[0]
    n = count(n_active, capacity)
    rows = x[:n] if row_index is None else x.index_select(0, row_index[:n])
    return pad(_ACTIVATIONS[activation](linear(rows, weight, bias)), capacity)
