"""Which calls the CPU kernels take.

- Floats are float32, bfloat16 or float16.
- Tensors are contiguous, but the first dimension may have any stride (rows of a wider matrix, one
  row repeated); where a tensor is written, its rows must not overlap. kv_copy_forward takes any
  dtype, and contiguous tensors only.

For any other call the automatic choice takes the next backend, which is the reference at the
latest: any dtype, any strides, differentiable. A backend asked for by name raises instead.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_NAMES = ", ".join(str(dtype) for dtype in FLOATS)


def refusal(
    function: Callable[..., Any], floats: str = "", written: str = "", contiguous: str = ""
) -> Callable[..., str | None]:
    """What says why `function` does not take a call, or None: in a few words, by its arguments.

    floats: names of arguments that must have one of FLOATS; written: of those written in place;
    contiguous: of those whose rows may not lie apart either.
    """
    lists = [set(names.split()) for names in (floats, written, contiguous)]
    names = inspect.signature(function).parameters
    kinds = tuple((name, *(name in listed for listed in lists)) for name in names)

    def refuses(*args: Any) -> str | None:
        for (name, is_float, is_written, is_whole), value in zip(kinds, args, strict=True):
            for tensor in value if isinstance(value, list) else (value,):
                if not isinstance(tensor, Tensor):
                    continue
                if is_float and tensor.dtype not in FLOATS:
                    return f"{name} has dtype {tensor.dtype}, not one of {_NAMES}"
                if not tensor.is_contiguous() and (
                    is_whole or not _has_dense_rows(tensor, is_written)
                ):
                    return f"{name} has strides {tensor.stride()}, not contiguous"
        return None

    return refuses


def _has_dense_rows(tensor: Tensor, written: bool) -> bool:
    if tensor.dim() < 2:
        return False
    row = tensor[0]
    return row.is_contiguous() and not (written and tensor.stride(0) < row.numel())
