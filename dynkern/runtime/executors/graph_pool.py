"""Captured graphs, by what they hold for: a cache, slots, a way to pick, and the layers."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any

import torch
from torch import Tensor

from dynkern.kernels.invariance import is_batch_invariant
from dynkern.ops import route_compact
from dynkern.ops.backends import requested_backend
from dynkern.runtime.batch import DecodeBatch
from dynkern.runtime.executors.decode_pass import DecodePass, decode_layer, pick
from dynkern.runtime.executors.graph_state import DRAWN_PASSES, PassState, Report
from dynkern.runtime.executors.graphs import Graph, Graphs, Mark
from dynkern.runtime.executors.layers import DecoderLayers
from dynkern.runtime.executors.stream import FUSED_ROWS, ResidualStream
from dynkern.runtime.kv_cache import KVCache
from dynkern.runtime.sampling import TokenPicker

# graphs of token policies, each of a whole model; and pickers and programs that have graphs at all
_MOST_PROGRAMS = 8
_MOST_ENTRIES = 16


def bucket(rows: int) -> int:
    """The power of two that covers `rows`: row lists, grids and tiles are made for so many."""
    return 1 << max(0, rows - 1).bit_length()


class GraphStore:
    """At most `most` graphs; the one longest unused goes."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._held: OrderedDict[Any, Graph] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def get(self, key: Any, make: Callable[[], Graph]) -> Graph:
        """The graph of `key`, captured where it is not there."""
        if key not in self._held:
            while len(self._held) >= self.most:
                self._held.popitem(last=False)
            self._held[key] = make()
        self._held.move_to_end(key)
        return self._held[key]


class GraphPool:
    """The graphs of one executor."""

    def __init__(self, layers: DecoderLayers, graphs: Graphs) -> None:
        self.layers, self.graphs = layers, graphs
        self._states: dict[tuple[int, ...], tuple[weakref.ref[KVCache], PassState]] = {}
        self._entries: OrderedDict[Any, PoolEntry] = OrderedDict()

    def entry(
        self, batch: DecodeBatch, cache: KVCache, picker: TokenPicker, eos_width: int
    ) -> PoolEntry:
        """Graphs for batches like this one, over this cache."""
        self._forget_the_dead()
        n_slots, width = bucket(batch.n_slots), bucket(eos_width)
        place = id(cache), n_slots, width
        if place not in self._states:
            layers = self.layers
            state = PassState(layers.spec, layers.weights, cache, n_slots, width)
            self._states[place] = weakref.ref(cache), state
        state = self._states[place][1]
        draws = not picker.is_greedy or batch.program is not None
        seeds = (batch.seed, picker.seed) if draws else None
        history = None if picker.history is None else picker.history.shape[1]
        program = None if batch.program is None else (batch.program, batch.kv_fill)
        mode = requested_backend(), is_batch_invariant()
        key = place, program, picker.params, seeds, history, mode
        if key not in self._entries:
            while len(self._entries) >= _MOST_ENTRIES:
                self._entries.popitem(last=False)
            self._entries[key] = PoolEntry(self.layers, self.graphs, state, batch, picker)
        self._entries.move_to_end(key)
        return self._entries[key]

    def _forget_the_dead(self) -> None:
        """A graph must not outlive the memory that it writes to."""
        dead = {place for place, (cache, _) in self._states.items() if cache() is None}
        for place in dead:
            del self._states[place]
        for key in [key for key in self._entries if key[0] in dead]:
            del self._entries[key]


class PoolEntry:
    """Graphs of one kind of pass. Each method hands back what launches it."""

    def __init__(
        self,
        layers: DecoderLayers,
        graphs: Graphs,
        state: PassState,
        batch: DecodeBatch,
        picker: TokenPicker,
    ) -> None:
        self.layers, self.graphs, self.state = layers, graphs, state
        self.num_layers = layers.spec.num_layers
        program, seed = (batch.program, batch.seed)
        self.batch = state.batch.under(program, batch.kv_fill, seed, [True] * self.num_layers)
        self.picker = state.picker(picker)
        self._whole = GraphStore(self.num_layers)
        self._parts: dict[Any, Graph] = {}
        self._programs = GraphStore(_MOST_PROGRAMS)
        self._split: SplitPass | None = None
        self._ring: list[tuple[Report, Mark]] = []

    @property
    def n_whole(self) -> int:
        """Graphs of whole planned passes."""
        return len(self._whole)

    @property
    def parts(self) -> set[Any]:
        """What the other graphs hold for: ("layer", l, rows), ("head", rows), ("embed",)."""
        return set(self._parts)

    def ring(self, length: int) -> list[tuple[Report, Mark]]:
        """Reports on the host, with the marks that say when they are valid."""
        while len(self._ring) < length:
            buffer = self.graphs.host_bytes(self.state.report.buffer.numel())
            report = Report(self.num_layers, self.state.n_slots, buffer)
            self._ring.append((report, self.graphs.mark()))
        return self._ring

    def is_even(self, routes: Tensor) -> bool:
        """Whether one capacity of rows serves every layer: up to FUSED_ROWS a tile reads the same
        weights for one row and for all.
        """
        counts = {bucket(n) for n in routes.sum(dim=0).tolist() if n}
        return self.state.n_slots <= FUSED_ROWS or len(counts) == 1

    def whole_pass(self, union: Sequence[bool], capacity: int) -> Callable[[], None]:
        """A planned pass over the layers of a union."""
        batch = self.batch.under(None, self.batch.kv_fill, self.batch.seed, union)
        key = tuple(union), capacity
        return self._whole.get(key, lambda: self._capture_pass(batch, capacity)).replay

    def token_pass(self, capacity: int) -> Callable[[], None]:
        """A pass of the token policy: all layers, whose ops leave at once for no rows.

        What is drawn depends on counters alone: a graph of its own draws for DRAWN_PASSES passes.
        """
        draws = self.batch.program.kind != "confidence"
        graph = self._programs.get(capacity, lambda: self._capture_pass(self.batch, capacity))
        if not draws:
            return graph.replay
        ahead, turns = self._part(("draw",), self._draw_ahead), count()

        def launch() -> None:
            if next(turns) % DRAWN_PASSES == 0:
                ahead.replay()
            graph.replay()

        return launch

    def _draw_ahead(self) -> None:
        batch, state = self.batch, self.state
        turn = torch.arange(DRAWN_PASSES, device=batch.step.device)[:, None]
        step = (batch.step + turn).flatten()
        request = batch.request.repeat(DRAWN_PASSES)
        drawn = batch.program.draw(batch.seed, request, step, self.num_layers)
        state.drawn.copy_(drawn.view(self.num_layers, DRAWN_PASSES, -1).transpose(0, 1))
        state.turn.zero_()

    def layer_by_layer(self, counts: Sequence[int], capacity: int) -> Callable[[], None]:
        """A planned pass of one graph a layer. counts: rows that run each layer, at most."""
        if self._split is None:
            self._split = SplitPass(self)
        split, parts = self._split, []
        split.lead_through([n > 0 for n in counts])
        parts.append(self._part(("embed",), split.embed))
        for layer, n in enumerate(counts):
            if n:
                rows = bucket(n)
                work = lambda layer=layer, rows=rows: split.layer(layer, rows)  # noqa: E731
                parts.append(self._part(("layer", layer, rows), work))
        parts.append(self._part(("head", capacity), lambda: split.head(capacity)))

        def launch() -> None:
            for graph in parts:
                graph.replay()

        return launch

    def fixed(self, capacity: int) -> Callable[[], None]:
        """Embedding and head alone; their tokens are the report's."""

        def work() -> None:
            self.batch.rows_changed()
            stream = self.layers.embed(self.batch.token, self.batch.position)
            rows, n = self.batch.alive_rows()
            token = pick(self.layers, stream, self.batch, self.picker, rows[:capacity], n)
            self.state.report.token[:capacity].copy_(token)

        return self._part(("fixed", capacity), work).replay

    def fill_only(self, capacity: int) -> Callable[[], None]:
        """K/V projections at every layer alone."""

        def work() -> None:
            self.batch.rows_changed()
            fill = self.state.fill(self.batch)
            stream = self.layers.embed(self.batch.token, self.batch.position)
            rows, n = self.batch.alive_rows()
            for layer in range(self.num_layers):
                fill.skipped(layer, stream, rows[:capacity], n)

        return self._part(("fill", capacity), work).replay

    def _part(self, key: Any, work: Callable[[], None]) -> Graph:
        if key not in self._parts:
            self._parts[key] = self._capture(work)
        return self._parts[key]

    def _capture_pass(self, batch: Any, capacity: int) -> Graph:
        fill, state = self.state.fill(batch), self.state

        def work() -> None:
            batch.begin_pass()
            given = self.layers, batch, state.lanes, fill, self.picker
            options = {"reads_counts": False, "draw": state.next_drawn}
            run = DecodePass(*given, capacity, **options)
            if batch.program is None:
                rows, n = batch.alive_rows()
                self.end_planned(run.run_layers(), rows[:capacity], n)
            else:
                state.report_of(run.run())
                state.finish(self.picker)

        return self._capture(work)

    def end_planned(self, stream: ResidualStream, rows: Tensor, n: Tensor) -> None:
        """The end of a planned pass; what it ran lies in the report since it began."""
        batch, state = self.batch, self.state
        token = pick(self.layers, stream, batch, self.picker, rows, n)
        state.fill(batch).end_pass(state.report.ran)
        # rows beyond n are slots without a live row, whose tokens nobody reads
        state.report.token.scatter_(0, rows.long(), token)
        state.finish(self.picker)

    def _capture(self, work: Callable[[], None]) -> Graph:
        with self._nobody_alive():
            return self.graphs.capture(work)

    @contextmanager
    def _nobody_alive(self) -> Iterator[None]:
        """Work that runs ahead of its capture must leave everything as it is."""
        alive = self.state.batch.alive
        held = alive.clone()
        alive.zero_()
        self.state.turn.zero_()
        if self._split is not None:
            self._split.forget_rows()
        try:
            yield
        finally:
            alive.copy_(held)


class SplitPass:
    """A planned pass in parts that hand on what they leave in fixed buffers.

    A layer's graph does not know which layer ran before it: `previous` says so on the device, and
    with it whose rows the sublayer output belongs to that is still to be added. Post-norm models
    add at the end of a layer instead, since what adds is the earlier layer's norm.
    """

    def __init__(self, entry: PoolEntry) -> None:
        self.entry, self.layers, self.state = entry, entry.layers, entry.state
        layers, slots = entry.num_layers, entry.state.n_slots
        weights, spec = self.layers.weights, self.layers.spec
        shape = slots, spec.hidden_size
        self.h = torch.zeros(shape, dtype=weights.dtype, device=weights.device)
        self.delta = torch.zeros_like(self.h)
        lists = layers + 2, slots
        # layers, then the live rows, then nobody
        self.rows = torch.zeros(lists, dtype=torch.int32, device=weights.device)
        self.counts = torch.zeros(layers + 2, dtype=torch.int32, device=weights.device)
        self.delta_rows = torch.zeros_like(self.rows[: layers + 1])
        self.delta_counts = torch.zeros_like(self.counts[: layers + 1])
        self.previous = torch.zeros(layers + 1, dtype=torch.int64, device=weights.device)
        self._union: list[bool] | None = None

    def lead_through(self, union: list[bool]) -> None:
        """Say which layers follow each other."""
        if union == self._union:
            return
        self._union, before, last = union, [], len(union) + 1
        for layer, runs in enumerate([*union, True]):
            before.append(last)
            last = layer if runs else last
        self.previous.copy_(torch.tensor(before))

    def forget_rows(self) -> None:
        """No row in any list, until the next pass."""
        self.counts.zero_()
        self.delta_counts.zero_()

    def embed(self) -> None:
        """Row lists of every layer, and the residual stream."""
        batch, layers = self.entry.batch, self.entry.num_layers
        rows, counts = route_compact(batch.keep_rows())
        self.rows[: layers + 1].copy_(rows)
        self.counts[: layers + 1].copy_(counts)
        if self.layers.spec.pre_norm:
            torch.index_select(self.rows, 0, self.previous, out=self.delta_rows)
            torch.index_select(self.counts, 0, self.previous, out=self.delta_counts)
        self.h.copy_(self.layers.embed(batch.token, batch.position).h)

    def layer(self, layer: int, capacity: int) -> None:
        """One layer for its rows, at most `capacity`."""
        stream = self._stream(layer)
        rows, n = self.rows[layer, :capacity], self.counts[layer]
        decode_layer(self.layers, layer, stream, self.state.lanes, rows, n)
        if not self.layers.spec.pre_norm:
            stream.raw(rows, n)
            targets, sources = [], []
        else:
            delta = stream.pending[0]
            targets, sources = [self.delta[: len(delta)]], [delta]
        if stream.h is not self.h:
            targets.append(self.h)
            sources.append(stream.h)
        if targets:
            torch._foreach_copy_(targets, sources)

    def head(self, capacity: int) -> None:
        """Tokens, and the end of the pass."""
        layers = self.entry.num_layers
        rows, n = self.rows[layers, :capacity], self.counts[layers]
        self.entry.end_planned(self._stream(layers), rows, n)

    def _stream(self, layer: int) -> ResidualStream:
        stream = ResidualStream(self.h, self.layers.spec)
        if self.layers.spec.pre_norm:
            lists = self.delta_rows[layer], self.delta_counts[layer]
            stream.add(self.delta, *lists, (None, None))
        return stream
