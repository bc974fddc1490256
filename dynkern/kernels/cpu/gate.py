"""gate on csrc/cpu."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from dynkern.kernels.cpu.rule import refusal
from dynkern.kernels.cpu.structs import DTYPE_CODES, Gate, call, matrix, pointer


def gate(
    h: Tensor, weights: list[Tensor], biases: list[Tensor], uniform: Tensor | None
) -> tuple[Tensor, Tensor]:
    n, depth = h.shape[0], len(weights)
    logits, keep = h.new_empty(n, 2), h.new_empty(n, dtype=torch.bool)
    pointers, sizes = ctypes.c_void_p * depth, ctypes.c_int64 * depth
    widths = (ctypes.c_int64 * (depth + 1))(h.shape[1], *(w.shape[0] for w in weights))
    # each array is held here until the call is over
    arrays = (
        pointers(*(w.data_ptr() for w in weights)),
        sizes(*(w.stride(0) for w in weights)),
        pointers(*(b.data_ptr() for b in biases)),
        widths,
    )
    arguments = Gate(
        *matrix(h),
        *(ctypes.addressof(array) for array in arrays),
        pointer(uniform),
        logits.data_ptr(),
        keep.data_ptr(),
        n,
        depth,
        DTYPE_CODES[h.dtype],
        0 if uniform is None else DTYPE_CODES[uniform.dtype],
        torch.get_num_threads(),
    )
    call("gate", arguments)
    return logits, keep


refuses = refusal(gate, floats="h weights biases uniform")
