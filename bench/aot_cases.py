"""Launches to compile ahead of time: the ops' own launchers on tensors without memory, at the sizes
of OPT-125m, OPT-1.3B and OPT-6.7B.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dynkern.kernels.triton.common import Launch, recording
from dynkern.ops import OPS

VOCAB = 50272
# hidden, heads, ffn
MODELS = {"125m": (768, 12, 3072), "1.3b": (2048, 32, 8192), "6.7b": (4096, 32, 16384)}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
POSITIONS = 2048


@dataclass(frozen=True)
class Case:
    """One launch of one op."""

    op: str
    name: str
    dtype: str
    launch: Launch

    @property
    def kernel(self) -> str:
        return self.launch.kernel.__name__.lstrip("_")


class _Shapes:
    """Arguments of ops without memory, in one dtype."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def floats(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device="meta")

    def ints(self, *shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")


Call = tuple[str, str, list]


def _linears(make: _Shapes) -> Iterator[Call]:
    f, one = make.floats, make.ints(1)
    for model, rows, n, k, act in (
        ("1.3b qkv", 8, 6144, 2048, "none"),
        ("1.3b fc1", 8, 8192, 2048, "relu"),
        ("1.3b fc2", 8, 2048, 8192, "none"),
        ("125m out", 8, 768, 768, "none"),
        ("1.3b fc1", 32, 8192, 2048, "relu"),
        ("1.3b fc2", 64, 2048, 8192, "none"),
        ("1.3b fc1", 512, 8192, 2048, "relu"),
        ("1.3b out", 512, 2048, 2048, "none"),
    ):
        index = make.ints(rows) if act == "relu" else None
        args = [f(rows, k), f(n, k), f(n), index, one, act]
        yield "ragged_linear", f"{model} {rows} rows", args
    for rows in (8, 512):
        cache = f(24 * rows, 32, POSITIONS, 64)
        places = make.ints(rows), make.ints(rows)
        args = [f(rows, 2048), f(4096, 2048), f(4096), cache, cache, *places, one]
        yield "kv_project", f"1.3b {rows} rows", args


def _attention(make: _Shapes) -> Iterator[Call]:
    for model, rows in (("125m", 1), ("1.3b", 8), ("1.3b", 64), ("6.7b", 8)):
        hidden, heads, _ = MODELS[model]
        size = hidden // heads
        # strided views of one product, as the executor hands them over
        qkv = make.floats(rows, 3, heads, size).unbind(1)
        cache = make.floats(24 * rows, heads, POSITIONS, size)
        rows_of = make.ints(rows), make.ints(rows), make.ints(rows), make.ints(1)
        args = [*qkv, cache, cache, *rows_of, size**-0.5]
        yield "ragged_attention.decode", f"{model} {rows} rows", args
    for model in ("1.3b", "6.7b"):
        hidden, heads, _ = MODELS[model]
        size = hidden // heads
        qkv = make.floats(1024, 3, heads, size).unbind(1)
        args = [*qkv, make.ints(9), size**-0.5]
        yield "ragged_attention.prefill", f"{model} 8 x 128", args


def _norms(make: _Shapes) -> Iterator[Call]:
    f, one = make.floats, make.ints(1)
    for model, rows, norm, with_delta in (
        ("1.3b", 8, "pre", True),
        ("1.3b", 8, "post", True),
        ("6.7b", 512, "pre", True),
        ("1.3b", 4096, "pre", True),
        ("1.3b", 8, "none", False),
    ):
        hidden = MODELS[model][0]
        delta = (f(rows, hidden), make.ints(rows), one) if with_delta else (None, None, None)
        args = [f(rows, hidden), *delta, f(hidden), f(hidden), make.ints(rows), one, norm, 1e-5]
        yield "residual_bypass_layer_norm", f"{model} {norm} {rows} rows", args
        if rows == 8 and norm == "pre":
            gated = [*args, f(2, hidden), f(2), None]
            yield "residual_bypass_layer_norm.gate", f"{model} {rows} rows", gated
    for model, rows, n, norm, act in (
        ("1.3b qkv", 8, 6144, "pre", "none"),
        ("1.3b fc1", 64, 8192, "pre", "relu"),
        ("1.3b fc1", 8, 8192, "post", "relu"),
    ):
        delta = f(rows, 2048), make.ints(rows), one, f(2048), f(2048)
        linear = f(n, 2048), f(n), act
        args = [f(rows, 2048), *delta, make.ints(rows), one, norm, 1e-5, *linear]
        yield "residual_bypass_linear", f"{model} {norm} {rows} rows", args
    weights = [f(64, 2048), f(2, 64)], [f(64), f(2)]
    yield "gate", "1.3b 64 8 rows", [f(8, 2048), *weights, f(8)]
    yield "gate", "1.3b 8 rows", [f(8, 2048), [f(2, 2048)], [f(2)], None]


def _ends(make: _Shapes) -> Iterator[Call]:
    f, long = make.floats, torch.int64
    ids = make.ints(8, dtype=long), make.ints(8, dtype=long)
    yield "embed", "1.3b 8 rows", [*ids, f(VOCAB, 2048), f(2050, 2048), None, 2]
    yield "embed", "350m 8 rows", [*ids, f(VOCAB, 512), f(2050, 1024), f(1024, 512), 2]
    for rows in (8, 32, 64):
        yield "lm_head_argmax", f"1.3b {rows} rows", [f(rows, 2048), f(VOCAB, 2048), make.ints(1)]
    history = make.ints(8, POSITIONS, dtype=long)
    for name, settings in (
        ("greedy", (0.0, 0, 1.0, 1.0)),
        ("temperature", (0.7, 0, 1.0, 1.0)),
        ("top-k, top-p, penalty", (0.7, 40, 0.9, 1.2)),
    ):
        yield "sample", f"8 rows {name}", [f(8, VOCAB), history, *ids, 11, *settings]


def _moves(make: _Shapes) -> Iterator[Call]:
    cache = make.floats(24 * 8, 32, POSITIONS, 64)
    lane = make.ints(24, 8)
    yield "kv_copy_forward", "1.3b 8 rows", [cache, cache, lane, lane, make.ints(8)]
    if make.dtype == torch.bfloat16:  # bits alone
        yield "route_compact", "24 x 64", [make.ints(24, 64, dtype=torch.bool)]


_CALLS: tuple[Callable[[_Shapes], Iterator[Call]], ...] = (
    _linears,
    _attention,
    _norms,
    _ends,
    _moves,
)


def cases() -> list[Case]:
    """Every launch, each compilation once: cases that differ in grids alone are one."""
    found: list[Case] = []
    seen = set()
    for dtype_name, dtype in DTYPES.items():
        make = _Shapes(dtype)
        for op, name, args in (call for calls in _CALLS for call in calls(make)):
            with recording() as launches:
                OPS[op].kernels["triton"].function(*args)
            for launch in launches:
                key = repr(specialise(launch))
                if key not in seen:
                    seen.add(key)
                    found.append(Case(op, name, dtype_name, launch))
    return found


_TYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "u8",
}


def specialise(launch: Launch) -> tuple:
    """(kernel, signature, constants, divisible places, warps, stages) as triton's JIT has them:
    None and 1 are constants, addresses and numbers that 16 divides are marked.
    """
    kernel = launch.kernel
    signature, constants, divisible = {}, dict(launch.constants), []
    for place, name in enumerate(kernel.arg_names):
        if place >= len(launch.args):
            signature[name] = "constexpr"
            continue
        value, fixed = launch.args[place], kernel.params[place].do_not_specialize
        if isinstance(value, Tensor):
            signature[name] = f"*{_TYPES[value.dtype]}"
            if value.storage_offset() * value.element_size() % 16 == 0:
                divisible.append(place)
        elif value is None or (isinstance(value, int) and value == 1 and not fixed):
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i32" if -(1 << 31) <= value < 1 << 31 else "i64"
            if value % 16 == 0 and not fixed:
                divisible.append(place)
    return kernel.__name__, signature, constants, divisible, launch.num_warps, launch.num_stages
