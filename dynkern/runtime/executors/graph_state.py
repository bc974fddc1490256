"""Buffers at fixed addresses that captured passes read and write: a batch's state, a report."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

from dynkern.models.spec import DecoderSpec
from dynkern.models.weights import DecoderWeights
from dynkern.ops import route_compact
from dynkern.routes import TokenProgram
from dynkern.runtime.batch import DecodeBatch, PassLimits, PassResult, PlannedRows
from dynkern.runtime.executors.kv_fill import KVFill, make_kv_fill
from dynkern.runtime.kv_cache import KVCache
from dynkern.runtime.sampling import TokenPicker

# passes whose keep bits are drawn at a time: Philox in torch ops is some 190 small launches
DRAWN_PASSES = 32


class Report:
    """A pass's results in one buffer, read back by one copy.

    token [B], head_rows [1], filled [L]: int64. ran: bool [L, B]. before, after: bool [B], the rows
    that were live when the pass began and once it was through. keep: ran and before, one buffer.
    """

    def __init__(self, num_layers: int, n_slots: int, buffer: Tensor) -> None:
        self.buffer, start = buffer, 0

        def part(*shape: int, dtype: torch.dtype) -> Tensor:
            nonlocal start
            size = torch.Size(shape).numel() * dtype.itemsize
            start += size
            return buffer[start - size : start].view(dtype).view(shape)

        self.token = part(n_slots, dtype=torch.int64)
        self.head_rows = part(1, dtype=torch.int64)
        self.filled = part(num_layers, dtype=torch.int64)
        self.keep = part(num_layers + 1, n_slots, dtype=torch.bool)
        self.ran, self.before = self.keep[:-1], self.keep[-1]
        self.after = part(n_slots, dtype=torch.bool)

    @staticmethod
    def size(num_layers: int, n_slots: int) -> int:
        """Bytes of the buffer."""
        return 8 * (n_slots + 1 + num_layers) + (2 + num_layers) * n_slots

    def result(self, n_slots: int, replayed: Tensor | None) -> PassResult:
        """A copy for a batch of n_slots. replayed: bool [L], the layers whose graphs were."""
        ran = self.ran[:, :n_slots].clone()
        if replayed is not None:
            ran &= replayed[:, None]
        head_rows = self.head_rows[0].clone()
        return PassResult(self.token[:n_slots].clone(), ran, self.filled.clone(), head_rows)


class StaticBatch(DecodeBatch):
    """A DecodeBatch whose row lists are made anew in every pass, on the device. union: the layers
    whose launches a pass has, whether or not a row runs them. wanted: bool [L + 1, B], the routes
    and, last, True; kept: where the pass's keep bits go, those of the live rows last. counters:
    position, step, and how far a row is beyond its end (from minus what it may still pick up to 0).
    """

    union: list[bool]

    def __init__(self, num_layers: int, n_slots: int, report: Report, device: torch.device) -> None:
        super().__init__(num_layers, n_slots, "project", None, 0, device)
        self.wanted = torch.ones((num_layers + 1, n_slots), dtype=torch.bool, device=device)
        self.counters = torch.zeros((3, n_slots), dtype=torch.int64, device=device)
        self.route = self.wanted[:-1]
        self.position, self.step, self.beyond = self.counters.unbind(0)
        # the report tells who is live behind a pass, which is who is live ahead of the next
        self.kept, self.alive = report.keep, report.after

    def under(
        self, program: TokenProgram | None, kv_fill: str, seed: int, union: Sequence[bool]
    ) -> StaticBatch:
        """The same buffers under another program."""
        other = copy.copy(self)
        other.program, other.kv_fill, other.seed, other.union = program, kv_fill, seed, list(union)
        return other

    def keep_rows(self) -> Tensor:
        """The keep bits of a planned pass: rows come and go on the device."""
        return torch.bitwise_and(self.wanted, self.alive, out=self.kept)

    def begin_pass(self) -> None:
        """Make the pass's row lists, and note who takes part."""
        self.rows_changed()
        if self.program is not None:
            self.kept[-1].copy_(self.alive)
        else:
            row_index, n_active = (t.unbind(0) for t in route_compact(self.keep_rows()))
            self._planned = PlannedRows(row_index[:-1], n_active[:-1], self.union)
            self._alive_rows = row_index[-1], n_active[-1]


class _StaticLanes:
    """A cache's K/V under lanes and lengths at fixed addresses. It does not keep the cache."""

    def __init__(self, cache: KVCache, lane: Tensor, length: Tensor) -> None:
        self._cache, self.lane, self.length = weakref.ref(cache), lane, length

    @property
    def k(self) -> Tensor:
        return self._cache().k

    @property
    def v(self) -> Tensor:
        return self._cache().v


class PassState:
    """State of up to n_slots rows over one cache, of passes that advance it by themselves.

    eos_ids: int64 [B, E], -1 for none. A row ends on the device, with its last pass: the host hears
    of it passes later, in which the row takes no part.
    """

    def __init__(
        self,
        spec: DecoderSpec,
        weights: DecoderWeights,
        cache: KVCache,
        n_slots: int,
        eos_width: int,
    ) -> None:
        self.spec, self.weights, self.n_slots = spec, weights, n_slots
        layers, device = spec.num_layers, weights.device
        size = Report.size(layers, n_slots)
        buffer = torch.zeros(size, dtype=torch.uint8, device=device)
        self.report = Report(layers, n_slots, buffer)
        self.batch = StaticBatch(layers, n_slots, self.report, device)
        lane = torch.full((layers, n_slots), -1, dtype=torch.int32, device=device)
        self.lanes = _StaticLanes(cache, lane, torch.zeros_like(lane))
        self.eos_ids = torch.full((n_slots, eos_width), -1, dtype=torch.int64, device=device)
        # keep bits drawn ahead, and which of them are the next pass's
        shape = DRAWN_PASSES, layers, n_slots
        self.drawn = torch.zeros(shape, dtype=torch.bool, device=device)
        self.turn = torch.zeros(1, dtype=torch.int64, device=device)
        self._eos_of: list[frozenset[int]] | None = None
        self._owner: weakref.ref[DecodeBatch] | None = None
        self._fills: dict[str, KVFill] = {}
        self._histories: dict[int, Tensor] = {}

    def fill(self, batch: StaticBatch) -> KVFill:
        """The kv_fill rule of captured passes."""
        rule = "none" if batch.program is None else batch.kv_fill
        if rule not in self._fills:
            made = make_kv_fill(self.spec, self.weights, batch, self.lanes, reads_counts=False)
            self._fills[rule] = made
        return self._fills[rule]

    def next_drawn(self) -> Tensor:
        """Keep bits [L, B] of the pass that comes next."""
        keep = self.drawn.index_select(0, self.turn)[0]
        self.turn.add_(1)
        return keep

    def picker(self, picker: TokenPicker) -> TokenPicker:
        """`picker`, with its history where captured passes find it."""
        held = TokenPicker(picker.head, picker.params, picker.seed)
        if picker.history is not None:
            width = picker.history.shape[1]
            if width not in self._histories:
                self._histories[width] = picker.history.new_full((self.n_slots, width), -1)
            held.history = self._histories[width]
        return held

    def load(self, batch: DecodeBatch, cache: KVCache, picker: TokenPicker) -> None:
        """Take a batch's state over; slots beyond it are nobody's."""
        n, own = batch.n_slots, self.batch
        if self._owner is None or self._owner() is not batch:
            self._owner = weakref.ref(batch)
            for fill in self._fills.values():
                for kept in fill.kept:
                    kept.zero_()
        own.alive.zero_()
        # planned passes fill nothing and have one head: they report neither
        self.report.filled.zero_()
        self.report.head_rows.zero_()
        for name in ("token", "position", "request", "step", "alive"):
            getattr(own, name)[:n].copy_(getattr(batch, name))
        own.route[:, :n].copy_(batch.route)
        self.lanes.lane[:, :n].copy_(cache.lane[:, :n])
        self.lanes.length[:, :n].copy_(cache.length[:, :n])
        if picker.history is not None:
            self._histories[picker.history.shape[1]][:n].copy_(picker.history)

    def limit(self, limits: PassLimits, n_slots: int) -> None:
        """When rows end."""
        self.batch.beyond[:n_slots].copy_(-torch.tensor(list(limits.remaining[:n_slots])))
        ids = list(limits.eos_ids[:n_slots])
        if ids != self._eos_of:
            self._eos_of = ids
            width = self.eos_ids.shape[1]
            table = [sorted(row) + [-1] * (width - len(row)) for row in ids]
            self.eos_ids[:n_slots].copy_(torch.tensor(table, dtype=torch.int64))

    def store(self, batch: DecodeBatch, cache: KVCache, picker: TokenPicker) -> None:
        """Hand the state back."""
        n, own = batch.n_slots, self.batch
        for name in ("token", "position", "step", "alive"):
            getattr(batch, name).copy_(getattr(own, name)[:n])
        self.store_lengths(cache, n)
        if picker.history is not None:
            picker.history.copy_(self._histories[picker.history.shape[1]][:n])

    def store_lengths(self, cache: KVCache, n_slots: int) -> None:
        """Hand back only how many entries rows have."""
        cache.length[:, :n_slots].copy_(self.lanes.length[:, :n_slots])

    def report_of(self, result: PassResult) -> None:
        """Report a pass."""
        self.report.token.copy_(result.token)
        self.report.ran.copy_(result.ran)
        self.report.filled.copy_(result.filled)
        self.report.head_rows.copy_(result.head_rows)

    def finish(self, picker: TokenPicker) -> None:
        """The end of a captured pass: advance the rows by the tokens of the report, and end those
        that are through. Few launches: each is a hundredth of a pass over a quarter of the layers.
        """
        batch, token = self.batch, self.report.token
        picker.note(batch.alive, batch.position, token)
        torch.where(batch.alive, token, batch.token, out=batch.token)
        batch.counters.add_(batch.alive)
        ends = token[:, None] == self.eos_ids
        ends = ends.any(dim=1) if ends.shape[1] > 1 else ends[:, 0]
        batch.alive.masked_fill_(ends | (batch.beyond >= 0), False)
