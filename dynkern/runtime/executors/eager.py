"""The eager executor: ops composed in Python. It is the specification of a pass."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dynkern.models.spec import DecoderSpec
from dynkern.models.weights import DecoderWeights, LayerWeights
from dynkern.ops import (
    embed,
    lm_head_argmax,
    ragged_attention_decode,
    ragged_attention_prefill,
    ragged_linear,
    route_compact,
)
from dynkern.runtime.batch import DecodeBatch, PassLimits, PassResult, PrefillResult
from dynkern.runtime.executors.gates import PassGates
from dynkern.runtime.executors.kv_fill import KVFill, make_kv_fill
from dynkern.runtime.executors.stream import ResidualStream
from dynkern.runtime.kv_cache import KVCache
from dynkern.runtime.sampling import TokenPicker

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class OpHead:
    """The LM head by ops (see sampling.Head)."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def argmax(self, hidden: Tensor, n: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Without a [C, V] result."""
        return lm_head_argmax(hidden, self.weight, n)

    def logits(self, hidden: Tensor, n: Tensor | None) -> Tensor:
        """[C, V] in the weights' dtype."""
        return ragged_linear(hidden, self.weight, None, None, n)


class EagerExecutor:
    """Runs prefill and decode passes of one model, op by op, on the weights' device."""

    name = "eager"

    def __init__(self, spec: DecoderSpec, weights: DecoderWeights) -> None:
        self.spec, self.weights = spec, weights
        self.device, self.dtype = weights.device, weights.dtype
        self.head = OpHead(weights.lm_head)

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
        stream = self._embed(ids, positions)
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
        return PrefillResult(self._final(stream, last, None), keys, values, bounds, layer_rows)

    def _prefill_layer(
        self, layer: int, stream: ResidualStream, rows: _PrefillRows, keys: Tensor, values: Tensor
    ) -> None:
        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys[rows.tokens] = k
            values[rows.tokens] = v
            return ragged_attention_prefill(q, k, v, rows.cu_seqlens, self.spec.attention_scale)

        self._layer(layer, stream, rows.tokens, None, attend)

    def decode(self, batch: DecodeBatch, cache: KVCache, picker: TokenPicker) -> PassResult:
        """One routed pass for the live rows of `batch`; appends to `cache` and picks tokens."""
        fill = self._fill_of(batch, cache)
        fill.begin_pass()
        stream = self._embed(batch.token, batch.position)
        run = _Pass(self, batch, cache, fill, stream)
        if batch.program is None:
            run.planned()
        elif batch.program.kind == "confidence":
            run.confidence(picker)
        elif batch.program.kind == "controller":
            run.controlled()
        else:
            run.drawn()
        rows, n = run.unsettled_rows()
        hidden = self._final(stream, rows, n)
        token = picker.pick(
            hidden,
            n,
            rows,
            batch.request.index_select(0, rows),
            batch.step.index_select(0, rows),
        )
        ran = run.ran()
        fill.end_pass(ran)
        return PassResult(run.settle(rows, n, token), ran, fill.filled.clone(), run.head_rows)

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
        if batch.fill is None:
            batch.fill = make_kv_fill(self.spec, self.weights, batch, cache)
        return batch.fill

    def fixed_part(self, batch: DecodeBatch, cache: KVCache, picker: TokenPicker) -> Tensor:
        """Embedding, final norm and LM head of the live rows: t_fixed of the cost model."""
        stream = self._embed(batch.token, batch.position)
        rows, n = batch.alive_rows()
        return picker.pick(self._final(stream, rows, n), n, rows, batch.request, batch.step)

    def fill_part(self, batch: DecodeBatch, cache: KVCache) -> None:
        """K/V projections of the live rows at every layer, as kv_fill "project" does them."""
        fill = self._fill_of(batch, cache)
        stream = self._embed(batch.token, batch.position)
        rows, n = batch.alive_rows()
        for layer in range(self.spec.num_layers):
            fill.skipped(layer, stream, rows, n)

    def _embed(self, ids: Tensor, positions: Tensor) -> ResidualStream:
        w = self.weights
        h = embed(
            ids,
            positions,
            w.token_embedding,
            w.position_embedding,
            w.project_in,
            self.spec.position_offset,
        )
        return ResidualStream(h, self.spec)

    def _final(self, stream: ResidualStream, rows: Tensor, n: Tensor | None) -> Tensor:
        w = self.weights
        norm = w.final_norm_weight, w.final_norm_bias
        hidden = stream.normed(rows, n, norm, present=self.spec.final_norm)
        if w.project_out is None:
            return hidden
        return ragged_linear(hidden, w.project_out, None, None, n)

    def _layer(
        self, layer: int, stream: ResidualStream, rows: Tensor, n: Tensor | None, attend: Attend
    ) -> None:
        w: LayerWeights = self.weights.layers[layer]
        attn_norm = w.attn_norm_weight, w.attn_norm_bias
        ffn_norm = w.ffn_norm_weight, w.ffn_norm_bias
        x = stream.normed(rows, n, attn_norm)
        qkv = ragged_linear(x, w.qkv_weight, w.qkv_bias, None, n)
        q, k, v = qkv.view(-1, 3, self.spec.num_heads, self.spec.head_size).unbind(1)
        attended = attend(q, k, v)
        stream.add(ragged_linear(attended, w.out_weight, w.out_bias, None, n), rows, n, attn_norm)
        y = stream.normed(rows, n, ffn_norm)
        inner = ragged_linear(y, w.fc1_weight, w.fc1_bias, None, n, self.spec.activation)
        stream.add(ragged_linear(inner, w.fc2_weight, w.fc2_bias, None, n), rows, n, ffn_norm)


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


class _Pass:
    """One decode pass: runs layers for their rows and records where a layer's body ran."""

    def __init__(
        self,
        executor: EagerExecutor,
        batch: DecodeBatch,
        cache: KVCache,
        fill: KVFill,
        stream: ResidualStream,
    ) -> None:
        self.executor, self.batch, self.cache = executor, batch, cache
        self.fill, self.stream = fill, stream
        self.settled = torch.zeros_like(batch.alive)
        self.token = torch.zeros_like(batch.token)
        self.head_rows = torch.zeros((), dtype=torch.int64, device=batch.alive.device)
        self._slots = torch.arange(batch.n_slots, device=batch.alive.device)
        self._executed: list[tuple[int, Tensor, Tensor]] = []

    def _run_layer(self, layer: int, rows: Tensor, n: Tensor) -> None:
        self.fill.before_layer(layer, rows, n)
        cache, spec = self.cache, self.executor.spec
        lane, length = cache.lane[layer], cache.length[layer]

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return ragged_attention_decode(
                q, k, v, cache.k, cache.v, lane, length, rows, n, spec.attention_scale
            )

        self.executor._layer(layer, self.stream, rows, n, attend)
        self._executed.append((layer, rows, n))

    def _is_empty(self, n: Tensor) -> bool:
        # reading a count is free on the host; on an accelerator it would wait for the device,
        # and every op leaves at once for no rows anyway
        return n.device.type == "cpu" and int(n) == 0

    def _visit(self, layer: int, rows: Tensor, n: Tensor, skipping: Tensor, n_skip: Tensor) -> None:
        if not self._is_empty(n_skip):
            self.fill.skipped(layer, self.stream, skipping, n_skip)
        if not self._is_empty(n):
            self._run_layer(layer, rows, n)

    def planned(self) -> None:
        """Every row runs the layers of its route."""
        plan = self.batch.planned_rows()
        for layer, in_union in enumerate(plan.union):
            if in_union:
                self._run_layer(layer, plan.row_index[layer], plan.n_active[layer])

    def drawn(self) -> None:
        """Keep bits drawn for the whole pass ahead of it."""
        batch, num_layers = self.batch, self.executor.spec.num_layers
        keep = batch.program.draw(batch.seed, batch.request, batch.step, num_layers) & batch.alive
        skip = batch.alive & ~keep
        rows, n = route_compact(torch.cat([keep, skip]))
        for layer in range(num_layers):
            other = layer + num_layers
            self._visit(layer, rows[layer], n[layer], rows[other], n[other])

    def confidence(self, picker: TokenPicker) -> None:
        """Rows leave at the declared exit layers once their measure reaches the threshold."""
        staying = self.batch.alive
        (rows, n), (left, n_left) = self._split(staying)
        for layer in range(self.executor.spec.num_layers):
            is_exit = layer in self.batch.program.exit_layers and not self._is_empty(n)
            measures_cosine = self.batch.program.measure == "cosine"
            before = self.stream.raw(rows, n) if is_exit and measures_cosine else None
            self._visit(layer, rows, n, left, n_left)
            if is_exit:
                staying = staying & ~self._leaving(rows, n, before, picker)
                (rows, n), (left, n_left) = self._split(staying)

    def controlled(self) -> None:
        """Gates decide ahead of each layer."""
        executor, batch = self.executor, self.batch
        offset = executor.spec.position_offset
        gates = PassGates(batch.program.gates, executor.weights, batch, offset)
        for layer in range(executor.spec.num_layers):
            (rows, n), (left, n_left) = self._split(gates.keep(layer, self.stream))
            self._visit(layer, rows, n, left, n_left)

    def _split(self, staying: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        rows, n = route_compact(torch.stack([staying, self.batch.alive & ~staying]))
        return (rows[0], n[0]), (rows[1], n[1])

    def _leaving(
        self, rows: Tensor, n: Tensor, before: Tensor | None, picker: TokenPicker
    ) -> Tensor:
        program = self.batch.program
        if before is not None:
            after = self.stream.raw(rows, n)
            measure = torch.nn.functional.cosine_similarity(before.float(), after.float(), dim=-1)
            return self._scatter(rows, n, measure >= program.threshold)
        hidden = self.executor._final(self.stream, rows, n)
        token, top, margin, _ = self.executor.head.argmax(hidden, n)
        self.head_rows += n
        measure = top if program.measure == "top_prob" else margin
        leaving = self._scatter(rows, n, measure >= program.threshold)
        if picker.is_greedy:
            # the exit's head has seen the very hidden state that the final head would see
            self.token = torch.where(leaving, self._scatter(rows, n, token), self.token)
            self.settled = self.settled | leaving
        return leaving

    def _scatter(self, rows: Tensor, n: Tensor, values: Tensor) -> Tensor:
        """values [C] of compacted rows to their slots [B], zero elsewhere."""
        active = torch.where(self._slots < n, values, torch.zeros_like(values))
        return torch.zeros_like(active).scatter_(0, rows.long(), active)

    def unsettled_rows(self) -> tuple[Tensor, Tensor]:
        """Live rows whose token is still to be picked."""
        if self.batch.program is None or self.batch.program.kind != "confidence":
            return self.batch.alive_rows()
        rows, n = route_compact((self.batch.alive & ~self.settled)[None])
        return rows[0], n[0]

    def settle(self, rows: Tensor, n: Tensor, token: Tensor) -> Tensor:
        """Tokens of all live rows [B]."""
        return torch.where(self.settled, self.token, self._scatter(rows, n, token))

    def ran(self) -> Tensor:
        """bool [L, B]: where a layer's body ran, from the rows that it was handed."""
        ran = torch.zeros_like(self.batch.route)
        if self._executed:
            layers, rows, counts = zip(*self._executed, strict=True)
            active = self._slots < torch.stack(counts)[:, None]
            index = torch.stack(rows).long()
            ran[list(layers)] = torch.zeros_like(active).scatter_(1, index, active)
        return ran
