"""route_compact on csrc/cpu."""

from __future__ import annotations

import torch
from torch import Tensor

from dynkern.kernels.cpu.rule import refusal
from dynkern.kernels.cpu.structs import RouteCompact, call, matrix


def route_compact(keep: Tensor) -> tuple[Tensor, Tensor]:
    row_index = keep.new_empty(keep.shape, dtype=torch.int32)
    n_active = keep.new_empty(keep.shape[0], dtype=torch.int32)
    arguments = RouteCompact(*matrix(keep), row_index.data_ptr(), n_active.data_ptr(), *keep.shape)
    call("route_compact", arguments)
    return row_index, n_active


refuses = refusal(route_compact)
