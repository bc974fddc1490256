"""kv_fill rules: what a later token finds at a layer that an earlier token skipped."""

from __future__ import annotations

import torch
from torch import Tensor

from dynkern.models.spec import DecoderSpec
from dynkern.models.weights import DecoderWeights, LayerWeights
from dynkern.ops import kv_copy_forward, kv_project, residual_bypass_layer_norm
from dynkern.routes import check_choice, copy_source
from dynkern.runtime.batch import DecodeBatch
from dynkern.runtime.executors.stream import ResidualStream
from dynkern.runtime.kv_cache import KVCache

DEFERRED_TOKENS = 16


class KVFill:
    """Planned routes: nothing to fill, since no row ever reads a layer that it skips.

    filled counts the projected rows of each layer in the current pass, int64 [L].
    """

    def __init__(
        self, spec: DecoderSpec, weights: DecoderWeights, batch: DecodeBatch, cache: KVCache
    ) -> None:
        self.spec, self.weights, self.batch, self.cache = spec, weights, batch, cache
        self.filled = torch.zeros(spec.num_layers, dtype=torch.int64, device=cache.k.device)

    def forget(self, slot: int) -> None:
        """Another row takes the slot: drop what waits there for the one before."""

    def begin_pass(self) -> None:
        """Start a pass."""
        self.filled.zero_()

    def before_layer(self, layer: int, rows: Tensor, n: Tensor) -> None:
        """Called before `rows[:n]` run the layer."""

    def skipped(self, layer: int, stream: ResidualStream, rows: Tensor, n: Tensor) -> None:
        """Called for the live rows that skip the layer, before it runs for the others."""

    def end_pass(self, ran: Tensor) -> None:
        """Called once every layer is through. ran: bool [L, B]."""
        self.cache.length[:, : self.batch.n_slots].add_(self.batch.alive)

    def _project(
        self, layer: int, x: Tensor, rows: Tensor, position: Tensor, n: Tensor | None
    ) -> None:
        w = self.weights.layers[layer]
        lane = self.cache.lane[layer].index_select(0, rows)
        kv_project(x, w.kv_weight, w.kv_bias, self.cache.k, self.cache.v, lane, position, n)
        self.filled[layer] += x.shape[0] if n is None else n


class ProjectFill(KVFill):
    """The skipped layer's own k/v projections of the passed-through hidden state, at once."""

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
    projected at once. `length` counts projected entries only.
    """

    def __init__(
        self, spec: DecoderSpec, weights: DecoderWeights, batch: DecodeBatch, cache: KVCache
    ) -> None:
        super().__init__(spec, weights, batch, cache)
        shape = (spec.num_layers, batch.n_slots, DEFERRED_TOKENS, spec.hidden_size)
        self.waiting = torch.empty(shape, dtype=cache.k.dtype, device=cache.k.device)
        self.count = torch.zeros(shape[:2], dtype=torch.int64, device=cache.k.device)

    def forget(self, slot: int) -> None:
        self.count[:, slot] = 0

    def before_layer(self, layer: int, rows: Tensor, n: Tensor) -> None:
        self._flush(layer, rows[: int(n)].long())

    def skipped(self, layer: int, stream: ResidualStream, rows: Tensor, n: Tensor) -> None:
        x = stream.raw(rows, n)
        index = rows[: int(n)].long()
        self.waiting[layer, index, self.count[layer, index]] = x[: int(n)]
        self.count[layer, index] += 1
        self._flush(layer, index[self.count[layer, index] == DEFERRED_TOKENS])

    def _flush(self, layer: int, rows: Tensor) -> None:
        counts = self.count[layer, rows]
        total = int(counts.sum())
        if total == 0:
            return
        owner = torch.repeat_interleave(rows, counts)
        first = torch.repeat_interleave(counts.cumsum(0) - counts, counts)
        offset = torch.arange(total, device=rows.device) - first
        x = self.waiting[layer, owner, offset]
        if self.spec.pre_norm:
            order = torch.arange(total, dtype=torch.int32, device=rows.device)
            norm = _attn_norm(self.weights.layers[layer])
            x = residual_bypass_layer_norm(
                x, None, None, None, *norm, order, None, "pre", self.spec.norm_eps
            )
        position = self.cache.length[layer, owner] + offset.to(torch.int32)
        self._project(layer, x, owner, position, None)
        self.cache.length[layer, rows] += counts.to(torch.int32)
        self.count[layer, rows] = 0

    def end_pass(self, ran: Tensor) -> None:
        self.cache.length[:, : self.batch.n_slots].add_(ran)


_FILLS = {
    "project": ProjectFill,
    "copy": CopyFill,
    "mask": MaskFill,
    "deferred": DeferredFill,
}


def make_kv_fill(
    spec: DecoderSpec, weights: DecoderWeights, batch: DecodeBatch, cache: KVCache
) -> KVFill:
    """The rule that `batch` asks for; planned routes need none."""
    check_choice("kv_fill", batch.kv_fill, tuple(_FILLS))
    rule = KVFill if batch.program is None else _FILLS[batch.kv_fill]
    return rule(spec, weights, batch, cache)


def _attn_norm(w: LayerWeights) -> tuple[Tensor | None, Tensor | None]:
    return w.attn_norm_weight, w.attn_norm_bias
