"""Helpers of the reference ops for compacted rows."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dynkern.kernels.invariance import is_batch_invariant


def count(n_active: Tensor | None, capacity: int) -> int:
    """Number of active rows; reading it waits for the device, which the reference may do."""
    return capacity if n_active is None else int(n_active)


def pad(rows: Tensor, capacity: int) -> Tensor:
    """`rows` [n, ...] filled up to [capacity, ...] with NaN (0 for integers)."""
    missing = capacity - rows.shape[0]
    if missing == 0:
        return rows
    filler = float("nan") if rows.is_floating_point() else 0
    return torch.cat([rows, rows.new_full((missing, *rows.shape[1:]), filler)])


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x · weightᵀ + bias; row by row under batch_invariant, since a product of more rows may sum
    in another order. A row's own memory keeps its alignment out of it.
    """
    if len(x) > 1 and is_batch_invariant():
        return torch.cat([F.linear(row.clone(), weight, bias) for row in x.split(1)])
    return F.linear(x, weight, bias)


def accumulator(tensor: Tensor) -> torch.dtype:
    """The dtype in which a reduction over `tensor` runs: float32, or its own where wider."""
    return torch.promote_types(tensor.dtype, torch.float32)
