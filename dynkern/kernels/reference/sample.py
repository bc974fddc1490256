"""Reference of sample."""

from __future__ import annotations

import torch
from torch import Tensor

from dynkern import rng


def _penalise(logits: Tensor, history: Tensor, penalty: float) -> Tensor:
    rows, vocab_size = logits.shape
    # one column more than the vocabulary takes the -1 entries
    seen = torch.zeros(rows, vocab_size + 1, dtype=torch.bool, device=logits.device)
    seen.scatter_(1, torch.where(history >= 0, history, vocab_size), True)
    penalised = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(seen[:, :vocab_size], penalised, logits)


def sample(
    logits: Tensor,
    history: Tensor | None,
    request: Tensor,
    step: Tensor,
    seed: int,
    temperature: float,
    top_k: int,
    top_p: float,
    repetition_penalty: float,
) -> Tensor:
    scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if history is not None and repetition_penalty != 1.0:
        scores = _penalise(scores, history, repetition_penalty)
    if temperature == 0.0:
        return scores.argmax(dim=-1)
    scores = scores / temperature
    if 0 < top_k < scores.shape[1]:
        kept = scores.sort(dim=-1, descending=True, stable=True).indices[:, :top_k]
        mask = torch.ones_like(scores, dtype=torch.bool).scatter(1, kept, False)
        scores = scores.masked_fill(mask, float("-inf"))
    if top_p < 1.0:
        ranked, order = scores.sort(dim=-1, descending=True, stable=True)
        chance = ranked.softmax(dim=-1)
        beyond = chance.cumsum(dim=-1) - chance >= top_p
        mask = torch.zeros_like(beyond).scatter(1, order, beyond)
        scores = scores.masked_fill(mask, float("-inf"))
    draw = rng.vocabulary_uniforms(seed % (1 << 64), request, step, scores.shape[1])
    return (scores - (-draw.log()).log()).argmax(dim=-1)
