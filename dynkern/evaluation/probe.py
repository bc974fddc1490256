"""EngineProbe: the parts of an engine's decode pass, one at a time, for a Calibration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dynkern import routes
from dynkern.evaluation.calibration import BURST
from dynkern.routes import TokenProgram
from dynkern.runtime.batch import DecodeBatch, PassLimits
from dynkern.runtime.engine import Engine
from dynkern.runtime.kv_cache import KVCache
from dynkern.runtime.request import SamplingParams
from dynkern.runtime.sampling import TokenPicker


@dataclass
class _Rows:
    """n rows with random K/V, ready for the same passes again and again."""

    batch: DecodeBatch
    cache: KVCache
    picker: TokenPicker
    eos_ids: list[frozenset[int]]


class EngineProbe:
    """Runs full-depth passes, the fixed part, or K/V fills of an engine (see PassProbe).

    lengths: K/V entries of the rows, repeated cyclically; take them from the runs to be judged.
    with_fill: whether kv_fill_part can be measured (policies whose passes project K/V).
    """

    def __init__(self, engine: Engine, lengths: Sequence[int], with_fill: bool) -> None:
        self.engine, self.lengths = engine, list(lengths)
        self.num_layers = engine.spec.num_layers
        self.kv_fill_part = self._fill if with_fill else None
        self._passes: dict[int, _Rows] = {}
        self._fills: dict[int, _Rows] = {}

    def full_pass(self, n_rows: int) -> None:
        """One decode pass of n_rows rows through every layer."""
        self.full_passes(n_rows, 1)

    def full_passes(self, n_rows: int, count: int) -> None:
        """`count` of them in a row, as decoding runs them; the rows are then as before."""
        with self.engine.stepping():
            rows, done = self._full_rows(n_rows), 0
            while done < count:
                limits = PassLimits(count - done, math.inf, [count] * n_rows, rows.eos_ids)
                results = self.engine.executor.advance(rows.batch, rows.cache, rows.picker, limits)
                done += len(results)
            results[-1].token.tolist()
            # entries just written are taken back, so that every call sees the same lengths
            rows.cache.length.sub_(count)
            for counter in (rows.batch.position, rows.batch.step):
                counter.sub_(count)
            rows.batch.alive.fill_(True)
            rows.batch.rows_changed()

    def fixed_part(self, n_rows: int) -> None:
        """Embedding, final norm and LM head of n_rows rows."""
        with self.engine.stepping():
            rows = self._full_rows(n_rows)
            self.engine.executor.fixed_part(rows.batch, rows.cache, rows.picker).tolist()

    def _fill(self, n_rows: int) -> None:
        """K/V projections of n_rows tokens at every layer."""
        with self.engine.stepping():
            if n_rows not in self._fills:
                program = TokenProgram("bernoulli", (1.0,) * self.num_layers)
                self._fills[n_rows] = self._rows([1] * n_rows, program)
            rows = self._fills[n_rows]
            self.engine.executor.fill_part(rows.batch, rows.cache)
            self.engine.synchronize()

    def _full_rows(self, n_rows: int) -> _Rows:
        if n_rows not in self._passes:
            # a burst of passes must not leave the position table
            most = self.engine.spec.max_positions - BURST
            lengths = [self.lengths[i % len(self.lengths)] for i in range(n_rows)]
            self._passes[n_rows] = self._rows([max(1, min(n, most)) for n in lengths], None)
        return self._passes[n_rows]

    def _rows(self, lengths: list[int], program: TokenProgram | None) -> _Rows:
        engine, spec = self.engine, self.engine.spec
        n_rows, dtype = len(lengths), engine.weights.dtype
        cache = KVCache(
            self.num_layers,
            n_rows,
            n_rows * self.num_layers,
            spec.num_heads,
            spec.head_size,
            max(lengths) + BURST,
            dtype,
            engine.device,
        )
        batch = DecodeBatch(self.num_layers, n_rows, "project", program, 0, engine.device)
        every = routes.full(self.num_layers)
        shape = (self.num_layers, max(lengths), spec.num_heads, spec.head_size)
        keys = torch.randn(shape, dtype=dtype, device=engine.device)
        for slot, length in enumerate(lengths):
            cache.admit(slot, every, keys[:, :length], keys[:, :length])
            batch.admit(slot, spec.bos_token_id, length, slot, every)
        picker = TokenPicker(engine.executor.head, SamplingParams(), 0)
        return _Rows(batch, cache, picker, [frozenset()] * n_rows)
