"""kv_fill rules: what a later token finds at a layer that an earlier token skipped."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from dynkern.models.spec import DecoderSpec
from dynkern.models.weights import DecoderWeights, LayerWeights
from dynkern.ops import kv_copy_forward, kv_project, residual_bypass_layer_norm, route_compact
from dynkern.routes import check_choice, copy_source
from dynkern.runtime.batch import DecodeBatch
from dynkern.runtime.executors.stream import ResidualStream

DEFERRED_TOKENS = 16


class Lanes(Protocol):
    """Where rows keep their K/V: a KVCache, or what stands in for one."""

    k: Tensor
    v: Tensor
    lane: Tensor
    length: Tensor


class KVFill:
    """Planned routes: nothing to fill, since no row ever reads a layer that it skips.

    filled counts the projected rows of each layer in the current pass, int64 [L]. reads_counts:
    whether the host may look at a count of rows, to leave an op out (see DecodePass).
    """

    def __init__(
        self,
        spec: DecoderSpec,
        weights: DecoderWeights,
        batch: DecodeBatch,
        cache: Lanes,
        reads_counts: bool = True,
    ) -> None:
        self.spec, self.weights, self.batch, self.cache = spec, weights, batch, cache
        self.reads_counts = reads_counts and cache.k.device.type == "cpu"
        self.filled = torch.zeros(spec.num_layers, dtype=torch.int64, device=cache.k.device)

    @property
    def kept(self) -> list[Tensor]:
        """What a batch's later passes find here again, beside its K/V."""
        return []

    def begin_pass(self) -> None:
        """Start a pass."""

    def before_layer(self, layer: int, rows: Tensor, n: Tensor) -> None:
        """Called before `rows[:n]` run the layer."""

    def skipped(self, layer: int, stream: ResidualStream, rows: Tensor, n: Tensor) -> None:
        """Called for the live rows that skip the layer, before it runs for the others."""

    def end_pass(self, ran: Tensor) -> None:
        """Called once every layer is through. ran: bool [L, B]."""
        self.cache.length[:, : self.batch.n_slots].add_(self.batch.alive)

    def _project(self, layer: int, x: Tensor, rows: Tensor, position: Tensor, n: Tensor) -> None:
        w = self.weights.layers[layer]
        lane = self.cache.lane[layer].index_select(0, rows)
        kv_project(x, w.kv_weight, w.kv_bias, self.cache.k, self.cache.v, lane, position, n)
        self.filled[layer].add_(n)


class ProjectFill(KVFill):
    """The skipped layer's own k/v projections of the passed-through hidden state, at once."""

    def begin_pass(self) -> None:
        self.filled.zero_()

    def skipped(self, layer: int, stream: ResidualStream, rows: Tensor, n: Tensor) -> None:
        x = stream.normed(rows, n, _attn_norm(self.weights.layers[layer]))
        position = self.cache.length[layer].index_select(0, rows)
        self._project(layer, x, rows, position, n)


class CopyFill(KVFill):
    """Copy-forward from the nearest layer that ran, all layers and rows in one call."""

    def end_pass(self, ran: Tensor) -> None:
        lane = self.cache.lane[:, : self.batch.n_slots].contiguous()
        source = copy_source(ran, self.batch.alive)
        kv_copy_forward(
            self.cache.k, self.cache.v, lane, source, self.batch.position.to(torch.int32)
        )
        super().end_pass(ran)


class MaskFill(KVFill):
    """Nothing: each row and layer counts its own entries."""

    def end_pass(self, ran: Tensor) -> None:
        self.cache.length[:, : self.batch.n_slots].add_(ran)


class DeferredFill(KVFill):
    """ProjectFill's values, computed in one batch when the layer next runs for the row.

    Hidden states wait in a buffer of DEFERRED_TOKENS tokens a layer and row; a full one is
    projected at once. `length` counts projected entries only. Rows beyond n write to a slot that
    no row has.
    """

    def __init__(self, *given, **options) -> None:
        super().__init__(*given, **options)
        cache, slots = self.cache, self.batch.n_slots
        shape = (self.spec.num_layers, slots + 1, DEFERRED_TOKENS, self.spec.hidden_size)
        device = cache.k.device
        self.waiting = torch.empty(shape, dtype=cache.k.dtype, device=device)
        self.count = torch.zeros(shape[:2], dtype=torch.int64, device=device)
        self._turn = torch.arange(DEFERRED_TOKENS, device=device)
        self._places = torch.arange(slots, device=device)

    @property
    def kept(self) -> list[Tensor]:
        return [self.waiting, self.count]

    def begin_pass(self) -> None:
        self.filled.zero_()
        # a row in its first pass has nothing waiting, whatever its slot's last row left
        self.count[:, :-1].mul_(self.batch.step > 1)

    def before_layer(self, layer: int, rows: Tensor, n: Tensor) -> None:
        self._flush(layer, self._chosen(rows, n)[0])

    def skipped(self, layer: int, stream: ResidualStream, rows: Tensor, n: Tensor) -> None:
        x = stream.raw(rows, n)
        chosen, slot = self._chosen(rows, n)
        count = self.count[layer]
        self.waiting[layer].index_put_((slot, count.index_select(0, slot)), x)
        count.add_(chosen)
        self._flush(layer, chosen & (count == DEFERRED_TOKENS))

    def _chosen(self, rows: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
        """Whether a slot is among rows[:n], [B + 1]; and rows with the spare slot from n on."""
        spare = self.batch.n_slots
        active = self._places[: len(rows)] < n
        slot = torch.where(active, rows.long(), spare)
        return torch.zeros_like(self.count[0], dtype=torch.bool).scatter_(0, slot, active), slot

    def _flush(self, layer: int, chosen: Tensor) -> None:
        count, length = self.count[layer], self.cache.length[layer]
        waits = (self._turn < count[:, None]) & chosen[:, None]
        order, total = route_compact(waits.view(1, -1))
        order, total = order[0], total[0]
        if self.reads_counts and int(total) == 0:
            return
        slots = self.batch.n_slots
        owner = (order // DEFERRED_TOKENS).clamp(max=slots - 1)
        kind = "pre" if self.spec.pre_norm else "none"
        norm = _attn_norm(self.weights.layers[layer]) if self.spec.pre_norm else (None, None)
        waiting = self.waiting[layer].view(-1, self.spec.hidden_size)
        nothing = None, None, None
        x = residual_bypass_layer_norm(
            waiting, *nothing, *norm, order, total, kind, self.spec.norm_eps
        )
        position = length.index_select(0, owner) + order % DEFERRED_TOKENS
        self._project(layer, x, owner, position, total)
        length[:slots].add_((count * chosen)[:-1])
        count.mul_(~chosen)

    def end_pass(self, ran: Tensor) -> None:
        self.cache.length[:, : self.batch.n_slots].add_(ran)


_FILLS = {
    "project": ProjectFill,
    "copy": CopyFill,
    "mask": MaskFill,
    "deferred": DeferredFill,
}


def make_kv_fill(
    spec: DecoderSpec,
    weights: DecoderWeights,
    batch: DecodeBatch,
    cache: Lanes,
    reads_counts: bool = True,
) -> KVFill:
    """The rule that `batch` asks for; planned routes need none."""
    check_choice("kv_fill", batch.kv_fill, tuple(_FILLS))
    rule = KVFill if batch.program is None else _FILLS[batch.kv_fill]
    return rule(spec, weights, batch, cache, reads_counts)


def _attn_norm(w: LayerWeights) -> tuple[Tensor | None, Tensor | None]:
    return w.attn_norm_weight, w.attn_norm_bias
