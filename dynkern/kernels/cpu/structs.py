"""The structs of csrc/cpu/ops.h, field by field, and the calls that they go through."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import torch
from torch import Tensor

from dynkern.kernels import native
from dynkern.kernels.native_engine import DTYPES, check_memory

_PTR, _I64, _F64 = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double

DTYPE_CODES = {getattr(torch, name): code for name, code in DTYPES.items()}


def _fields(pointers_and_sizes: str) -> list[tuple[str, type]]:
    """Names in order; those with a star are pointers, the others int64."""
    names = pointers_and_sizes.split()
    return [(name.lstrip("*"), _PTR if name.startswith("*") else _I64) for name in names]


class Fault(ctypes.Structure):
    """Which element of which argument was out of range."""

    _fields_ = [("argument", ctypes.c_char_p), *_fields("at value low high")]


class Embed(ctypes.Structure):
    """EmbedOp."""

    _fields_ = _fields(
        "*token_ids *positions *token_weight token_stride *position_weight position_stride "
        "*project_in project_stride *out n vocab embed hidden n_positions position_offset dtype "
        "n_threads"
    )


class RouteCompact(ctypes.Structure):
    """RouteCompactOp."""

    _fields_ = _fields("*keep keep_stride *row_index *n_active n_layers n_rows")


class ResidualBypassLayerNorm(ctypes.Structure):
    """ResidualBypassLayerNormOp."""

    _fields_ = [
        *_fields(
            "*h h_stride *delta delta_stride *delta_rows *n_delta *weight *bias *row_index "
            "*n_active *out n_rows delta_capacity capacity hidden dtype weight_dtype bias_dtype "
            "norm n_threads"
        ),
        ("eps", _F64),
    ]


class RaggedLinear(ctypes.Structure):
    """RaggedLinearOp."""

    _fields_ = _fields(
        "*x x_stride *weight weight_stride *bias *row_index *n_active *out x_rows capacity n k "
        "dtype activation n_threads"
    )


class KvProject(ctypes.Structure):
    """KvProjectOp."""

    _fields_ = _fields(
        "*x x_stride *weight weight_stride *bias *k_cache k_lane_stride *v_cache v_lane_stride "
        "*lane *position *n_active capacity k n_lanes n_heads n_positions head_size dtype n_threads"
    )


class LmHeadArgmax(ctypes.Structure):
    """LmHeadArgmaxOp."""

    _fields_ = _fields(
        "*x x_stride *weight weight_stride *n_active *token *top *margin *log_sum capacity vocab k "
        "dtype n_threads"
    )


class Gate(ctypes.Structure):
    """GateOp."""

    _fields_ = _fields(
        "*h h_stride *weights *weight_strides *biases *widths *uniform *logits *keep n n_layers "
        "dtype uniform_dtype n_threads"
    )


class AttentionPrefill(ctypes.Structure):
    """AttentionPrefillOp."""

    _fields_ = [
        *_fields(
            "*q q_stride *k k_stride *v v_stride *cu_seqlens *out n_tokens n_rows n_heads "
            "head_size dtype n_threads"
        ),
        ("scale", _F64),
    ]


class AttentionDecode(ctypes.Structure):
    """AttentionDecodeOp."""

    _fields_ = [
        *_fields(
            "*q q_stride *k k_stride *v v_stride *k_cache k_lane_stride *v_cache v_lane_stride "
            "*lane *length *row_index *n_active *out capacity n_rows n_lanes n_heads n_positions "
            "head_size dtype n_threads"
        ),
        ("scale", _F64),
    ]


class Sample(ctypes.Structure):
    """SampleOp."""

    _fields_ = [
        *_fields(
            "*logits logits_stride *history history_stride *request *step *token n vocab "
            "history_length dtype"
        ),
        ("seed", ctypes.c_uint64),
        *_fields("top_k n_threads"),
        *((name, _F64) for name in ("temperature", "top_p", "repetition_penalty")),
    ]


def pointer(tensor: Tensor | None) -> int | None:
    """Where a tensor's data begins; None for none."""
    return None if tensor is None else tensor.data_ptr()


def matrix(tensor: Tensor | None) -> tuple[int | None, int]:
    """Pointer, and elements between rows: two fields of a struct."""
    return (None, 0) if tensor is None else (tensor.data_ptr(), tensor.stride(0))


@cache
def _function(name: str) -> Any:
    function = getattr(native.cpu_library(), f"dynkern_cpu_op_{name}")
    function.restype, function.argtypes = _I64, [_PTR, _PTR]
    return function


def call(name: str, arguments: ctypes.Structure) -> None:
    """Run dynkern_cpu_op_<name>. ValueError, one line, on an index out of range; MemoryError."""
    fault = Fault()
    if not check_memory(_function(name)(ctypes.byref(arguments), ctypes.byref(fault)), name):
        return
    argument = fault.argument.decode()
    if fault.low > fault.high:
        raise ValueError(
            f"{argument}: got {fault.value} again at {fault.at}, expected distinct rows"
        )
    raise ValueError(
        f"{argument}: got {fault.value} at {fault.at}, expected {fault.low} to {fault.high}"
    )
