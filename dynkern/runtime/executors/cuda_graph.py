"""The cuda_graph executor: captured decode passes, replayed without a host in the loop.

It captures what the eager executor composes. Planned routes that are nested get a graph of a whole
pass for their union, other routes a graph a layer, token policies one graph of everything. Rows
are compacted, advanced and ended inside of the graphs, so that one graph serves rows that come and
go; tokens are read back LAG passes later. Not yet run on a GPU.
"""

from __future__ import annotations

import logging
import time
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle

import torch
from torch import Tensor

from dynkern import routes as route_math
from dynkern.models.spec import DecoderSpec
from dynkern.models.weights import DecoderWeights
from dynkern.ops import OPS
from dynkern.ops.backends import resolve
from dynkern.runtime.batch import DecodeBatch, PassLimits, PassResult, PlannedRows
from dynkern.runtime.executors.eager import EagerExecutor
from dynkern.runtime.executors.graph_pool import GraphPool, PoolEntry, bucket
from dynkern.runtime.executors.graph_state import Report
from dynkern.runtime.executors.graphs import CudaGraphs, Graphs, Mark
from dynkern.runtime.kv_cache import KVCache
from dynkern.runtime.request import SamplingParams
from dynkern.runtime.sampling import TokenPicker

logger = logging.getLogger("dynkern")

# passes that may be queued before the host reads the oldest: enough to hide a read of 10 to 20 µs
# behind passes of 100 µs and more, and as many empty passes once the last row has ended
LAG = 4
_FOREVER = 1 << 40
_GREEDY = SamplingParams()


@dataclass(frozen=True)
class HostRows:
    """What the host knows of a batch's rows: slots of the live ones, their routes bool [R, L]."""

    live: list[int]
    routes: Tensor

    @property
    def union(self) -> list[bool]:
        """Layers that at least one live row runs."""
        return self.routes.any(dim=0).tolist()


class CudaGraphExecutor(EagerExecutor):
    """Replays captured passes; the eager executor's own where a pass cannot be captured.

    graphs: of the weights' device by default. demanded: whether a capture that fails raises; else
    the executor says so once and goes on eagerly. replays: passes that were replayed. whole_passes:
    whether nested routes get a graph of their pass (to be measured against graphs a layer).
    """

    def __init__(
        self,
        spec: DecoderSpec,
        weights: DecoderWeights,
        graphs: Graphs | None = None,
        demanded: bool = False,
    ) -> None:
        super().__init__(spec, weights)
        self.graphs = CudaGraphs(weights.device) if graphs is None else graphs
        self.pool = GraphPool(self.layers, self.graphs)
        self.demanded, self.replays, self.whole_passes = demanded, 0, True
        self._failed: str | None = None
        self._told: set[str] = set()
        self._rows: weakref.WeakKeyDictionary[DecodeBatch, tuple[PlannedRows, HostRows]]
        self._rows = weakref.WeakKeyDictionary()

    @property
    def name(self) -> str:
        """What runs the passes, for stamping results."""
        return "cuda_graph" if self._failed is None else "eager"

    def why_eager(self, picker: TokenPicker) -> str | None:
        """Why passes with this picker are not captured, or None."""
        if self._failed is not None:
            return self._failed
        if not picker.picks_by_params:
            return f"{type(picker).__name__} picks tokens on the host"
        if self.graphs.runs_reference:
            return None
        if self.dtype == torch.float64:
            return "float64 runs on the reference, which waits for the device"
        for op in OPS.values():
            if resolve(op, self.device.type).backend == "reference":
                return f"{op.label} runs on the reference, which waits for the device"
        return None

    def decode(self, batch: DecodeBatch, cache: KVCache, picker: TokenPicker) -> PassResult:
        """One routed pass for the live rows of `batch`; appends to `cache` and picks tokens."""
        if self._goes_eager(picker):
            return super().decode(batch, cache, picker)
        n = batch.n_slots
        limits = PassLimits(1, 0.0, [_FOREVER] * n, [frozenset()] * n)
        try:
            results = self._run(batch, cache, picker, limits, stores=False)
        except _CaptureFailed as error:
            self._give_up(error)
            return super().decode(batch, cache, picker)
        return results[0] if results else super().decode(batch, cache, picker)

    def advance(
        self, batch: DecodeBatch, cache: KVCache, picker: TokenPicker, limits: PassLimits
    ) -> list[PassResult]:
        """Passes up to the limits, or until no row is live; the batch is advanced.

        Rows that end are no longer alive in it, so that later passes run without them.
        """
        if self._goes_eager(picker):
            return super().advance(batch, cache, picker, limits)
        try:
            return self._run(batch, cache, picker, limits, stores=True)
        except _CaptureFailed as error:
            self._give_up(error)
            return super().advance(batch, cache, picker, limits)

    def fixed_part(
        self, batch: DecodeBatch, cache: KVCache, picker: TokenPicker, count: int = 1
    ) -> Tensor:
        """Embedding, final norm and LM head of the live rows: t_fixed of the cost model."""
        if self._goes_eager(picker):
            return super().fixed_part(batch, cache, picker, count)
        with self.graphs.working():
            rows = self._host_rows(batch)
            entry = self._entry(batch, cache, picker, 1)
            replay = self._captured(lambda: entry.fixed(bucket(max(1, len(rows.live)))))
            for _ in range(count):
                replay()
        return entry.state.report.token[: batch.n_slots].clone()

    def fill_part(self, batch: DecodeBatch, cache: KVCache) -> None:
        """K/V projections of the live rows at every layer, as kv_fill "project" does them."""
        picker = TokenPicker(self.head, _GREEDY, 0)
        if self._goes_eager(picker):
            super().fill_part(batch, cache)
            return
        with self.graphs.working():
            rows = self._host_rows(batch)
            entry = self._entry(batch, cache, picker, 1)
            self._captured(lambda: entry.fill_only(bucket(max(1, len(rows.live)))))()

    def _goes_eager(self, picker: TokenPicker) -> bool:
        why = self.why_eager(picker)
        if why is not None and why not in self._told:
            self._told.add(why)
            logger.info("cuda_graph: passes run eagerly: %s", why)
        return why is not None

    def _give_up(self, error: _CaptureFailed) -> None:
        if self.demanded:
            raise error.__cause__ or error
        self._failed = f"a capture failed ({error})"
        logger.warning("cuda_graph: %s; passes run eagerly from here on", self._failed)

    def _captured(self, make: Callable[[], Callable[[], None]]) -> Callable[[], None]:
        try:
            return make()
        except RuntimeError as error:
            raise _CaptureFailed(str(error).splitlines()[0]) from error

    def _host_rows(self, batch: DecodeBatch) -> HostRows:
        plan = batch.planned_rows()  # made anew whenever a row came or went
        held = self._rows.get(batch)
        if held is None or held[0] is not plan:
            alive = batch.alive.cpu()
            live = alive.nonzero().flatten().tolist()
            held = plan, HostRows(live, batch.route.cpu()[:, live].T)
            self._rows[batch] = held
        return held[1]

    def _entry(
        self, batch: DecodeBatch, cache: KVCache, picker: TokenPicker, eos_width: int
    ) -> PoolEntry:
        """Graphs for this batch, with its state in their buffers."""
        entry = self.pool.entry(batch, cache, picker, eos_width)
        entry.state.load(batch, cache, picker)
        return entry

    def _run(
        self,
        batch: DecodeBatch,
        cache: KVCache,
        picker: TokenPicker,
        limits: PassLimits,
        stores: bool,
    ) -> list[PassResult]:
        with self.graphs.working():
            rows = self._host_rows(batch)
            if not rows.live:
                return []
            width = max(1, *(len(limits.eos_ids[slot]) for slot in rows.live))
            entry = self._entry(batch, cache, picker, width)
            entry.state.limit(limits, batch.n_slots)
            capacity, union = bucket(len(rows.live)), rows.union
            # planned passes report keep bits: which layers they had is known here
            replayed = None if batch.program is not None else torch.tensor(union)
            if batch.program is not None:
                launch = self._captured(lambda: entry.token_pass(capacity))
            elif (
                self.whole_passes
                and route_math.is_nested(rows.routes)
                and entry.is_even(rows.routes)
            ):
                launch = self._captured(lambda: entry.whole_pass(union, capacity))
            else:
                counts = rows.routes.sum(dim=0).tolist()
                launch = self._captured(lambda: entry.layer_by_layer(counts, capacity))
            results, after = self._passes(entry, launch, batch.n_slots, rows, limits, replayed)
            if stores:
                entry.state.store(batch, cache, picker)
            else:
                entry.state.store_lengths(cache, batch.n_slots)
        if stores and after < len(rows.live):
            batch.rows_changed()
        return results

    def _passes(
        self,
        entry: PoolEntry,
        launch: Callable[[], None],
        n_slots: int,
        rows: HostRows,
        limits: PassLimits,
        replayed: Tensor | None,
    ) -> tuple[list[PassResult], int]:
        """Launch passes and land them LAG passes later; results, and how many rows are left."""
        most = max(limits.remaining[slot] for slot in rows.live)
        most = max(1, min(most, limits.max_passes))
        until = time.perf_counter() + limits.max_seconds
        results: list[PassResult] = []
        flying: deque[tuple[Report, Mark]] = deque()
        alive = len(rows.live)

        def land() -> int:
            report, mark = flying.popleft()
            mark.wait()
            # a pass that was launched before the host heard of the last row's end ran for nobody
            if report.before.any():
                results.append(report.result(n_slots, replayed))
            return int(report.after.sum())

        ring = cycle(entry.ring(LAG + 1))
        for launched in range(most):
            if not alive or (launched and time.perf_counter() >= until):
                break
            launch()
            report, mark = next(ring)
            self.graphs.read_back(report.buffer, entry.state.report.buffer)
            mark.record()
            flying.append((report, mark))
            if len(flying) > LAG:
                alive = land()
                if limits.until_end and alive < len(rows.live):
                    break
        while flying:
            alive = land()
        self.replays += len(results)
        return results, alive


class _CaptureFailed(RuntimeError):
    """A capture raised."""
