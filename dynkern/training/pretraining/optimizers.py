"""Muon for the layers' matrices, AdamW for all else, under one schedule."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from dynkern.training.pretraining.muon import SharedMuon
from dynkern.training.pretraining.ranks import Ranks
from dynkern.training.pretraining.recipe import Recipe

ADAM_DECAY, MUON_DECAY = 0.05, 0.02
BETAS, MOMENTUM, LARGEST_NORM = (0.9, 0.98), 0.95, 1.0
LAST_SHARE = 0.1


class Optimizers:
    """Both optimizers of a model. `step(scale)`: of the recipe's rates. dtype: of Muon's products,
    which `ranks` share out.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        dtype: torch.dtype = torch.float32,
        ranks: Ranks | None = None,
    ) -> None:
        named = list(model.named_parameters())
        matrices = [p for name, p in named if p.dim() == 2 and "embed_" not in name]
        inner = {id(parameter) for parameter in matrices}
        tables = [p for _, p in named if p.dim() == 2 and id(p) not in inner]
        vectors = [p for _, p in named if p.dim() < 2]
        self.parameters = [p for _, p in named]
        self.rates = recipe.learning_rate, recipe.muon_rate
        self.adamw = torch.optim.AdamW(
            [
                {"params": tables, "weight_decay": ADAM_DECAY},
                {"params": vectors, "weight_decay": 0.0},
            ],
            lr=recipe.learning_rate,
            betas=BETAS,
            fused=True,
        )
        self.muon = SharedMuon(
            matrices,
            dtype,
            ranks,
            lr=recipe.muon_rate,
            weight_decay=MUON_DECAY,
            momentum=MOMENTUM,
        )

    def step(self, scale: float) -> float:
        """Clip, step both, drop the gradients; the norm of all gradients before."""
        norm = nn.utils.clip_grad_norm_(self.parameters, LARGEST_NORM)
        for optimizer, rate in zip((self.adamw, self.muon), self.rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * scale
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def state_dict(self) -> dict[str, Any]:
        return {"adamw": self.adamw.state_dict(), "muon": self.muon.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.adamw.load_state_dict(state["adamw"])
        self.muon.load_state_dict(state["muon"])


def rate_scale(recipe: Recipe, tokens: int, steps: int) -> float:
    """Share of the recipe's rates after `tokens` of the run and `steps` since it began or grew: a
    linear warm-up, then 1, then a cosine to LAST_SHARE over the last decay_tokens.
    """
    scale = min(1.0, (steps + 1) / max(1, recipe.warmup_steps))
    left = recipe.tokens - tokens
    if left < recipe.decay_tokens:
        share = min(1.0, 1 - left / recipe.decay_tokens)
        scale *= LAST_SHARE + (1 - LAST_SHARE) / 2 * (1 + math.cos(math.pi * share))
    return scale
