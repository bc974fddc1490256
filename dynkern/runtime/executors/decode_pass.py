"""DecodePass: one routed decode pass, composed of ops. The eager executor runs it as it stands,
the cuda_graph executor captures it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from dynkern.ops import ragged_attention_decode, route_compact
from dynkern.runtime.batch import DecodeBatch, PassResult
from dynkern.runtime.executors.gates import PassGates
from dynkern.runtime.executors.kv_fill import KVFill, Lanes
from dynkern.runtime.executors.layers import DecoderLayers
from dynkern.runtime.executors.stream import ResidualStream
from dynkern.runtime.sampling import TokenPicker

Rows = tuple[Tensor, Tensor]


def decode_layer(
    layers: DecoderLayers, layer: int, stream: ResidualStream, cache: Lanes, rows: Tensor, n: Tensor
) -> None:
    """One decoder layer for `rows[:n]` over their K/V, which it appends to."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        lane, length = cache.lane[layer], cache.length[layer]
        scale = layers.spec.attention_scale
        return ragged_attention_decode(q, k, v, cache.k, cache.v, lane, length, rows, n, scale)

    layers.layer(layer, stream, rows, n, attend)


class DecodePass:
    """Runs layers for their rows and records where a layer's body ran.

    capacity: rows that can be live, the length of every row list; all slots by default.
    reads_counts: whether the host may look at a count of rows, to leave an op out. Without it no
    value is read on the host: every op leaves at once for no rows. draw: where keep bits [L, B]
    that look at no hidden state come from; by default the batch's program draws them.
    """

    def __init__(
        self,
        layers: DecoderLayers,
        batch: DecodeBatch,
        cache: Lanes,
        fill: KVFill,
        picker: TokenPicker,
        capacity: int | None = None,
        reads_counts: bool = True,
        draw: Callable[[], Tensor] | None = None,
    ) -> None:
        self.draw = draw or self._draw
        self.layers, self.batch, self.cache, self.fill = layers, batch, cache, fill
        self.picker = picker
        self.capacity = batch.n_slots if capacity is None else capacity
        # reading a count is free on the host; on an accelerator it would wait for the device
        self.reads_counts = reads_counts and batch.alive.device.type == "cpu"
        self.settled: Tensor | None = None
        self.token = batch.token
        self.head_rows: Tensor | None = None
        self._executed: dict[int, Rows] = {}

    def run(self) -> PassResult:
        """The pass: K/V appended, tokens picked, the batch left as it is."""
        self.run_layers()
        rows, n = self._unsettled_rows()
        token = pick(self.layers, self.stream, self.batch, self.picker, rows, n)
        ran = self._ran()
        self.fill.end_pass(ran)
        token = self._scatter(rows, n, token)
        if self.settled is not None:
            token = torch.where(self.settled, self.token, token)
        head_rows = ran.new_zeros((), dtype=torch.int64)
        if self.head_rows is not None:
            head_rows = self.head_rows
        return PassResult(token, ran, self.fill.filled.clone(), head_rows)

    def run_layers(self) -> ResidualStream:
        """Embedding and layers: the stream as the head finds it."""
        batch = self.batch
        self.fill.begin_pass()
        self.stream = self.layers.embed(batch.token, batch.position)
        if batch.program is None:
            self._planned()
        elif batch.program.kind == "confidence":
            self._confidence()
        elif batch.program.kind == "controller":
            self._controlled()
        else:
            self._drawn()
        return self.stream

    @cached_property
    def _places(self) -> Tensor:
        return torch.arange(self.capacity, device=self.batch.alive.device)

    def _run_layer(self, layer: int, rows: Tensor, n: Tensor) -> None:
        self.fill.before_layer(layer, rows, n)
        decode_layer(self.layers, layer, self.stream, self.cache, rows, n)
        self._executed[layer] = rows, n

    def _is_empty(self, n: Tensor) -> bool:
        return self.reads_counts and int(n) == 0

    def _visit(self, layer: int, running: Rows, skipping: Rows) -> None:
        if not self._is_empty(skipping[1]):
            self.fill.skipped(layer, self.stream, *skipping)
        if not self._is_empty(running[1]):
            self._run_layer(layer, *running)

    def _planned(self) -> None:
        """Every row runs the layers of its route."""
        plan = self.batch.planned_rows()
        for layer, in_union in enumerate(plan.union):
            if in_union:
                self._run_layer(layer, self._cut(plan.row_index[layer]), plan.n_active[layer])

    def _drawn(self) -> None:
        """Keep bits drawn for the whole pass ahead of it."""
        batch, num_layers = self.batch, self.layers.spec.num_layers
        keep = self.draw() & batch.alive
        lists = self._compacted(torch.cat([keep, batch.alive & ~keep]))
        for layer in range(num_layers):
            self._visit(layer, lists[layer], lists[layer + num_layers])

    def _draw(self) -> Tensor:
        batch = self.batch
        num_layers = self.layers.spec.num_layers
        return batch.program.draw(batch.seed, batch.request, batch.step, num_layers)

    def _confidence(self) -> None:
        """Rows leave at the declared exit layers once their measure reaches the threshold."""
        program = self.batch.program
        staying = self.batch.alive
        self.settled = torch.zeros_like(staying)
        self.head_rows = staying.new_zeros((), dtype=torch.int64)
        here, left = self._split(staying)
        for layer in range(self.layers.spec.num_layers):
            is_exit = layer in program.exit_layers and not self._is_empty(here[1])
            before = self.stream.raw(*here) if is_exit and program.measure == "cosine" else None
            self._visit(layer, here, left)
            if is_exit:
                staying = staying & ~self._leaving(*here, before)
                here, left = self._split(staying)

    def _controlled(self) -> None:
        """Gates decide ahead of each layer."""
        layers, batch = self.layers, self.batch
        gates = PassGates(batch.program.gates, layers.weights, batch, layers.spec.position_offset)
        for layer in range(layers.spec.num_layers):
            self._visit(layer, *self._split(gates.keep(layer, self.stream)))

    def _cut(self, rows: Tensor) -> Tensor:
        return rows if len(rows) == self.capacity else rows[: self.capacity]

    def _compacted(self, keep: Tensor) -> list[Rows]:
        rows, n = route_compact(keep)
        return [(self._cut(r), m) for r, m in zip(rows.unbind(0), n.unbind(0), strict=True)]

    def _split(self, staying: Tensor) -> list[Rows]:
        return self._compacted(torch.stack([staying, self.batch.alive & ~staying]))

    def _leaving(self, rows: Tensor, n: Tensor, before: Tensor | None) -> Tensor:
        program = self.batch.program
        if before is not None:
            after = self.stream.raw(rows, n)
            measure = torch.nn.functional.cosine_similarity(before.float(), after.float(), dim=-1)
            return self._scatter(rows, n, measure >= program.threshold)
        hidden = self.layers.final(self.stream, rows, n)
        token, top, margin, _ = self.layers.head.argmax(hidden, n)
        self.head_rows += n
        measure = top if program.measure == "top_prob" else margin
        leaving = self._scatter(rows, n, measure >= program.threshold)
        if self.picker.is_greedy:
            # the exit's head has seen the very hidden state that the final head would see
            self.token = torch.where(leaving, self._scatter(rows, n, token), self.token)
            self.settled = self.settled | leaving
            self.head_rows -= leaving.sum()
        return leaving

    def _scatter(self, rows: Tensor, n: Tensor, values: Tensor) -> Tensor:
        """values [C] of compacted rows to their slots [B], zero elsewhere."""
        active = torch.where(self._places < n, values, torch.zeros_like(values))
        slots = active.new_zeros(self.batch.n_slots)
        return slots.scatter_(0, rows.long(), active)

    def _unsettled_rows(self) -> Rows:
        """Live rows whose token is still to be picked."""
        if self.settled is None:
            rows, n = self.batch.alive_rows()
            return self._cut(rows), n
        return self._compacted((self.batch.alive & ~self.settled)[None])[0]

    def _ran(self) -> Tensor:
        """bool [L, B]: where a layer's body ran, from the rows that it was handed."""
        ran = torch.zeros_like(self.batch.route)
        if not self._executed:
            return ran
        # a stack over all layers: an index of those that ran would be copied from the host
        some = next(iter(self._executed.values()))
        none = some[0], torch.zeros_like(some[1])
        every = [self._executed.get(layer, none) for layer in range(self.layers.spec.num_layers)]
        rows, counts = zip(*every, strict=True)
        active = self._places < torch.stack(counts)[:, None]
        return ran.scatter_(1, torch.stack(rows).long(), active)


def pick(
    layers: DecoderLayers,
    stream: ResidualStream,
    batch: DecodeBatch,
    picker: TokenPicker,
    rows: Tensor,
    n: Tensor,
) -> Tensor:
    """Tokens [C] of `rows[:n]`, from where the stream stands."""
    # a greedy choice draws nothing: whose counters these are is all one to it
    request, step = batch.request[: len(rows)], batch.step[: len(rows)]
    if not picker.is_greedy:
        request, step = (t.index_select(0, rows) for t in (batch.request, batch.step))
    return picker.pick(layers.final(stream, rows, n), n, rows, request, step)
