"""Attention over prompts of different lengths, and one step over the K/V cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.ops.case import Case, Rows, Set, element_bytes, layers_of, mean
from bench.ops.grid import Spec
from bench.ops.pool import Maker, Random

# tokens of the longest prompt, entries of the longest row; the shortest have half of them
PROMPT = 128
CONTEXT = 256


def _lengths(rows: int, longest: int) -> Tensor:
    return torch.linspace(longest, longest // 2, rows).long()


def ragged_attention_prefill(spec: Spec, make: Maker) -> Case:
    size, longest = spec.sizes, PROMPT if spec.shape != "tiny" else 16
    lengths = _lengths(spec.rows, longest)
    ends = [0, *lengths.cumsum(0).tolist()]
    packed = Random((ends[-1], 3, size.heads, size.head))
    # a library's caller keeps prompts padded, and pays for it in arithmetic
    pool = make.pool(packed, Random((3, spec.rows, size.heads, longest, size.head)))
    for row, (start, end) in enumerate(zip(ends, ends[1:], strict=False)):
        pool[0][1][:, row, :, : end - start] = pool[0][0][start:end].permute(1, 2, 0, 3)
    bounds, scale = make.ints(ends), size.head**-0.5
    real = (torch.arange(longest) < lengths[:, None]).to(make.device)

    def library(s: Set, layer: None) -> Tensor:
        return F.scaled_dot_product_attention(*s[1].unbind(0), is_causal=True, scale=scale)

    pairs = float((lengths * (lengths + 1) // 2).sum())
    return Case(
        spec,
        pool,
        [None],
        lambda s, layer: [*s[0].unbind(1), bounds, scale],
        library,
        4 * ends[-1] * size.hidden * element_bytes(make.dtype),
        4 * pairs * size.hidden,
        library_outputs=lambda y: y.transpose(1, 2)[real].flatten(1),
    )


@dataclass(frozen=True)
class Entries(Rows):
    """Rows and what a library's caller has at hand: lanes, lengths, the longest row's entries, and
    which entries are a row's own.
    """

    lanes: Tensor
    lengths: Tensor
    longest: int
    mask: Tensor


def ragged_attention_decode(spec: Spec, make: Maker) -> Case:
    size, rows = spec.sizes, spec.rows
    context = CONTEXT if spec.shape != "tiny" else 16
    caches = Random((rows, size.heads, context, size.head))
    pool = make.pool(Random((rows, 3, size.heads, size.head)), caches, caches)
    # what each row holds before its new entry
    lengths = make.ints(_lengths(rows, context) - 1)
    lane, scale = make.ints(torch.arange(rows)), size.head**-0.5
    element = element_bytes(make.dtype)

    def entries_of(layer: Rows) -> Entries:
        lanes = layer.active.long()
        own = lengths.long()[lanes]
        longest = int(own.max()) + 1 if layer.n else 0
        mask = torch.arange(longest, device=make.device) <= own[:, None]
        return Entries(layer.index, layer.count, layer.n, lanes, own, longest, mask[:, None, None])

    layers = [entries_of(layer) for layer in layers_of(spec, make)]

    def library(s: Set, layer: Entries) -> Tensor:
        qkv, *kv = s
        q, *new = qkv[: layer.n].unbind(1)
        if not layer.n:
            return q.flatten(1)
        seen = []
        for cache, part in zip(kv, new, strict=True):
            cache[layer.lanes, :, layer.lengths] = part
            own = cache if layer.n == rows else cache.index_select(0, layer.lanes)
            seen.append(own[:, :, : layer.longest])
        y = F.scaled_dot_product_attention(q[:, :, None], *seen, attn_mask=layer.mask, scale=scale)
        return y.flatten(1)

    def arguments(s: Set, layer: Entries) -> list[Any]:
        qkv, *kv = s
        return [*qkv.unbind(1), *kv, lane, lengths, layer.index, layer.count, scale]

    def written(args: list[Any], layer: Entries) -> list[Tensor]:
        return [cache[layer.lanes, :, layer.lengths] for cache in args[3:5]]

    entries = [int(layer.lengths.sum()) + layer.n for layer in layers]
    # the cached part of K and V, and q, k, v, y
    moved = [
        element * size.hidden * (2 * (count - layer.n) + 6 * layer.n)
        for count, layer in zip(entries, layers, strict=True)
    ]
    return Case(
        spec,
        pool,
        layers,
        arguments,
        library,
        mean(moved),
        4.0 * mean(entries) * size.hidden,
        mutated=(3, 4),
        rows=lambda layer: [layer.n],
        written=written,
    )
