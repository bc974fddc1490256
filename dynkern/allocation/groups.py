"""Quality and budget against prompt length, output length and source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dynkern.allocation.bootstrap import RESAMPLES, mean_interval
from dynkern.allocation.table import Table

Floats = NDArray[np.float64]

# quarters of the sequences by length
PARTS = 4
# beyond that sources are too many to be looked at; the smallest are put together
MOST_SOURCES = 12


@dataclass(frozen=True)
class Group:
    """Sequences that have something in common. by: "prompt_tokens", "output_tokens" or "source".

    layers, quality: for each way of allocating, its mean and 95 % interval, (mean, low, high);
    "full" is full depth.
    """

    by: str
    name: str
    members: NDArray[np.int64]
    layers: dict[str, tuple[float, float, float]]
    quality: dict[str, tuple[float, float, float]]


def grouped(
    table: Table,
    rows: NDArray[np.int64],
    choices: Mapping[str, NDArray[np.int64]],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Group]:
    """Groups among the sequences `rows`, by lengths and by source.

    choices: each sequence's route, [len(rows)], for each way of allocating. Output length is that
    of the full route's text. A way to cut that yields one group only is left out.
    """
    quality, costs = table.mean_quality[rows], table.costs
    lengths = table.tokens[rows, -1].mean(axis=1)
    cuts = {
        "prompt_tokens": _quarters(table.prompt_tokens[rows].astype(np.float64)),
        "output_tokens": _quarters(lengths),
        "source": _sources([table.sources[row] for row in rows]),
    }
    every = np.arange(len(rows))
    ways = {"full": np.full(len(rows), len(costs) - 1), **choices}
    groups = []
    for by, parts in cuts.items():
        for name, members in parts if len(parts) > 1 else []:
            layers = {k: _mean(costs[c][members], resamples, seed) for k, c in ways.items()}
            scored = {
                k: _mean(quality[every, c][members], resamples, seed) for k, c in ways.items()
            }
            groups.append(Group(by, name, members, layers, scored))
    return groups


def _mean(values: Floats, resamples: int, seed: int) -> tuple[float, float, float]:
    low, high = mean_interval(values, resamples, seed)
    return float(values.mean()), float(low), float(high)


def _quarters(values: Floats) -> list[tuple[str, NDArray[np.int64]]]:
    edges = np.unique(np.quantile(values, np.linspace(0, 1, PARTS + 1)))
    place = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, max(len(edges) - 2, 0))
    parts = []
    for part in np.unique(place):
        members = np.flatnonzero(place == part)
        low, high = values[members].min(), values[members].max()
        parts.append((f"{low:g}" if low == high else f"{low:g} to {high:g}", members))
    return parts


def _sources(sources: list[str | None]) -> list[tuple[str, NDArray[np.int64]]]:
    names = [source or "not stated" for source in sources]
    kinds = sorted(set(names), key=lambda name: (-names.count(name), name))
    kept = kinds if len(kinds) <= MOST_SOURCES else kinds[: MOST_SOURCES - 1]
    labels = np.array([name if name in kept else "others" for name in names])
    shown = [*kept, "others"] if len(kept) < len(kinds) else kept
    return [(name, np.flatnonzero(labels == name)) for name in shown]
