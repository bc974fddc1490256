"""Calls of every op at the shapes of OPT layers, with the bytes and operations that each needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from dynkern import ops
from dynkern.routes import copy_source

DTYPES = ("float32", "bfloat16", "float16")
# entries that a row attends to, and tokens of a prompt
CONTEXT = 256
PROMPT = 128
GATE_WIDTH = 64
I32 = torch.int32


@dataclass(frozen=True)
class Sizes:
    """One model's sizes. pool: bytes of weights to take turns with, more than the caches hold."""

    name: str
    hidden: int
    layers: int
    heads: int
    ffn: int
    vocab: int
    pool: int = 256 << 20


SHAPES = {
    "tiny": Sizes("tiny", 64, 3, 2, 128, 320, pool=1 << 16),
    "125m": Sizes("125m", 768, 12, 12, 3072, 50272),
    "1.3b": Sizes("1.3b", 2048, 24, 32, 8192, 50272),
}


@dataclass(frozen=True)
class Case:
    """One call. bytes: that it must read and write at least once; flops: a multiply-add is two."""

    op: str
    name: str
    run: Callable[[], Any]
    bytes: int
    flops: int = 0


def _nbytes(*tensors: Tensor) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _weights(size: Sizes, dtype: torch.dtype, *shape: int) -> Iterator[Tensor]:
    """Weights without end, the same ones again only after a pool of others."""
    one = torch.randn(*shape).to(dtype)
    count = max(1, size.pool // one.nbytes)
    return cycle([one, *(one.clone() for _ in range(count - 1))])


def _linear(size: Sizes, dtype: torch.dtype, rows: int) -> Iterator[Case]:
    d, f = size.hidden, size.ffn
    for name, n, k in (("qkv", 3 * d, d), ("out", d, d), ("fc1", f, d), ("fc2", d, f)):
        weights, bias = _weights(size, dtype, n, k), torch.randn(n).to(dtype)
        x, index = torch.randn(rows, k).to(dtype), torch.randperm(rows).to(I32)
        act = "relu" if name == "fc1" else "none"

        def run(weights=weights, x=x, bias=bias, index=index, act=act) -> Tensor:
            return ops.ragged_linear(x, next(weights), bias, index, None, act)

        moved = (n * k + rows * (n + k)) * x.element_size()
        yield Case("ragged_linear", name, run, moved, 2 * n * k * rows)


def _head(size: Sizes, dtype: torch.dtype, rows: int) -> Iterator[Case]:
    weights = _weights(size, dtype, size.vocab, size.hidden)
    x = torch.randn(rows, size.hidden).to(dtype)
    count = size.vocab * size.hidden
    run = lambda: ops.lm_head_argmax(x, next(weights))  # noqa: E731
    yield Case("lm_head_argmax", "", run, count * x.element_size(), 2 * count * rows)


def _embed(size: Sizes, dtype: torch.dtype, rows: int) -> Iterator[Case]:
    tokens = torch.randn(size.vocab, size.hidden).to(dtype)
    places = torch.randn(2050, size.hidden).to(dtype)
    ids, at = torch.randint(size.vocab, (rows,)), torch.randint(2048, (rows,))
    moved = 3 * rows * size.hidden * tokens.element_size()
    yield Case("embed", "", lambda: ops.embed(ids, at, tokens, places), moved)


def _route_compact(size: Sizes, dtype: torch.dtype, rows: int) -> Iterator[Case]:
    keep = torch.rand(size.layers, rows) < 0.5
    yield Case("route_compact", "", lambda: ops.route_compact(keep), 5 * keep.numel())


def _bypass_arguments(size: Sizes, dtype: torch.dtype, rows: int) -> list[Tensor | None]:
    """Arguments of the residual bypass and its norm, up to n_active."""
    h, delta = (torch.randn(rows, size.hidden).to(dtype) for _ in range(2))
    weight, bias = (torch.randn(size.hidden).to(dtype) for _ in range(2))
    delta.mul_(1e-3)  # h takes it again and again
    index = torch.randperm(rows).to(I32)
    return [h, delta, index, None, weight, bias, index, None]


def _bypass_gate(size: Sizes, dtype: torch.dtype, rows: int) -> Iterator[Case]:
    args = _bypass_arguments(size, dtype, rows)
    weight, bias = torch.randn(2, size.hidden).to(dtype), torch.randn(2).to(dtype)
    run = lambda: ops.residual_bypass_layer_norm_gate(*args, "pre", 1e-5, weight, bias)  # noqa: E731
    flops = 4 * rows * size.hidden
    yield Case("residual_bypass_layer_norm.gate", "", run, 4 * args[0].nbytes, flops)


def _bypass_linear(size: Sizes, dtype: torch.dtype, rows: int) -> Iterator[Case]:
    args, d, f = _bypass_arguments(size, dtype, rows), size.hidden, size.ffn
    weights, bias = _weights(size, dtype, f, d), torch.randn(f).to(dtype)

    def run() -> Tensor:
        return ops.residual_bypass_linear(*args, "pre", 1e-5, next(weights), bias, "relu")[1]

    moved = (f * d + rows * (f + 4 * d)) * bias.element_size()
    yield Case("residual_bypass_linear", "fc1", run, moved, 2 * f * d * rows)


def _bypass(size: Sizes, dtype: torch.dtype, rows: int) -> Iterator[Case]:
    args = _bypass_arguments(size, dtype, rows)
    h = args[0]

    def run() -> Tensor:
        return ops.residual_bypass_layer_norm(*args)

    yield Case("residual_bypass_layer_norm", "", run, 4 * h.nbytes)


def _prefill(size: Sizes, dtype: torch.dtype, rows: int) -> Iterator[Case]:
    rows = min(rows, 8)  # prompts
    head = size.hidden // size.heads
    qkv = torch.randn(rows * PROMPT, 3, size.heads, head).to(dtype)
    q, k, v = qkv.unbind(1)
    ends = torch.arange(rows + 1, dtype=I32) * PROMPT
    run = lambda: ops.ragged_attention_prefill(q, k, v, ends, head**-0.5)  # noqa: E731
    pairs = rows * PROMPT * (PROMPT + 1) // 2
    moved = qkv.nbytes // 3 * 4
    name = f"{rows} x {PROMPT} tokens"
    yield Case("ragged_attention.prefill", name, run, moved, 4 * pairs * size.hidden)


def _decode(size: Sizes, dtype: torch.dtype, rows: int) -> Iterator[Case]:
    head = size.hidden // size.heads
    qkv = torch.randn(rows, 3, size.heads, head).to(dtype)
    lanes = torch.randn(rows, size.heads, CONTEXT, head).to(dtype)
    layers = cycle([(lanes.clone(), lanes.clone()) for _ in range(4)])
    lane = torch.randperm(rows).to(I32)
    # ragged: from half of the entries to all
    length = torch.linspace(CONTEXT // 2, CONTEXT - 1, rows).to(I32)
    index = torch.arange(rows, dtype=I32)

    def run() -> Tensor:
        return ops.ragged_attention_decode(
            *qkv.unbind(1), *next(layers), lane, length, index, None, head**-0.5
        )

    entries = int(length.sum()) + rows
    moved = 2 * entries * size.hidden * qkv.element_size()
    yield Case("ragged_attention.decode", "", run, moved, 4 * entries * size.hidden)


def _kv_project(size: Sizes, dtype: torch.dtype, rows: int) -> Iterator[Case]:
    d, head = size.hidden, size.hidden // size.heads
    weights, bias = _weights(size, dtype, 2 * d, d), torch.randn(2 * d).to(dtype)
    x = torch.randn(rows, d).to(dtype)
    caches = [torch.zeros(rows, size.heads, CONTEXT, head, dtype=dtype) for _ in range(2)]
    lane, position = torch.arange(rows, dtype=I32), torch.full((rows,), 7, dtype=I32)
    run = lambda: ops.kv_project(x, next(weights), bias, *caches, lane, position)  # noqa: E731
    moved = (2 * d * d + 3 * rows * d) * x.element_size()
    yield Case("kv_project", "", run, moved, 4 * d * d * rows)


def _kv_copy_forward(size: Sizes, dtype: torch.dtype, rows: int) -> Iterator[Case]:
    shape = (size.layers * rows, size.heads, 16, size.hidden // size.heads)
    caches = [torch.zeros(shape, dtype=dtype) for _ in range(2)]
    keep = torch.zeros(size.layers, rows, dtype=torch.bool)
    keep[::2] = True
    source = copy_source(keep, torch.ones(rows, dtype=torch.bool))
    lane = torch.arange(size.layers * rows, dtype=I32).view(size.layers, rows)
    position = torch.full((rows,), 5, dtype=I32)
    run = lambda: ops.kv_copy_forward(*caches, lane, source, position)  # noqa: E731
    moved = 4 * int((~keep).sum()) * size.hidden * caches[0].element_size()
    yield Case("kv_copy_forward", "half of the layers", run, moved)


def _gate(size: Sizes, dtype: torch.dtype, rows: int) -> Iterator[Case]:
    widths = (size.hidden, GATE_WIDTH, 2)
    pairs = list(zip(widths, widths[1:], strict=False))
    weights = [torch.randn(n, k).to(dtype) for k, n in pairs]
    biases = [torch.randn(n).to(dtype) for n in widths[1:]]
    h = torch.randn(rows, size.hidden).to(dtype)
    flops = 2 * rows * sum(n * k for k, n in pairs)
    yield Case("gate", "", lambda: ops.gate(h, weights, biases), _nbytes(h, *weights), flops)


def _sample(size: Sizes, dtype: torch.dtype, rows: int) -> Iterator[Case]:
    logits, at = torch.randn(rows, size.vocab).to(dtype), torch.arange(rows)
    for name, settings in (
        ("temperature 1", (1.0, 0, 1.0)),
        ("top-k 50, top-p 0.9", (1.0, 50, 0.9)),
    ):

        def run(settings=settings) -> Tensor:
            return ops.sample(logits, None, at, at, 0, *settings)

        yield Case("sample", name, run, logits.nbytes)


CASES: dict[str, Callable[[Sizes, torch.dtype, int], Iterator[Case]]] = {
    "embed": _embed,
    "route_compact": _route_compact,
    "residual_bypass_layer_norm": _bypass,
    "residual_bypass_layer_norm.gate": _bypass_gate,
    "residual_bypass_linear": _bypass_linear,
    "ragged_linear": _linear,
    "ragged_attention.prefill": _prefill,
    "ragged_attention.decode": _decode,
    "kv_project": _kv_project,
    "kv_copy_forward": _kv_copy_forward,
    "gate": _gate,
    "lm_head_argmax": _head,
    "sample": _sample,
}
