"""How a checkpoint's weights are kept: dtype, and whether packed for the CPU engine."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dynkern.kernels import native, native_engine
from dynkern.ops.backends import BackendUnavailable, check_backend, requested_backend
from dynkern.routes import check_choice

_FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DTYPES = {**_FLOATS, "int8": torch.int8}


@dataclass(frozen=True)
class Storage:
    """dtype: a name of DTYPES, of the linear weights. packed: for the CPU engine, else as plain
    tensors for the ops. reason: in a few words, of both.
    """

    dtype: str
    packed: bool
    reason: str


def packing_obstacle(dtype: str, device: torch.device, backend: str = "auto") -> str | None:
    """Why the CPU engine cannot keep weights of this dtype, or None.

    backend: "auto" stands for what use_backend or DYNKERN_BACKEND says. ValueError for an unknown
    one.
    """
    name = _requested(backend)
    if name not in ("auto", "cpu"):
        return f"backend {name!r} is asked for"
    if device.type != "cpu":
        return f"the device is {device.type}"
    if missing := native.cpu_missing():
        return missing
    if dtype not in native_engine.FORMATS:
        return f"it has no {dtype}, only {', '.join(native_engine.FORMATS)}"
    return None


def _requested(backend: str) -> str:
    return requested_backend() if check_backend("backend", backend) == "auto" else backend


def choose_storage(dtype: str, stored: str | None, device: torch.device, backend: str) -> Storage:
    """Storage for a dtype by name or "auto", and a checkpoint that says `stored` of itself.

    Auto takes the checkpoint's own dtype, but float16, for which a CPU has no fast arithmetic,
    becomes bfloat16 there on the CPU engine and float32 elsewhere. Weights are packed for the CPU
    engine wherever it runs. Raises ValueError, one line, for an unknown dtype and for int8 without
    the CPU engine; BackendUnavailable (a ValueError) where backend "cpu" cannot have it.
    """
    check_choice("dtype", dtype, ("auto", *DTYPES))
    name, why = dtype, "asked for by name"
    if dtype == "auto":
        own = str(stored).removeprefix("torch.")
        name, why = (own, "the checkpoint's") if own in _FLOATS else ("float32", "the default")
        if name == "float16" and device.type == "cpu":
            name = "float32" if packing_obstacle("bfloat16", device, backend) else "bfloat16"
            why = "for the checkpoint's float16, in which a CPU is slow"
    obstacle = packing_obstacle(name, device, backend)
    if obstacle is None:
        return Storage(name, True, f"{why}; packed for the CPU engine")
    if _requested(backend) == "cpu":
        raise BackendUnavailable(f"backend: 'cpu' cannot run here: {obstacle}; use 'auto'")
    if name == "int8":
        raise ValueError(
            f"dtype: got 'int8', expected one of {', '.join(_FLOATS)} where the CPU engine cannot "
            f"run ({obstacle})"
        )
    return Storage(name, False, f"{why}; not for the CPU engine: {obstacle}")
