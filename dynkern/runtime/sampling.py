"""From final hidden states to tokens: the fused greedy head, or logits and `sample`."""

from __future__ import annotations

import torch
from torch import Tensor

from dynkern.models.weights import DecoderWeights
from dynkern.ops import lm_head_argmax, ragged_linear, sample
from dynkern.runtime.request import SamplingParams


class TokenPicker:
    """Picks tokens for compacted rows under one SamplingParams.

    history: int64 [B, T] of each slot's ids so far, -1 where none; kept only where a repetition
    penalty needs it.
    """

    def __init__(self, weights: DecoderWeights, params: SamplingParams, seed: int) -> None:
        self.weights, self.params, self.seed = weights, params, seed
        self.history: Tensor | None = None

    @property
    def is_greedy(self) -> bool:
        """Whether lm_head_argmax alone decides."""
        return self.params.is_greedy

    def begin(self, n_slots: int, capacity: int, device: torch.device) -> None:
        """Make room for a batch of rows of up to `capacity` tokens."""
        if self.params.repetition_penalty != 1.0:
            self.history = torch.full((n_slots, capacity), -1, dtype=torch.int64, device=device)

    def remember(self, slot: int, start: int, ids: list[int]) -> None:
        """Note ids of a slot from index `start` on."""
        if self.history is not None:
            self.history[slot, start : start + len(ids)] = torch.tensor(ids)

    def pick(
        self,
        hidden: Tensor,
        n: Tensor | None,
        rows: Tensor,
        request: Tensor,
        step: Tensor,
    ) -> Tensor:
        """int64 [C] tokens for hidden [C, E]; request, step: int64 [C]; rows: int32 [C] slots."""
        if self.is_greedy:
            return lm_head_argmax(hidden, self.weights.lm_head, n)[0]
        logits = ragged_linear(hidden, self.weights.lm_head, None, None, n)
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
