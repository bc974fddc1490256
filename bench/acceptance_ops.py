"""What GPU acceptance times of single ops: every backend that runs one, beside the reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.device_timing import time_op
from dynkern.ops import OPS, use_backend

# hidden, heads, ffn, vocabulary, positions
SIZES = {"1.3b": (2048, 32, 8192, 50272, 1024), "tiny": (64, 2, 96, 131, 16)}
# of the largest true value: two roundings of the dtype and a sum of a few thousand terms
ALLOWED = {torch.bfloat16: 2e-2, torch.float32: 1e-4}


@dataclass(frozen=True)
class OpCase:
    """One call of one op. moved: bytes that it has to read and write. place: of the output that is
    held against the reference's.
    """

    op: str
    name: str
    rows: int
    make: Callable[[], list[Any]]
    moved: int
    place: int = 0


class _Maker:
    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self.generator = torch.Generator(device).manual_seed(0)

    def floats(self, *shape: int, scale: float = 1.0) -> Tensor:
        values = torch.randn(shape, generator=self.generator, device=self.device)
        return (values * scale).to(self.dtype)

    def order(self, rows: int) -> Tensor:
        return torch.arange(rows, dtype=torch.int32, device=self.device)

    def count(self, n: int) -> Tensor:
        return torch.tensor([n], dtype=torch.int32, device=self.device)


def op_cases(dry_run: bool, device: torch.device, dtype: torch.dtype) -> Iterator[OpCase]:
    """Decode's ops at the sizes of one model, for few and for many rows."""
    size = "tiny" if dry_run else "1.3b"
    hidden, heads, ffn, vocab, positions = SIZES[size]
    make, element = _Maker(device, dtype), torch.empty((), dtype=dtype).element_size()
    f, head_size = make.floats, hidden // heads

    for rows in (1, 3) if dry_run else (1, 4, 8, 64, 512):
        for name, n, k in (("qkv", 3 * hidden, hidden), ("fc1", ffn, hidden), ("fc2", hidden, ffn)):

            def linear(rows=rows, n=n, k=k) -> list:
                rest = f(n, k, scale=k**-0.5), f(n), make.order(rows), make.count(rows), "relu"
                return [f(rows, k), *rest]

            moved = element * (n * k + n + rows * (n + k))
            yield OpCase("ragged_linear", f"{size} {name}", rows, linear, moved)

        def bypass(rows=rows) -> list:
            lists = f(rows, hidden), make.order(rows), make.count(rows), f(hidden), f(hidden)
            return [f(rows, hidden), *lists, make.order(rows), make.count(rows), "pre", 1e-5]

        moved = element * hidden * (4 * rows + 2)
        yield OpCase("residual_bypass_layer_norm", size, rows, bypass, moved)

        def fused(rows=rows) -> list:
            weight = f(ffn, hidden, scale=hidden**-0.5)
            return [*bypass(rows), weight, f(ffn), "relu"]

        moved = element * (ffn * hidden + ffn + rows * (3 * hidden + ffn) + 2 * hidden)
        yield OpCase("residual_bypass_linear", f"{size} fc1", rows, fused, moved, place=1)

        if rows <= 64:

            def attend(rows=rows) -> list:
                qkv = (f(rows, heads, head_size) for _ in range(3))
                cache = (f(rows, heads, positions, head_size) for _ in range(2))
                length = torch.full_like(make.order(rows), positions - 1)
                lists = make.order(rows), length, make.order(rows), make.count(rows)
                return [*qkv, *cache, *lists, head_size**-0.5]

            moved = 2 * element * rows * hidden * (positions + 3)
            yield OpCase("ragged_attention.decode", size, rows, attend, moved)

            def head(rows=rows) -> list:
                return [f(rows, hidden), f(vocab, hidden, scale=0.02), make.count(rows)]

            # the log-sum-exp: tokens may differ where two logits nearly tie
            moved = element * hidden * (vocab + rows)
            yield OpCase("lm_head_argmax", size, rows, head, moved, place=3)


def measure_op(
    case: OpCase, device: torch.device, dtype: torch.dtype, repeats: int
) -> list[dict[str, Any]]:
    """A row for the reference and for each kernel that runs here; AssertionError where one errs."""
    op, args = OPS[case.op], case.make()
    backends = ["reference"]
    for backend, kernel in op.kernels.items():
        fits = (device.type == "cpu") == (backend == "cpu")
        if backend != "reference" and fits and kernel.missing() is None:
            if kernel.refuses is None or kernel.refuses(*args) is None:
                backends.append(backend)
    rows: list[dict[str, Any]] = []
    true = size = None
    for backend in backends:
        with use_backend(backend):
            found = op.torch_op(*_copied(args))
            got = (found[case.place] if isinstance(found, tuple) else found).float()
            if true is None:
                true, size = got, got.abs().max()
            error = float((got - true).abs().max() / size)
            if not error <= ALLOWED[dtype]:
                raise AssertionError(f"{case.op} {case.name}, {case.rows} rows: {backend}: {error}")
            timed = _copied(args)
            times = time_op(lambda timed=timed: op.torch_op(*timed), device, repeats)
        rows.append(
            {
                "case": f"{case.op} {case.name} {backend}",
                "rows": case.rows,
                "seconds": times.median,
                "p20": times.p20,
                "p80": times.p80,
                "bytes": case.moved,
                "bytes_per_second": case.moved / times.median,
                "speedup": (rows[0]["seconds"] if rows else times.median) / times.median,
            }
        )
    return rows


def _copied(args: list[Any]) -> list[Any]:
    """Fresh tensors: an op that writes in place must not feed the next backend."""
    return [value.clone() if isinstance(value, Tensor) else value for value in args]
