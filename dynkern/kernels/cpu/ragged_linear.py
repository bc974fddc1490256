"""ragged_linear on csrc/cpu."""

from __future__ import annotations

import torch
from torch import Tensor

from dynkern.kernels.cpu.rule import refusal
from dynkern.kernels.cpu.structs import DTYPE_CODES, RaggedLinear, call, matrix, pointer
from dynkern.kernels.native_engine import ACTIVATIONS


def ragged_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    row_index: Tensor | None,
    n_active: Tensor | None,
    activation: str,
) -> Tensor:
    x_rows, k = x.shape
    n = weight.shape[0]
    capacity = x_rows if row_index is None else row_index.shape[0]
    out = x.new_empty(capacity, n)
    arguments = RaggedLinear(
        *matrix(x),
        *matrix(weight),
        pointer(bias),
        pointer(row_index),
        pointer(n_active),
        out.data_ptr(),
        x_rows,
        capacity,
        n,
        k,
        DTYPE_CODES[x.dtype],
        ACTIVATIONS[activation],
        torch.get_num_threads(),
    )
    call("ragged_linear", arguments)
    return out


refuses = refusal(ragged_linear, floats="x weight bias")
