"""The eager executor: ops composed in Python. It is the specification of a pass."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from dynkern.models.spec import DecoderSpec
from dynkern.models.weights import DecoderWeights
from dynkern.ops import ragged_attention_prefill
from dynkern.runtime.batch import DecodeBatch, PassLimits, PassResult, PrefillResult
from dynkern.runtime.executors.decode_pass import DecodePass
from dynkern.runtime.executors.kv_fill import KVFill, make_kv_fill
from dynkern.runtime.executors.layers import DecoderLayers
from dynkern.runtime.executors.stream import ResidualStream
from dynkern.runtime.kv_cache import KVCache
from dynkern.runtime.sampling import TokenPicker


class EagerExecutor:
    """Runs prefill and decode passes of one model, op by op, on the weights' device."""

    name = "eager"

    def __init__(self, spec: DecoderSpec, weights: DecoderWeights) -> None:
        self.spec, self.weights = spec, weights
        self.device, self.dtype = weights.device, weights.dtype
        self.layers = DecoderLayers(spec, weights)
        self.head = self.layers.head

    @property
    def isa(self) -> str:
        """What the kernels run on, as far as this executor can tell: torch's CPU level, or cuda."""
        on_cpu = self.device.type == "cpu"
        return torch.backends.cpu.get_cpu_capability().lower() if on_cpu else self.device.type

    def prefill(
        self, prompts: Sequence[Sequence[int]], routes: Tensor | None = None
    ) -> PrefillResult:
        """One pass over packed prompts. routes: bool [R, L] on the host, or None for full depth.

        Under routes, a row's tokens run only its layers, and only their K/V is written.
        """
        lengths = [len(prompt) for prompt in prompts]
        bounds = [0, *torch.tensor(lengths).cumsum(0).tolist()]
        ids = torch.tensor([i for prompt in prompts for i in prompt], device=self.device)
        positions = torch.cat([torch.arange(n) for n in lengths]).to(self.device)
        stream = self.layers.embed(ids, positions)
        shape = (self.spec.num_layers, len(ids), self.spec.num_heads, self.spec.head_size)
        keys = torch.empty(shape, dtype=self.dtype, device=self.device)
        values = torch.empty_like(keys)
        everyone = _PrefillRows(list(range(len(prompts))), lengths, bounds, self.device)
        layer_rows = []
        for layer in range(self.spec.num_layers):
            rows = everyone
            if routes is not None:
                running = routes[:, layer].nonzero().flatten().tolist()
                rows = _PrefillRows(running, lengths, bounds, self.device)
            layer_rows.append(len(rows.running))
            if rows.running:
                self._prefill_layer(layer, stream, rows, keys[layer], values[layer])
        last = torch.tensor(bounds[1:], dtype=torch.int32, device=self.device) - 1
        hidden = self.layers.final(stream, last, None)
        return PrefillResult(hidden, keys, values, bounds, layer_rows)

    def _prefill_layer(
        self, layer: int, stream: ResidualStream, rows: _PrefillRows, keys: Tensor, values: Tensor
    ) -> None:
        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys[rows.tokens] = k
            values[rows.tokens] = v
            return ragged_attention_prefill(q, k, v, rows.cu_seqlens, self.spec.attention_scale)

        self.layers.layer(layer, stream, rows.tokens, None, attend)

    def decode(self, batch: DecodeBatch, cache: KVCache, picker: TokenPicker) -> PassResult:
        """One routed pass for the live rows of `batch`; appends to `cache` and picks tokens."""
        return DecodePass(self.layers, batch, cache, self._fill_of(batch, cache), picker).run()

    def advance(
        self, batch: DecodeBatch, cache: KVCache, picker: TokenPicker, limits: PassLimits
    ) -> list[PassResult]:
        """Passes up to the limits, or to the first in which a row ends; the batch is advanced.

        Whoever called retires the rows that ended.
        """
        results: list[PassResult] = []
        until = time.perf_counter() + limits.max_seconds
        live = batch.alive.nonzero().flatten().tolist()
        while live:
            results.append(self.decode(batch, cache, picker))
            token = results[-1].token
            picker.note(batch.alive, batch.position, token)
            batch.advance(token)
            if len(results) >= limits.max_passes or time.perf_counter() >= until:
                break
            tokens = token.tolist()
            if any(limits.ends(slot, tokens[slot], len(results)) for slot in live):
                break
        return results

    def _fill_of(self, batch: DecodeBatch, cache: KVCache) -> KVFill:
        # kept with the batch: batches of two streams may take turns
        if not isinstance(batch.fill, KVFill):
            batch.fill = make_kv_fill(self.spec, self.weights, batch, cache)
        return batch.fill

    def fixed_part(
        self, batch: DecodeBatch, cache: KVCache, picker: TokenPicker, count: int = 1
    ) -> Tensor:
        """Embedding, final norm and LM head of the live rows: t_fixed of the cost model."""
        rows, n = batch.alive_rows()
        for _ in range(count):
            final = self.layers.final(self.layers.embed(batch.token, batch.position), rows, n)
            token = picker.pick(final, n, rows, batch.request, batch.step)
        return token

    def fill_part(self, batch: DecodeBatch, cache: KVCache) -> None:
        """K/V projections of the live rows at every layer, as kv_fill "project" does them."""
        fill = self._fill_of(batch, cache)
        stream = self.layers.embed(batch.token, batch.position)
        rows, n = batch.alive_rows()
        for layer in range(self.spec.num_layers):
            fill.skipped(layer, stream, rows, n)


class _PrefillRows:
    """Packed tokens of the rows that run a layer."""

    def __init__(
        self, running: list[int], lengths: list[int], bounds: list[int], device: torch.device
    ) -> None:
        self.running = running
        spans = [torch.arange(bounds[r], bounds[r + 1], dtype=torch.int32) for r in running]
        self.tokens = torch.cat(spans or [torch.empty(0, dtype=torch.int32)]).to(device)
        ends = torch.tensor([0, *(lengths[r] for r in running)]).cumsum(0)
        self.cu_seqlens = ends.to(device, torch.int32)
