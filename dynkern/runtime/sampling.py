"""From final hidden states to tokens: the fused greedy head, or logits and `sample`."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from dynkern.ops import sample
from dynkern.runtime.request import SamplingParams


class Head(Protocol):
    """An executor's LM head. hidden: [C, E] final states, as its prefill hands them out; n: int32
    element, the rows that count, or None for all C; the others are unspecified.
    """

    def argmax(self, hidden: Tensor, n: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Token int64 [C], its probability, top-2 margin and log-sum-exp, as op lm_head_argmax."""
        ...

    def logits(self, hidden: Tensor, n: Tensor | None) -> Tensor:
        """[C, V]."""
        ...

    def losses(self, hidden: Tensor, wanted: Tensor) -> Tensor:
        """Cross entropy float32 [C] in nats of the tokens `wanted`, int64 [C]."""
        ...


class TokenPicker:
    """Picks tokens for compacted rows under one SamplingParams.

    history: int64 [B, T] of each slot's ids so far, -1 where none; kept only where a repetition
    penalty needs it. A subclass may pick otherwise: executors ask `picks_by_params` before they
    lower the choice.
    """

    def __init__(self, head: Head, params: SamplingParams, seed: int) -> None:
        self.head, self.params, self.seed = head, params, seed
        self.history: Tensor | None = None

    @property
    def is_greedy(self) -> bool:
        """Whether lm_head_argmax alone decides, whoever's turn it is."""
        return self.picks_by_params and self.params.is_greedy

    @property
    def picks_by_params(self) -> bool:
        """Whether `params` and `history` say all there is to say about `pick`."""
        return type(self).pick is TokenPicker.pick

    def begin(self, n_slots: int, capacity: int, device: torch.device) -> None:
        """Make room for a batch of rows of up to `capacity` tokens."""
        if self.params.repetition_penalty != 1.0:
            self.history = torch.full((n_slots, capacity), -1, dtype=torch.int64, device=device)

    def remember(self, slot: int, start: int, ids: list[int]) -> None:
        """Note ids of a slot from index `start` on; what an earlier row left behind goes."""
        if self.history is not None:
            self.history[slot, start:] = -1
            self.history[slot, start : start + len(ids)] = torch.tensor(ids)

    def note(self, alive: Tensor, position: Tensor, token: Tensor) -> None:
        """Note each live slot's token [B], which follows the one at `position` [B]."""
        if self.history is not None:
            # slots that ended may stand at the last column
            index = (position + 1).clamp(max=self.history.shape[1] - 1)[:, None]
            held = self.history.gather(1, index)
            self.history.scatter_(1, index, torch.where(alive[:, None], token[:, None], held))

    def pick(
        self,
        hidden: Tensor,
        n: Tensor | None,
        rows: Tensor,
        request: Tensor,
        step: Tensor,
    ) -> Tensor:
        """int64 [C] tokens for hidden [C, E]; request, step: int64 [C]; rows: int32 [C] slots."""
        if self.params.is_greedy:
            return self.head.argmax(hidden, n)[0]
        logits = self.head.logits(hidden, n)
        history = None if self.history is None else self.history.index_select(0, rows)
        p = self.params
        return sample(
            logits,
            history,
            request,
            step,
            self.seed,
            p.temperature,
            p.top_k,
            p.top_p,
            p.repetition_penalty,
        )
