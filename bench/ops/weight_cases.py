"""Ops that read weights: what of their time is not the weights' is the kernel's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from bench.ops.case import Case, Rows, Set, element_bytes, layers_of, mean, pairs_of
from bench.ops.grid import Spec
from bench.ops.pool import Maker, Random

EPS = 1e-5
# cache entries of kv_project: it writes one of each row
POSITIONS = 8


def gathered(x: Tensor, rows: Rows) -> Tensor:
    """The active rows; all of them need no copy."""
    return x if rows.n == len(x) else x.index_select(0, rows.active)


def ragged_linear(spec: Spec, make: Maker) -> Case:
    d, f = spec.sizes.hidden, spec.sizes.ffn
    n_out, n_in = {"qkv": (3 * d, d), "out": (d, d), "fc1": (f, d), "fc2": (d, f)}[spec.name]
    pool = make.pool(Random((n_out, n_in), n_in**-0.5), Random((spec.rows, n_in)))
    bias, act = make.floats(n_out), "relu" if spec.name == "fc1" else "none"
    layers, element = layers_of(spec, make), element_bytes(make.dtype)

    def library(s: Set, rows: Rows) -> Tensor:
        y = F.linear(gathered(s[1], rows), s[0], bias)
        return y.relu_() if act == "relu" else y

    def moved(n: int) -> int:
        return element * ((n_out * n_in + n_out) * (n > 0) + n * (n_out + n_in))

    return Case(
        spec,
        pool,
        layers,
        lambda s, rows: [s[1], s[0], bias, rows.index, rows.count, act],
        library,
        mean([moved(rows.n) for rows in layers]),
        mean([2.0 * n_out * n_in * rows.n for rows in layers]),
        rows=lambda rows: [rows.n],
    )


def residual_bypass_linear(spec: Spec, make: Maker) -> Case:
    d, f = spec.sizes.hidden, spec.sizes.ffn
    activations = Random((spec.rows, d)), Random((spec.rows, d))
    pool = make.pool(Random((f, d), d**-0.5), *activations)
    norm, bias = (make.floats(d), make.floats(d)), make.floats(f)
    layers, element = pairs_of(spec, make), element_bytes(make.dtype)

    def library(s: Set, pair: tuple[Rows, Rows]) -> tuple[Tensor, Tensor]:
        weight, h, delta = s
        ran, run = pair
        h = h + delta if ran.n == len(h) else h.index_add(0, ran.active, delta[: ran.n])
        x = F.layer_norm(gathered(h, run), (d,), *norm, EPS)
        return h, F.linear(x, weight, bias).relu_()

    def arguments(s: Set, pair: tuple[Rows, Rows]) -> list[Any]:
        weight, h, delta = s
        ran, run = pair
        bypass = [h, delta, ran.index, ran.count, *norm, run.index, run.count, "pre", EPS]
        return [*bypass, weight, bias, "relu"]

    def moved(ran: int, run: int) -> int:
        weights = (f * d + f + 2 * d) * (run > 0)
        return element * (weights + run * f + d * (2 * spec.rows + ran))

    return Case(
        spec,
        pool,
        layers,
        arguments,
        library,
        mean([moved(ran.n, run.n) for ran, run in layers]),
        mean([2.0 * f * d * run.n for _, run in layers]),
        rows=lambda pair: [None, pair[1].n],
    )


def lm_head_argmax(spec: Spec, make: Maker) -> Case:
    d, vocab = spec.sizes.hidden, spec.sizes.vocab
    pool = make.pool(Random((vocab, d), d**-0.5), Random((spec.rows, d)))

    def library(s: Set, layer: None) -> tuple[Tensor, ...]:
        logits = F.linear(s[1], s[0]).float()
        two, ids = logits.topk(2, dim=-1)
        log_sum = logits.logsumexp(dim=-1)
        first, second = (two - log_sum[:, None]).exp().unbind(dim=-1)
        return ids[:, 0], first, first - second, log_sum

    return Case(
        spec,
        pool,
        [None],
        lambda s, layer: [s[1], s[0], None],
        library,
        element_bytes(make.dtype) * d * (vocab + spec.rows),
        2.0 * vocab * d * spec.rows,
    )


@dataclass(frozen=True)
class Slots(Rows):
    """Rows and where each one's entry goes: position int32, in the order of index; the same and the
    lanes as a library indexes by them.
    """

    position: Tensor
    lanes: Tensor
    places: Tensor


def kv_project(spec: Spec, make: Maker) -> Case:
    size, rows = spec.sizes, spec.rows
    d, caches = size.hidden, Random((rows, size.heads, POSITIONS, size.head))
    pool = make.pool(Random((2 * d, d), d**-0.5), Random((rows, d)), caches, caches)
    bias, element = make.floats(2 * d), element_bytes(make.dtype)
    own = make.ints([i % POSITIONS for i in range(rows)])

    def slots(rows: Rows) -> Slots:
        position = own.index_select(0, rows.index)
        long = rows.active.long(), position[: rows.n].long()
        return Slots(rows.index, rows.count, rows.n, position, *long)

    layers = [slots(layer) for layer in layers_of(spec, make)]

    def library(s: Set, layer: Slots) -> None:
        weight, x, *kv = s
        both = F.linear(x[: layer.n], weight, bias).view(layer.n, 2, size.heads, size.head)
        for part, cache in enumerate(kv):
            cache[layer.lanes, :, layer.places] = both[:, part]

    def arguments(s: Set, layer: Slots) -> list[Any]:
        weight, x, *kv = s
        return [x, weight, bias, *kv, layer.index, layer.position, layer.count]

    def moved(n: int) -> int:
        return element * ((2 * d * d + 2 * d) * (n > 0) + 3 * n * d)

    return Case(
        spec,
        pool,
        layers,
        arguments,
        library,
        mean([moved(layer.n) for layer in layers]),
        mean([4.0 * d * d * layer.n for layer in layers]),
        mutated=(3, 4),
    )
