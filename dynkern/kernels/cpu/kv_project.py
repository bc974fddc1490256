"""kv_project on csrc/cpu."""

from __future__ import annotations

import torch
from torch import Tensor

from dynkern.kernels.cpu.rule import refusal
from dynkern.kernels.cpu.structs import DTYPE_CODES, KvProject, call, matrix, pointer


def kv_project(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    k_cache: Tensor,
    v_cache: Tensor,
    lane: Tensor,
    position: Tensor,
    n_active: Tensor | None,
) -> None:
    arguments = KvProject(
        *matrix(x),
        *matrix(weight),
        pointer(bias),
        *matrix(k_cache),
        *matrix(v_cache),
        lane.data_ptr(),
        position.data_ptr(),
        pointer(n_active),
        *x.shape,
        *k_cache.shape,
        DTYPE_CODES[x.dtype],
        torch.get_num_threads(),
    )
    call("kv_project", arguments)


refuses = refusal(kv_project, floats="x weight bias k_cache v_cache", written="k_cache v_cache")
