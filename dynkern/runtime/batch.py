"""DecodeBatch: device-side state of the rows that decode together, and what a pass reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynkern.ops import route_compact
from dynkern.routes import TokenProgram
from dynkern.runtime.cells import cells


@dataclass
class PrefillResult:
    """What a prefill pass leaves: hidden states of the last tokens and the prompt's K/V.

    hidden: [R, E] final states as the LM head reads them. keys, values: [L, N, H, Dh] for the
    packed tokens; bounds: R + 1 offsets into N. layer_rows: for each layer, the rows that ran it.
    """

    hidden: Tensor
    keys: Tensor
    values: Tensor
    bounds: list[int]
    layer_rows: list[int]


@dataclass(frozen=True)
class PlannedRows:
    """For each layer: row_index int32 [B], n_active int32 [], whether any row runs it (host)."""

    row_index: tuple[Tensor, ...]
    n_active: tuple[Tensor, ...]
    union: list[bool]


class DecodeBatch:
    """Rows of a batch, one slot each; slots without a live row take no part in a pass.

    All tensors are on the device and keep their addresses for the batch's life: token, position
    (index in the row), request, step (tokens generated so far): int64 [B]; alive: bool [B];
    route: bool [L, B], all True for a token policy. `program` is the token policy's program, or
    None for planned routes. `fill` belongs to the executor: its kv_fill state over passes; if it
    has a method forget(slot), that is called when another row takes the slot.
    """

    def __init__(
        self,
        num_layers: int,
        n_slots: int,
        kv_fill: str,
        program: TokenProgram | None,
        seed: int,
        device: torch.device,
    ) -> None:
        def counters() -> Tensor:
            return torch.zeros(n_slots, dtype=torch.int64, device=device)

        self.token, self.position = counters(), counters()
        self.request, self.step = counters(), counters()
        self.alive = torch.zeros(n_slots, dtype=torch.bool, device=device)
        self.route = torch.zeros(num_layers, n_slots, dtype=torch.bool, device=device)
        self._counters = tuple(map(cells, (self.token, self.position, self.request, self.step)))
        self._alive, self._route = cells(self.alive), cells(self.route)
        self.kv_fill, self.program, self.seed = kv_fill, program, seed
        self.fill: Any = None
        self._planned: PlannedRows | None = None
        self._alive_rows: tuple[Tensor, Tensor] | None = None

    @property
    def n_slots(self) -> int:
        """Slots in all."""
        return self.alive.shape[0]

    def admit(
        self, slot: int, token: int, position: int, request: int, route: Tensor | None
    ) -> None:
        """Start a row: `token` is its first generated token, `position` its index in the row."""
        for counter, value in zip(self._counters, (token, position, request, 1), strict=True):
            counter[slot] = value
        self._alive[slot] = True
        self._route[:, slot] = True if route is None else cells(route.to(self.route.device))
        forget = getattr(self.fill, "forget", None)
        if forget is not None:
            forget(slot)
        self.rows_changed()

    def retire(self, slot: int) -> None:
        """End a row: it runs no layer and no head from here on."""
        self._alive[slot] = False
        self._route[:, slot] = False
        self.rows_changed()

    def rows_changed(self) -> None:
        """Forget what was derived from alive and route: for whoever writes into them."""
        self._planned = self._alive_rows = None

    def planned_rows(self) -> PlannedRows:
        """Compacted rows of the planned routes; recomputed only when a row came or went."""
        if self._planned is None:
            row_index, n_active = route_compact(self.route)
            union = self.route.any(dim=1).tolist()
            self._planned = PlannedRows(row_index.unbind(0), n_active.unbind(0), union)
        return self._planned

    def alive_rows(self) -> tuple[Tensor, Tensor]:
        """row_index [B] and n_active [] of the live rows."""
        if self._alive_rows is None:
            rows, n = route_compact(self.alive[None])
            self._alive_rows = rows[0], n[0]
        return self._alive_rows

    def advance(self, token: Tensor) -> None:
        """Take the pass's tokens [B] as the next pass's inputs for live rows."""
        self.token.copy_(torch.where(self.alive, token, self.token))
        self.position.add_(self.alive)
        self.step.add_(self.alive)


@dataclass
class PassResult:
    """One decode pass. token: int64 [B], valid where alive. ran: bool [L, B], set where a layer's
    body ran. filled: int64 [L], rows whose K/V was projected without running the layer.
    head_rows: int64 [], rows through the LM head beyond one of each live row.
    """

    token: Tensor
    ran: Tensor
    filled: Tensor
    head_rows: Tensor


@dataclass(frozen=True, eq=False)
class Passes(Sequence[PassResult]):
    """Passes in a row, P of them, as arrays on the host. token: int64 [P, B]; ran: bool [P, L, B];
    filled: int64 [P, L]; head_rows: int64 [P]; as in PassResult.
    """

    token: np.ndarray
    ran: np.ndarray
    filled: np.ndarray
    head_rows: np.ndarray

    @classmethod
    def of(cls, results: Sequence[PassResult]) -> Passes:
        """What these passes, one or more, reported."""
        if isinstance(results, Passes):
            return results
        parts = zip(*((r.token, r.ran, r.filled, r.head_rows) for r in results), strict=True)
        return cls(*(torch.stack(part).cpu().numpy() for part in parts))

    def __len__(self) -> int:
        return len(self.token)

    def __getitem__(self, at: Any) -> Any:
        fields = self.token, self.ran, self.filled, self.head_rows
        if isinstance(at, slice):
            return Passes(*(field[at] for field in fields))
        return PassResult(*(torch.as_tensor(field[at]) for field in fields))


@dataclass(frozen=True)
class PassLimits:
    """How far an executor may go on its own. At least one pass runs; none starts once max_passes
    have run or max_seconds have gone by. A row ends with its first token of eos_ids[slot] (empty:
    none ends it) or with its remaining[slot]-th, and takes no part in later passes. until_end: no
    pass starts once the host knows that a row has ended, since another one waits for its slot.
    """

    max_passes: int
    max_seconds: float
    remaining: Sequence[int]
    eos_ids: Sequence[frozenset[int]]
    until_end: bool = False

    def ends(self, slot: int, token: int, passes: int) -> bool:
        """Whether the slot's row ends with `token`, picked in the passes-th pass."""
        return token in self.eos_ids[slot] or passes >= self.remaining[slot]
