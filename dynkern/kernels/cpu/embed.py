"""embed on csrc/cpu."""

from __future__ import annotations

import torch
from torch import Tensor

from dynkern.kernels.cpu.rule import refusal
from dynkern.kernels.cpu.structs import DTYPE_CODES, Embed, call, matrix


def embed(
    token_ids: Tensor,
    positions: Tensor,
    token_weight: Tensor,
    position_weight: Tensor,
    project_in: Tensor | None,
    position_offset: int,
) -> Tensor:
    n, hidden = token_ids.shape[0], position_weight.shape[1]
    out = position_weight.new_empty(n, hidden)
    arguments = Embed(
        token_ids.data_ptr(),
        positions.data_ptr(),
        *matrix(token_weight),
        *matrix(position_weight),
        *matrix(project_in),
        out.data_ptr(),
        n,
        *token_weight.shape,
        hidden,
        position_weight.shape[0],
        position_offset,
        DTYPE_CODES[out.dtype],
        torch.get_num_threads(),
    )
    call("embed", arguments)
    return out


refuses = refusal(embed, floats="token_weight position_weight project_in")
