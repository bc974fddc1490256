"""EngineProbe: the parts of an engine's decode pass, one at a time, for a Calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dynkern import routes
from dynkern.routes import TokenProgram
from dynkern.runtime.batch import DecodeBatch
from dynkern.runtime.engine import Engine
from dynkern.runtime.executors.kv_fill import KVFill, make_kv_fill
from dynkern.runtime.kv_cache import KVCache
from dynkern.runtime.request import SamplingParams
from dynkern.runtime.sampling import TokenPicker


@dataclass
class _Rows:
    """n rows with random K/V, ready for one pass again and again."""

    batch: DecodeBatch
    cache: KVCache
    picker: TokenPicker


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
        self._fills: dict[int, tuple[_Rows, KVFill]] = {}

    def full_pass(self, n_rows: int) -> None:
        """One decode pass of n_rows rows through every layer."""
        with self.engine.stepping():
            if n_rows not in self._passes:
                lengths = [self.lengths[i % len(self.lengths)] for i in range(n_rows)]
                self._passes[n_rows] = self._rows(lengths, None)
            rows = self._passes[n_rows]
            result = self.engine.executor.decode(rows.batch, rows.cache, rows.picker)
            result.token.tolist()
            # the entry just written is taken back, so that every pass sees the same lengths
            rows.cache.length.sub_(1)

    def fixed_part(self, n_rows: int) -> None:
        """Embedding, final norm and LM head of n_rows rows."""
        with self.engine.stepping():
            if n_rows not in self._passes:
                self.full_pass(n_rows)
            rows = self._passes[n_rows]
            self.engine.executor.fixed_part(rows.batch, rows.picker).tolist()

    def _fill(self, n_rows: int) -> None:
        """K/V projections of n_rows tokens at every layer."""
        with self.engine.stepping():
            if n_rows not in self._fills:
                program = TokenProgram("bernoulli", (1.0,) * self.num_layers)
                rows = self._rows([1] * n_rows, program)
                executor = self.engine.executor
                fill = make_kv_fill(executor.spec, executor.weights, rows.batch, rows.cache)
                self._fills[n_rows] = rows, fill
            rows, fill = self._fills[n_rows]
            index, n = rows.batch.alive_rows()
            stream = self.engine.executor.embed_rows(rows.batch)
            for layer in range(self.num_layers):
                fill.skipped(layer, stream, index, n)
            self.engine.synchronize()

    def _rows(self, lengths: list[int], program: TokenProgram | None) -> _Rows:
        engine, spec = self.engine, self.engine.spec
        n_rows, dtype = len(lengths), engine.weights.token_embedding.dtype
        cache = KVCache(
            self.num_layers,
            n_rows,
            n_rows * self.num_layers,
            spec.num_heads,
            spec.head_size,
            max(lengths) + 1,
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
        return _Rows(batch, cache, TokenPicker(engine.weights, SamplingParams(), 0))
