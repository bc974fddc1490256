"""Tables: made up in memory, and dumps of stored ones for comparison."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np

from dynkern.allocation.families import make_routes
from dynkern.allocation.schema import TABLES, digest_ids
from dynkern.allocation.table import Table


def made_table(
    quality: np.ndarray,
    states: np.ndarray | None = None,
    tokens: np.ndarray | None = None,
    sources: list[str | None] | None = None,
) -> Table:
    """A table of quality [N, R, S]: N distinct prompts, R nested routes of 1 to R layers."""
    count, layers, _ = quality.shape
    prompts = [(2, 5, 10 + i, 3 + i % 7) for i in range(count)]
    return Table(
        Path("made.sqlite"),
        {"prompts": count, "family": "uniform", "samples": quality.shape[2]},
        make_routes("uniform", layers),
        ids=[f"r{i}" for i in range(count)],
        digests=[digest_ids(prompt) for prompt in prompts],
        sources=sources or [None] * count,
        prompt_tokens=np.array([4 + i % 9 for i in range(count)]),
        quality=quality,
        tokens=np.full(quality.shape, 5) if tokens is None else tokens,
        agreement=np.ones_like(quality),
        loss=np.full((count, layers), np.nan),
        states=None if states is None else states.astype(np.float32),
        missing=0,
    )


def dump(path: Path) -> dict[str, list]:
    """Everything in a table's file, table by table."""
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
    try:
        return {
            name: sorted(connection.execute(f"SELECT * FROM {name}").fetchall()) for name in TABLES
        }
    finally:
        connection.close()
