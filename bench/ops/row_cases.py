"""Ops over rows, without weights worth the name: what they move is rows, K/V entries or logits."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.ops.case import DRAWS, Case, Rows, Set, element_bytes, mean, pairs_of
from bench.ops.grid import Spec, active
from bench.ops.pool import MOST_SETS, Maker, Random
from bench.ops.weight_cases import EPS, gathered
from dynkern.routes import copy_source

GATE_WIDTH = 64
TABLE = 2050
TOP_K, TOP_P = 50, 0.9


def embed(spec: Spec, make: Maker) -> Case:
    d, vocab, rows = spec.sizes.hidden, spec.sizes.vocab, spec.rows
    tokens, places = make.floats(vocab, d), make.floats(TABLE, d)
    moved = 3 * rows * d * element_bytes(make.dtype)
    # the tables stay, the rows that are read move on
    count = make.sets(moved)
    ids = make.ints(torch.randint(vocab, (count, rows)), torch.int64)
    at = make.ints(torch.randint(TABLE - 2, (count, rows)), torch.int64)

    def library(s: Set, layer: None) -> Tensor:
        return tokens.index_select(0, s[0]).add_(places.index_select(0, s[1] + 2))

    return Case(
        spec,
        list(zip(ids.unbind(0), at.unbind(0), strict=True)),
        [None],
        lambda s, layer: [*s, tokens, places, None, 2],
        library,
        moved,
    )


def route_compact(spec: Spec, make: Maker) -> Case:
    layers, rows = spec.sizes.layers, spec.rows
    count = make.sets(layers * rows)
    drawn = torch.stack([active(spec.routes, layers, rows) for _ in range(min(count, DRAWS))])
    bits = drawn.repeat(-(-count // len(drawn)), 1, 1)[:count].to(make.device)
    order = torch.arange(rows, dtype=torch.int32, device=make.device).expand(layers, rows)

    def library(s: Set, layer: None) -> tuple[Tensor, Tensor]:
        # a stable partition by running counts, linear where a sort is not
        (keep,) = s
        kept = keep.cumsum(dim=1)
        n = kept[:, -1:]
        place = torch.where(keep, kept - 1, n + (~keep).cumsum(dim=1) - 1)
        index = torch.empty_like(order, memory_format=torch.contiguous_format)
        return index.scatter_(1, place, order), n[:, 0].to(torch.int32)

    return Case(
        spec,
        [(part,) for part in bits.unbind(0)],
        [None],
        lambda s, layer: list(s),
        library,
        layers * (5 * rows + 4),
        exact=True,
    )


def _bypass(spec: Spec, make: Maker, gated: bool) -> Case:
    d, rows = spec.sizes.hidden, spec.rows
    # h takes delta again and again
    pool = make.pool(Random((rows, d)), Random((rows, d), 1e-3))
    norm, layers = (make.floats(d), make.floats(d)), pairs_of(spec, make)
    gate = (make.floats(2, d, scale=d**-0.5), make.floats(2), None) if gated else ()
    element = element_bytes(make.dtype)

    def library(s: Set, pair: tuple[Rows, Rows]) -> Any:
        h, delta = s
        ran, run = pair
        if ran.n == rows:
            h.add_(delta)
        else:
            h.index_add_(0, ran.active, delta[: ran.n])
        y = F.layer_norm(gathered(h, run), (d,), *norm, EPS)
        if not gated:
            return y
        logits = F.linear(h, gate[0], gate[1])
        return y, logits, logits[:, 1] > logits[:, 0]

    def arguments(s: Set, pair: tuple[Rows, Rows]) -> list[Any]:
        ran, run = pair
        lists = [*s, ran.index, ran.count, *norm, run.index, run.count]
        return [*lists, "pre", EPS, *gate]

    def moved(ran: Rows, run: Rows) -> int:
        touched = {*ran.active.tolist(), *run.active.tolist()}
        read = rows if gated else len(touched)
        return element * d * (read + 2 * ran.n + run.n + 2 + 2 * gated)

    return Case(
        spec,
        pool,
        layers,
        arguments,
        library,
        mean([moved(*pair) for pair in layers]),
        4.0 * rows * d if gated else 0.0,
        mutated=(0,),
        rows=lambda pair: [pair[1].n, None, None],
    )


def residual_bypass_layer_norm(spec: Spec, make: Maker) -> Case:
    return _bypass(spec, make, gated=False)


def residual_bypass_layer_norm_gate(spec: Spec, make: Maker) -> Case:
    return _bypass(spec, make, gated=True)


def gate(spec: Spec, make: Maker) -> Case:
    d, rows = spec.sizes.hidden, spec.rows
    first, last = Random((GATE_WIDTH, d), d**-0.5), Random((2, GATE_WIDTH), GATE_WIDTH**-0.5)
    pool = make.pool(Random((rows, d)), first, last)
    biases = [make.floats(GATE_WIDTH), make.floats(2)]

    def library(s: Set, layer: None) -> tuple[Tensor, Tensor]:
        h, *weights = s
        logits = F.linear(F.linear(h, weights[0], biases[0]).relu_(), weights[1], biases[1])
        return logits, logits[:, 1] > logits[:, 0]

    size = GATE_WIDTH * (d + 2)
    return Case(
        spec,
        pool,
        [None],
        lambda s, layer: [s[0], list(s[1:]), biases, None],
        library,
        element_bytes(make.dtype) * (rows * d + size),
        2.0 * rows * size,
    )


@dataclass(frozen=True)
class Copies:
    """source of the op; lanes to write and to read and their rows, as a library indexes by them."""

    source: Tensor
    to_lane: Tensor
    from_lane: Tensor
    row: Tensor


def _copies(source: Tensor, lane: Tensor) -> Copies:
    layer, row = (source >= 0).nonzero(as_tuple=True)
    from_layer = source[layer, row].long()
    return Copies(source, lane[layer, row].long(), lane[from_layer, row].long(), row)


def kv_copy_forward(spec: Spec, make: Maker) -> Case:
    size, rows = spec.sizes, spec.rows
    element, held = element_bytes(make.dtype), spec.sizes.layers * rows
    # a call touches one position of each lane; the next call the next one
    one = 2 * held * size.hidden * element
    positions = min(64, max(2, make.sets(one)))
    cache = Random((held, size.heads, positions, size.head))
    caches = make.pool(cache, cache)
    lane = make.ints(torch.arange(held).view(size.layers, rows))
    shifts = torch.arange(rows)
    at = [make.ints((shifts + shift) % positions) for shift in range(positions)]
    pool = [(*kv, place) for place, kv in product(at, caches)][:MOST_SETS]
    alive, layers = torch.ones(rows, dtype=torch.bool), []
    for _ in range(DRAWS):
        keep = ~active(spec.routes, size.layers, rows)
        keep[0] = True  # what all copies may come from
        layers.append(_copies(make.ints(copy_source(keep, alive)), lane))

    def library(s: Set, copies: Copies) -> None:
        *kv, position = s
        place = position.long()[copies.row]
        for part in kv:
            part[copies.to_lane, :, place] = part[copies.from_lane, :, place]

    return Case(
        spec,
        pool,
        layers,
        lambda s, copies: [s[0], s[1], lane, copies.source, s[2]],
        library,
        4 * mean([len(copies.row) for copies in layers]) * size.hidden * element,
        mutated=(0, 1),
        exact=True,
    )


def sample(spec: Spec, make: Maker) -> Case:
    rows, vocab = spec.rows, spec.sizes.vocab
    pool = make.pool(Random((rows, vocab), 2.0))
    numbers = make.ints(torch.arange(rows), torch.int64)
    seed = int(torch.randint(1 << 31, ()))
    filtered = spec.name != "temperature"
    top_k, top_p = (TOP_K, TOP_P) if filtered else (0, 1.0)

    def library(s: Set, layer: None) -> Tensor:
        scores = s[0].float()
        if not filtered:
            return scores.softmax(dim=-1).multinomial(1)[:, 0]
        best, ids = scores.topk(top_k, dim=-1)
        chance = best.softmax(dim=-1)
        chance = chance.masked_fill(chance.cumsum(dim=-1) - chance >= top_p, 0.0)
        return ids.gather(1, chance.multinomial(1))[:, 0]

    def agrees(s: Set, tokens: Tensor) -> bool:
        """Draws of its own, from what may be drawn."""
        if not filtered:
            return bool(((tokens >= 0) & (tokens < vocab)).all())
        scores = s[0].float()
        least = scores.topk(top_k, dim=-1).values[:, -1]
        return bool((scores.gather(1, tokens[:, None])[:, 0] >= least).all())

    return Case(
        spec,
        pool,
        [None],
        lambda s, layer: [s[0], None, numbers, numbers, seed, 1.0, top_k, top_p, 1.0],
        library,
        rows * vocab * element_bytes(make.dtype),
        exact=True,
        library_agrees=agrees,
    )
