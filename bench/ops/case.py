"""A case ready to be called: its arguments in turn, its library counterpart, what it must move."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bench.ops.grid import Spec, active
from bench.ops.pool import Maker
from dynkern.kernels.reference.route_compact import route_compact

Set = tuple[Tensor, ...]
# of a routed op's rows, several draws where its layers come in one call
DRAWS = 16


@dataclass(frozen=True)
class Rows:
    """The rows of one layer: row_index int32 [B], active ones first; n_active as one element, and
    as a number, which a library's caller would have on the host.
    """

    index: Tensor
    count: Tensor
    n: int

    @property
    def active(self) -> Tensor:
        return self.index[: self.n]


@dataclass(frozen=True)
class Case:
    """One call of an op.

    pool: sets of tensors, more than the caches hold, which all contestants take in turn. layers:
    what differs from layer to layer, through which each goes on its own. arguments(set, layer): of
    the op. library(set, layer): the best that library calls do for the same result. bytes, flops:
    of one call, the mean over layers; bytes that must be read or written at least once, a
    multiply-add is two flops.

    For parity: mutated, places of arguments written in place; rows(layer), how many leading entries
    of each output are specified (None: all); written(arguments, layer), what to compare of what was
    written; exact, whether every backend must give the same bits; library_outputs(result), in the
    form of the op's, and library_agrees(set, outputs), where a library may choose another result.
    """

    spec: Spec
    pool: list[Set]
    layers: list[Any]
    arguments: Callable[[Set, Any], list[Any]]
    library: Callable[[Set, Any], Any]
    bytes: float
    flops: float = 0.0
    mutated: tuple[int, ...] = ()
    rows: Callable[[Any], Sequence[int | None]] | None = None
    written: Callable[[list[Any], Any], list[Tensor]] | None = None
    exact: bool = False
    library_outputs: Callable[[Any], Any] = field(default=lambda result: result)
    library_agrees: Callable[[Set, Any], bool] | None = None

    def fullest(self) -> Any:
        """The layer with the most rows."""
        return max(self.layers, key=_count)


def _count(layer: Any) -> int:
    if isinstance(layer, tuple):
        return _count(layer[-1])
    return layer.n if isinstance(layer, Rows) else 0


def layers_of(spec: Spec, make: Maker) -> list[Rows]:
    """Row lists of every layer; one layer's where all are alike."""
    bits = active(spec.routes, spec.sizes.layers, spec.rows)
    if spec.routes in ("all", "none"):
        bits = bits[:1]
    index, count = (make.ints(part) for part in route_compact(bits))
    return [Rows(index[i], count[i : i + 1], int(count[i])) for i in range(len(bits))]


def pairs_of(spec: Spec, make: Maker) -> list[tuple[Rows, Rows]]:
    """Rows that ran a sublayer and rows that run the next one: of a layer and the one after it."""
    layers = layers_of(spec, make)
    return list(zip(layers, [*layers[1:], layers[0]], strict=True))


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def element_bytes(dtype: torch.dtype) -> int:
    return torch.empty((), dtype=dtype).element_size()
