"""The native libraries over ctypes: finding, loading, refusing stale ones, and their kernels.

`_cpu.so` and `_cuda.so` lie beside the package, put there by setup.py, which also writes
`_build_info.json`: what was built, with what, or why not. Nothing is loaded at import, and torch
is imported by the kernels only.
"""

from __future__ import annotations

import ctypes
import json
import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynkern.kernels import native_engine

if TYPE_CHECKING:
    from torch import Tensor

PACKAGE = Path(__file__).resolve().parent.parent
# csrc/common/abi.h says the same numbers
CPU_ABI = 6
CUDA_ABI = 2


class LibraryUnavailable(RuntimeError):
    """A native library is absent, stale or does not load; the message says why."""


class _KvCopyForward(ctypes.Structure):
    # csrc/common/kv_copy_forward.h
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("k", "v", "lane", "source", "position")),
        *((name, ctypes.c_int64) for name in ("n_lanes", "n_heads", "n_positions", "head_bytes")),
        *((name, ctypes.c_int64) for name in ("n_layers", "n_rows")),
    ]


class _RaggedLinear(ctypes.Structure):
    # csrc/cuda/ragged_linear.cuh
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "weight", "bias", "row_index", "n_active")),
        ("out", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("capacity", "n_out", "n_in", "stride_x", "stride_w")),
        *((name, ctypes.c_int32) for name in ("activation", "number")),
    ]


# csrc/cuda/ragged_linear.cuh
RAGGED_LINEAR_ROWS = 8
_ACTIVATIONS = {"none": 0, "relu": 1, "gelu": 2}
_NUMBERS = {"torch.float32": 0, "torch.bfloat16": 1, "torch.float16": 2}


def build_info() -> dict[str, Any] | None:
    """What setup.py recorded: {"version", "libraries": {"cpu": {...}, "cuda": {...}}}, or None."""
    try:
        return json.loads((PACKAGE / "_build_info.json").read_text())
    except (OSError, ValueError):
        return None


def _build_entry(name: str) -> dict[str, Any] | None:
    return (build_info() or {}).get("libraries", {}).get(name)


def _open(name: str, abi: int) -> ctypes.CDLL:
    path = PACKAGE / f"_{name}.so"
    if not path.exists():
        reason = (_build_entry(name) or {}).get("reason")
        raise LibraryUnavailable(reason or f"{path.name} was never built: install dynkern again")
    try:
        library = ctypes.CDLL(str(path))
        found = getattr(library, f"dynkern_{name}_abi")()
    except (OSError, AttributeError) as error:
        raise LibraryUnavailable(f"{path.name} does not load: {error}") from error
    if found != abi:
        raise LibraryUnavailable(
            f"{path.name} is stale: its ABI is {found}, expected {abi}; install dynkern again"
        )
    return library


def bind_cpu(library: ctypes.CDLL) -> ctypes.CDLL:
    """Declare the signatures of csrc/cpu on a loaded library; returns it."""
    library.dynkern_cpu_feature.argtypes = [ctypes.c_int]
    library.dynkern_cpu_feature.restype = ctypes.c_char_p
    arguments = ctypes.POINTER(_KvCopyForward)
    library.dynkern_kv_copy_forward.argtypes = [arguments]
    library.dynkern_kv_copy_forward.restype = ctypes.c_int64
    library.dynkern_kv_copy_forward_range.argtypes = [arguments, ctypes.c_int64, ctypes.c_int64]
    library.dynkern_kv_copy_forward_range.restype = None
    native_engine.bind_engine(library)
    return library


def bind_cuda(library: ctypes.CDLL) -> ctypes.CDLL:
    """Declare the signatures of csrc/cuda on a loaded library; returns it."""
    library.dynkern_cuda_error_string.argtypes = [ctypes.c_int]
    library.dynkern_cuda_error_string.restype = ctypes.c_char_p
    library.dynkern_cuda_device_count.argtypes = [ctypes.POINTER(ctypes.c_int)]
    library.dynkern_cuda_kv_copy_forward.argtypes = [
        ctypes.POINTER(_KvCopyForward),
        ctypes.c_int,
        ctypes.c_void_p,
    ]
    library.dynkern_cuda_ragged_linear.argtypes = [
        ctypes.POINTER(_RaggedLinear),
        ctypes.c_int,
        ctypes.c_void_p,
    ]
    return library


@cache
def cpu_library() -> ctypes.CDLL:
    """csrc/cpu, loaded once; raises LibraryUnavailable with the reason.

    DYNKERN_CPU_ISA names the level that its kernels use, as set_cpu_isa does; ValueError, one line,
    where it names none that can be had.
    """
    library = bind_cpu(_open("cpu", CPU_ABI))
    cap = os.environ.get("DYNKERN_CPU_ISA")
    if cap:
        _set_isa(library, "DYNKERN_CPU_ISA", cap)
    return library


def _set_isa(library: ctypes.CDLL, argument: str, name: str) -> None:
    error = library.dynkern_cpu_set_isa(name.encode())
    if error == -2:
        raise ValueError(
            f"{argument}: got {name!r}, expected a level that this processor has "
            f"({', '.join(cpu_features(library)) or 'no extensions'})"
        )
    if error:
        raise ValueError(
            f"{argument}: got {name!r}, expected one of {', '.join(native_engine.ISA_LEVELS)}"
        )


def cpu_isa() -> str:
    """The instruction set level that the CPU engine's kernels use ("avx2", ...)."""
    return cpu_library().dynkern_cpu_isa().decode()


def set_cpu_isa(name: str) -> None:
    """Use a level: a name of native_engine.ISA_LEVELS, "auto" for the fastest there is.

    Not while a pass runs. ValueError, one line, for an unknown name or one that is not to be had.
    """
    _set_isa(cpu_library(), "isa", name)


def cpu_levels() -> list[str]:
    """The levels that set_cpu_isa takes here, lowest first."""
    held, found = cpu_isa(), []
    for name in native_engine.ISA_LEVELS[1:]:
        try:
            set_cpu_isa(name)
        except ValueError:
            continue
        found.append(name)
    set_cpu_isa(held)
    return found


@cache
def cuda_library() -> ctypes.CDLL:
    """csrc/cuda, loaded once (this needs no GPU); raises LibraryUnavailable with the reason."""
    return bind_cuda(_open("cuda", CUDA_ABI))


def cpu_missing() -> str | None:
    """Why the CPU kernels cannot run here, or None."""
    try:
        cpu_library()
    except LibraryUnavailable as error:
        return str(error)
    return None


def cuda_missing() -> str | None:
    """Why the CUDA kernels cannot run here (no library, driver or device), or None."""
    try:
        return _cuda_devices(cuda_library())[1]
    except LibraryUnavailable as error:
        return str(error)


def _cuda_error(library: ctypes.CDLL, error: int) -> str:
    return library.dynkern_cuda_error_string(error).decode()


def _cuda_devices(library: ctypes.CDLL) -> tuple[int, str | None]:
    """Number of devices, and why there is none."""
    count = ctypes.c_int(0)
    error = library.dynkern_cuda_device_count(ctypes.byref(count))
    if error or count.value == 0:
        # without any driver CUDA's own words are "driver version is insufficient"
        return 0, f"no CUDA device: {_cuda_error(library, error) if error else 'none found'}"
    return count.value, None


def cpu_features(library: ctypes.CDLL | None = None) -> list[str]:
    """Instruction sets that kernels may choose among and this processor has ("avx2", ...)."""
    library, features = library or cpu_library(), []
    while name := library.dynkern_cpu_feature(len(features)):
        features.append(name.decode())
    return features


def status() -> dict[str, dict[str, Any]]:
    """What `dynkern info` prints of the native libraries; raises only for a bad DYNKERN_CPU_ISA.

    "cpu" and "cuda" each: available (the library loads), path, reason (why it does not, else
    None), build (its entry of _build_info.json, else None). "cpu" also: isa, a list of feature
    names, and level, the one that the engine uses, or None. "cuda" also: devices, and
    devices_reason where there is none.
    """
    report: dict[str, dict[str, Any]] = {}
    for name, load in (("cpu", cpu_library), ("cuda", cuda_library)):
        reason = None
        try:
            load()
        except LibraryUnavailable as error:
            reason = str(error)
        report[name] = {
            "available": reason is None,
            "path": str(PACKAGE / f"_{name}.so"),
            "reason": reason,
            "build": _build_entry(name),
        }
    cpu, cuda = report["cpu"], report["cuda"]
    cpu["isa"] = cpu_features() if cpu["available"] else []
    cpu["level"] = cpu_isa() if cpu["available"] else None
    cuda["devices"], cuda["devices_reason"] = (
        _cuda_devices(cuda_library()) if cuda["available"] else (0, cuda["reason"])
    )
    return report


def _expect(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: Any, device: Any) -> None:
    if (tensor.shape, tensor.dtype, tensor.device) != (shape, dtype, device):
        raise ValueError(
            f"{name}: got {list(tensor.shape)} {tensor.dtype} on {tensor.device}, "
            f"expected {list(shape)} {dtype} on {device}"
        )
    if not tensor.is_contiguous():
        raise ValueError(f"{name}: got strides {tensor.stride()}, expected a contiguous tensor")


def _kv_copy_forward_arguments(
    device_type: str,
    k_cache: Tensor,
    v_cache: Tensor,
    lane: Tensor,
    source: Tensor,
    position: Tensor,
) -> _KvCopyForward:
    """The C struct of one call; raises ValueError on what raw pointers would not survive."""
    import torch

    device = k_cache.device
    if device.type != device_type:
        raise ValueError(f"k_cache: got a tensor on {device}, expected one on {device_type}")
    if k_cache.dim() != 4 or lane.dim() != 2:
        name, given, n = ("lane", lane, 2) if k_cache.dim() == 4 else ("k_cache", k_cache, 4)
        raise ValueError(f"{name}: got shape {list(given.shape)}, expected {n} dimensions")
    for name, tensor in (("k_cache", k_cache), ("v_cache", v_cache)):
        _expect(name, tensor, k_cache.shape, k_cache.dtype, device)
    for name, tensor in (("lane", lane), ("source", source)):
        _expect(name, tensor, lane.shape, torch.int32, device)
    _expect("position", position, lane.shape[1:], torch.int32, device)
    n_lanes, n_heads, n_positions, head_size = k_cache.shape
    return _KvCopyForward(
        *(tensor.data_ptr() for tensor in (k_cache, v_cache, lane, source, position)),
        n_lanes,
        n_heads,
        n_positions,
        head_size * k_cache.element_size(),
        *lane.shape,
    )


def kv_copy_forward_cpu(
    k_cache: Tensor, v_cache: Tensor, lane: Tensor, source: Tensor, position: Tensor
) -> None:
    """The op kv_copy_forward (ops/kv_copy_forward.py) on CPU tensors, in place.

    k_cache, v_cache: [n_lanes, H, T, Dh], one dtype; lane, source: int32 [L, B]; position: int32
    [B]; all contiguous. Raises ValueError on other tensors and, before anything is written, on a
    source, lane or position beyond its range.
    """
    arguments = _kv_copy_forward_arguments("cpu", k_cache, v_cache, lane, source, position)
    item = cpu_library().dynkern_kv_copy_forward(ctypes.byref(arguments))
    if item >= 0:
        layer, row = divmod(item, lane.shape[1])
        raise ValueError(
            f"kv_copy_forward: layer {layer}, row {row}: source {source[layer, row]}, its lanes or "
            f"position {position[row]} out of range, expected source < {lane.shape[0]}, lanes < "
            f"{k_cache.shape[0]}, 0 <= position < {k_cache.shape[2]}"
        )


def kv_copy_forward_cuda(
    k_cache: Tensor, v_cache: Tensor, lane: Tensor, source: Tensor, position: Tensor
) -> None:
    """The op kv_copy_forward on tensors of one CUDA device, in place, on the current stream.

    Tensors as for kv_copy_forward_cpu. Indices beyond their range copy nothing: to see them here
    would take a host sync. Raises ValueError on other tensors, RuntimeError when CUDA refuses.
    """
    import torch

    arguments = _kv_copy_forward_arguments("cuda", k_cache, v_cache, lane, source, position)
    library, device = cuda_library(), k_cache.device
    stream = torch.cuda.current_stream(device).cuda_stream
    error = library.dynkern_cuda_kv_copy_forward(ctypes.byref(arguments), device.index, stream)
    if error:
        raise RuntimeError(f"kv_copy_forward: CUDA: {_cuda_error(library, error)}")


def ragged_linear_cuda_refuses(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    row_index: Tensor | None,
    n_active: Tensor | None,
    activation: str,
) -> str | None:
    """Why the CUDA kernel does not take a call of ragged_linear, or None."""
    rows = len(x if row_index is None else row_index)
    if rows > RAGGED_LINEAR_ROWS:
        return f"got {rows} rows, expected up to {RAGGED_LINEAR_ROWS}"
    if str(x.dtype) not in _NUMBERS:
        return f"got {x.dtype}, expected float32, bfloat16 or float16"
    return None


def _ragged_linear_arguments(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    row_index: Tensor | None,
    n_active: Tensor | None,
    activation: str,
    out: Tensor,
) -> _RaggedLinear:
    """The C struct of one call; raises ValueError on what raw pointers would not survive."""
    tensors = {"weight": weight, "bias": bias, "row_index": row_index, "n_active": n_active}
    for name, tensor in tensors.items():
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"{name}: got a tensor on {tensor.device}, expected one on {x.device}")
    for name, tensor in (("x", x), ("weight", weight), ("bias", bias), ("row_index", row_index)):
        if tensor is not None and tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
            raise ValueError(f"{name}: got strides {tensor.stride()}, expected the last to be 1")
    pointers = (None if t is None else t.data_ptr() for t in (x, *tensors.values(), out))
    sizes = len(out), *weight.shape, x.stride(0), weight.stride(0)
    return _RaggedLinear(*pointers, *sizes, _ACTIVATIONS[activation], _NUMBERS[str(x.dtype)])


def ragged_linear_cuda(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    row_index: Tensor | None,
    n_active: Tensor | None,
    activation: str,
) -> Tensor:
    """The op ragged_linear (ops/ragged_linear.py) for up to RAGGED_LINEAR_ROWS rows.

    Tensors of one CUDA device, on its current stream; float32, bfloat16 or float16. Raises
    ValueError on other tensors, RuntimeError when CUDA refuses.
    """
    import torch

    x, weight = (t if t.stride(-1) == 1 else t.contiguous() for t in (x, weight))
    rows, device = len(x if row_index is None else row_index), x.device
    out = torch.empty((rows, weight.shape[0]), dtype=x.dtype, device=device)
    arguments = _ragged_linear_arguments(x, weight, bias, row_index, n_active, activation, out)
    library, stream = cuda_library(), torch.cuda.current_stream(device).cuda_stream
    error = library.dynkern_cuda_ragged_linear(ctypes.byref(arguments), device.index, stream)
    if error:
        raise RuntimeError(f"ragged_linear: CUDA: {_cuda_error(library, error)}")
    return out
