"""EngineProbe: the parts of an engine's decode pass, one at a time, for a Calibration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

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

    The entries are random: right where time does not depend on what the rows hold. It does where
    neurons that ReLU leaves at zero are not read: rows of noise agree on their neurons, and a
    trained model of 11M looked 1.4 times faster than 8 rows of text find it. Use `after` there.
    """

    def __init__(self, engine: Engine, lengths: Sequence[int], with_fill: bool) -> None:
        self.engine, self.lengths = engine, list(lengths)
        self.prompts: list[Sequence[int]] = []
        self.num_layers = engine.spec.num_layers
        self.kv_fill_part = self._fill if with_fill else None
        self.kv_fill_parts = self._fill_and_fix if with_fill else None
        self._passes: dict[int, _Rows] = {}
        self._fills: dict[int, _Rows] = {}

    @classmethod
    def after(
        cls, engine: Engine, prompts: Sequence[Sequence[int]], tokens: int, with_fill: bool
    ) -> EngineProbe:
        """A probe whose rows hold `prompts`, repeated cyclically, and `tokens` generated after."""
        probe = cls(engine, [len(prompt) + tokens for prompt in prompts], with_fill)
        probe.prompts = list(prompts)
        return probe

    def full_pass(self, n_rows: int) -> None:
        """One decode pass of n_rows rows through every layer."""
        self.full_passes(n_rows, 1)

    def full_passes(self, n_rows: int, count: int) -> None:
        """`count` of them in a row, as decoding runs them; the rows are then as before."""
        with self.engine.stepping():
            rows = self._full_rows(n_rows)
            token = rows.batch.token.clone()
            self._decode(rows, count).tolist()
            # entries just written are taken back, so that every call sees the same rows
            rows.cache.length.sub_(count)
            for counter in (rows.batch.position, rows.batch.step):
                counter.sub_(count)
            rows.batch.token.copy_(token)

    def fixed_part(self, n_rows: int) -> None:
        """Embedding, final norm and LM head of n_rows rows."""
        self.fixed_parts(n_rows, 1)

    def fixed_parts(self, n_rows: int, count: int) -> None:
        """`count` of them in a row."""
        with self.engine.stepping():
            rows = self._full_rows(n_rows)
            executor = self.engine.executor
            executor.fixed_part(rows.batch, rows.cache, rows.picker, count).tolist()

    def _decode(self, rows: _Rows, count: int) -> Tensor:
        """`count` passes at full depth; all rows live on. Tokens of the last one."""
        batch, done = rows.batch, 0
        while done < count:
            limits = PassLimits(count - done, math.inf, [count] * batch.n_slots, rows.eos_ids)
            results = self.engine.executor.advance(batch, rows.cache, rows.picker, limits)
            done += len(results)
        batch.alive.fill_(True)
        batch.rows_changed()
        return results[-1].token

    def _fill(self, n_rows: int) -> None:
        """K/V projections of n_rows tokens at every layer."""
        with self.engine.stepping():
            rows = self._fill_rows(n_rows)
            self.engine.executor.fill_part(rows.batch, rows.cache)
            self.engine.synchronize()

    def _fill_and_fix(self, n_rows: int, fixed_rows: int, count: int) -> None:
        """`count` fills in a row, each before a fixed part of fixed_rows."""
        with self.engine.stepping():
            rows, fixed = self._fill_rows(n_rows), self._full_rows(fixed_rows)
            executor = self.engine.executor
            for _ in range(count):
                executor.fill_part(rows.batch, rows.cache)
                executor.fixed_part(fixed.batch, fixed.cache, fixed.picker)
            self.engine.synchronize()

    def _fill_rows(self, n_rows: int) -> _Rows:
        if n_rows not in self._fills:
            program = TokenProgram("bernoulli", (1.0,) * self.num_layers)
            self._fills[n_rows] = self._rows([1] * n_rows, program)
        return self._fills[n_rows]

    def _full_rows(self, n_rows: int) -> _Rows:
        if n_rows not in self._passes and self.prompts:
            self._passes[n_rows] = self._text_rows(n_rows)
        elif n_rows not in self._passes:
            # a burst of passes must not leave the position table
            most = self.engine.spec.max_positions - BURST
            lengths = [self.lengths[i % len(self.lengths)] for i in range(n_rows)]
            self._passes[n_rows] = self._rows([max(1, min(n, most)) for n in lengths], None)
        return self._passes[n_rows]

    def _text_rows(self, n_rows: int) -> _Rows:
        """Rows that hold prompts and what the model says to them."""
        # a burst of passes must not leave the position table
        most = self.engine.spec.max_positions - BURST
        prompts = [self.prompts[i % len(self.prompts)][: max(1, most)] for i in range(n_rows)]
        wanted = self.lengths[0] - len(self.prompts[0])
        tokens = max(0, min(wanted, most - max(map(len, prompts))))
        rows = self._empty_rows([len(prompt) + tokens for prompt in prompts], None)
        state = self.engine.executor.prefill(prompts)
        every = routes.full(self.num_layers)
        for slot, prompt in enumerate(prompts):
            start, end = state.bounds[slot], state.bounds[slot + 1]
            rows.cache.admit(slot, every, state.keys[:, start:end], state.values[:, start:end])
            rows.batch.admit(slot, 0, len(prompt), slot, every)
        first, _, _, _ = self.engine.executor.head.argmax(state.hidden, None)
        rows.batch.token.copy_(first)
        if tokens:
            self._decode(rows, tokens)
        return rows

    def _rows(self, lengths: list[int], program: TokenProgram | None) -> _Rows:
        """Rows of random K/V."""
        rows, spec = self._empty_rows(lengths, program), self.engine.spec
        every = routes.full(self.num_layers)
        shape = (self.num_layers, max(lengths), spec.num_heads, spec.head_size)
        keys = torch.randn(shape, dtype=rows.cache.k.dtype, device=self.engine.device)
        for slot, length in enumerate(lengths):
            rows.cache.admit(slot, every, keys[:, :length], keys[:, :length])
            rows.batch.admit(slot, spec.bos_token_id, length, slot, every)
        return rows

    def _empty_rows(self, lengths: list[int], program: TokenProgram | None) -> _Rows:
        engine, spec = self.engine, self.engine.spec
        n_rows = len(lengths)
        cache = KVCache(
            self.num_layers,
            n_rows,
            n_rows * self.num_layers,
            spec.num_heads,
            spec.head_size,
            max(lengths) + BURST,
            engine.weights.dtype,
            engine.device,
        )
        batch = DecodeBatch(self.num_layers, n_rows, "project", program, 0, engine.device)
        picker = TokenPicker(engine.executor.head, SamplingParams(), 0)
        return _Rows(batch, cache, picker, [frozenset()] * n_rows)
