"""lm_head_argmax on csrc/cpu."""

from __future__ import annotations

import torch
from torch import Tensor

from dynkern.kernels.cpu.rule import refusal
from dynkern.kernels.cpu.structs import DTYPE_CODES, LmHeadArgmax, call, matrix, pointer


def lm_head_argmax(
    x: Tensor, weight: Tensor, n_active: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    capacity = x.shape[0]
    token = x.new_empty(capacity, dtype=torch.int64)
    top, margin, log_sum = (x.new_empty(capacity, dtype=torch.float32) for _ in range(3))
    arguments = LmHeadArgmax(
        *matrix(x),
        *matrix(weight),
        pointer(n_active),
        *(out.data_ptr() for out in (token, top, margin, log_sum)),
        capacity,
        *weight.shape,
        DTYPE_CODES[x.dtype],
        torch.get_num_threads(),
    )
    call("lm_head_argmax", arguments)
    return token, top, margin, log_sum


refuses = refusal(lm_head_argmax, floats="x weight")
