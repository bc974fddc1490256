"""Rows that decode, and the groups of them that can share a pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dynkern.runtime.batch import DecodeBatch
from dynkern.runtime.prefiller import PrefilledPrompt
from dynkern.runtime.request import Completion
from dynkern.runtime.sampling import TokenPicker
from dynkern.runtime.scheduler import Waiting


@dataclass(eq=False)
class Row:
    """A request that has a slot."""

    entry: Waiting
    slot: int
    completion: Completion

    @property
    def number(self) -> int:
        """Of submission."""
        return self.entry.order[1]


class Group:
    """Live rows that share passes: one token program or planned routes, one way of sampling.

    They stand in slots of their own; those of other groups are dead in this batch, so that one
    cache serves all groups. remaining, eos_ids: of each slot, as PassLimits wants them.
    """

    def __init__(self, batch: DecodeBatch, picker: TokenPicker) -> None:
        self.batch, self.picker = batch, picker
        self.rows: dict[int, Row] = {}
        self.remaining = [0] * batch.n_slots
        self.eos_ids: list[frozenset[int]] = [frozenset()] * batch.n_slots

    def in_order(self) -> list[Row]:
        """Rows in request order."""
        return sorted(self.rows.values(), key=lambda row: row.number)

    def admit(self, row: Row, route: Tensor) -> None:
        """Take a row in; first_tokens writes its token, which is not known yet."""
        request, slot = row.entry.request, row.slot
        self.rows[slot] = row
        self.batch.admit(slot, 0, len(request.prompt_ids), request.id, route)
        self.picker.remember(slot, 0, list(request.prompt_ids))
        self.remaining[slot] = request.max_new_tokens
        # a new list: executors compare it with the one that they have seen
        self.eos_ids = list(self.eos_ids)
        self.eos_ids[slot] = frozenset() if request.force_length else request.eos_token_ids

    def first_tokens(
        self, rows: Sequence[Row], prompts: Sequence[PrefilledPrompt]
    ) -> list[tuple[int, int]]:
        """Slots and first tokens of rows just admitted, one prompt each."""
        batch, device = self.batch, self.batch.token.device
        slots = [row.slot for row in rows]
        at = torch.tensor(slots, device=device)
        tokens = [prompt.greedy for prompt in prompts]
        if self.picker.is_greedy and None not in tokens:
            batch.token[at] = torch.tensor(tokens, device=device)
            return list(zip(slots, tokens, strict=True))
        request = torch.tensor([row.entry.request.id for row in rows], device=device)
        hidden = torch.stack([prompt.hidden for prompt in prompts])
        step = torch.zeros_like(request)
        token = self.picker.pick(hidden, None, at.to(torch.int32), request, step)
        batch.token[at] = token
        fresh = torch.zeros_like(batch.alive)
        fresh[at] = True
        # admitted rows stand at the first generated token
        self.picker.note(fresh, batch.position - 1, batch.token)
        return list(zip(slots, token.tolist(), strict=True))

    def retire(self, row: Row) -> None:
        """Let a row go."""
        self.batch.retire(row.slot)
        self.remaining[row.slot] = 0
        del self.rows[row.slot]


def new_completion(entry: Waiting) -> Completion:
    """Nothing generated yet."""
    request = entry.request
    return Completion(request.id, list(request.prompt_ids), layer_counts=[0] * entry.num_layers)
