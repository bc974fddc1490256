"""Triton kernels, one file an op. A file is imported at its op's first call: dynkern needs neither
triton nor a GPU.

Written for triton 3.6 and 3.7 and any GPU from sm_80 on. Loads are widened to float32 at once and
results are rounded once; offsets are int64; counts of rows stay on the device, and programs beyond
them leave before they touch a weight. Tile shapes are those of tuning.py. Not yet run on a GPU.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any

_CAPABILITY = (8, 0)


def missing() -> str | None:
    """Why the Triton kernels cannot run here (no triton, no GPU, an old GPU), or None."""
    import torch

    try:
        import triton  # noqa: F401
    except Exception as error:  # a broken installation raises anything
        if isinstance(error, ModuleNotFoundError) and error.name == "triton":
            return "triton is not installed (pip install 'dynkern[gpu]')"
        return f"triton does not import: {error}".splitlines()[0]
    if os.environ.get("TRITON_INTERPRET") == "1":
        return None
    if not torch.cuda.is_available():
        return "no CUDA device"
    capability = torch.cuda.get_device_capability()
    if capability < _CAPABILITY:
        return f"compute capability {capability[0]}.{capability[1]}, expected 8.0 or more"
    return None


def launcher(name: str, function: str | None = None) -> Callable[..., Any]:
    """`function` (default: `name`) of this package's file `name`, imported when first called."""
    found: list[Callable[..., Any]] = []

    def call(*args: Any) -> Any:
        if not found:
            module = importlib.import_module(f"{__name__}.{name}")
            found.append(getattr(module, function or name))
        return found[0](*args)

    return call


def refuses(*args: Any) -> str | None:
    """Why the kernels do not take these arguments of an op, or None: no tensor may be float64."""
    import torch

    for value in args:
        for tensor in value if isinstance(value, list | tuple) else (value,):
            if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float64:
                return "got float64, expected float32, bfloat16 or float16"
    return None
