"""Bootstrap over sequences, vectorised: resamples are weights, and everything else is sums."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RESAMPLES = 1000
_CHUNK_CELLS = 4_000_000


def weights(count: int, resamples: int = RESAMPLES, seed: int = 0) -> Iterator[Floats]:
    """Chunks [b, count] of how often each sequence is drawn, divided by count: rows sum to 1."""
    generator = np.random.default_rng(seed)
    chunk = max(1, _CHUNK_CELLS // count)
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        drawn = generator.integers(count, size=(size, count))
        drawn += np.arange(size)[:, None] * count
        counts = np.bincount(drawn.ravel(), minlength=size * count)
        yield counts.reshape(size, count) / count


def interval(draws: Floats, level: float = 0.95) -> Floats:
    """Percentile interval over the first axis, [2, …]; NaN where every draw is NaN."""
    tail = 50.0 * (1.0 - level)
    empty = np.isnan(draws).all(axis=0)
    filled = np.where(empty, 0.0, draws)
    return np.where(empty, np.nan, np.nanpercentile(filled, [tail, 100.0 - tail], axis=0))


def mean_interval(table: Floats, resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """95 % interval of the means over the first axis of [N, …], [2, …]."""
    flat = table.reshape(len(table), -1)
    draws = np.concatenate([w @ flat for w in weights(len(flat), resamples, seed)])
    return interval(draws).reshape(2, *table.shape[1:])
