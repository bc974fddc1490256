"""torch's Muon, with matrix products in a dtype of choice, shared out among processes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dynkern.training.pretraining.ranks import Ranks


class SharedMuon(torch.optim.Muon):
    """torch.optim.Muon under `match_rms_adamw`, each process orthogonalising its share of matrices.

    dtype: of the products. torch's own step takes bfloat16 everywhere; where a processor emulates
    it, one step of 4 layers of width 256 lasted 10 s, and 0.3 s in float32.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        dtype: torch.dtype = torch.float32,
        ranks: Ranks | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(list(parameters), adjust_lr_fn="match_rms_adamw", **settings)
        self.dtype, self.ranks = dtype, ranks

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One step on the gradients, which are the same in every process."""
        for group in self.param_groups:
            given = [p for p in group["params"] if p.grad is not None]
            if not given:  # every layer was left out
                continue
            gradients = [p.grad for p in given]
            for p in given:
                if "momentum_buffer" not in self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            buffers = [self.state[p]["momentum_buffer"] for p in given]
            momentum = group["momentum"]
            torch._foreach_lerp_(buffers, gradients, 1 - momentum)
            directions = torch._foreach_lerp(gradients, buffers, momentum)
            torch._foreach_mul_(given, 1 - group["lr"] * group["weight_decay"])
            for p, way in zip(given, self._orthogonal(directions, group), strict=True):
                # an update has the root mean square that AdamW's have
                p.add_(way, alpha=-0.2 * math.sqrt(max(p.shape)) * group["lr"])

    def _orthogonal(self, matrices: Sequence[Tensor], group: dict[str, Any]) -> list[Tensor]:
        """Of each matrix its polar factor, about; those of one shape at once."""
        alike: dict[torch.Size, list[int]] = {}
        for place, matrix in enumerate(matrices):
            alike.setdefault(matrix.shape, []).append(place)
        rank, size = (0, 1) if self.ranks is None else (self.ranks.rank, self.ranks.size)
        sizes = [matrix.numel() for matrix in matrices]
        whole = torch.zeros(sum(sizes), dtype=torch.float32, device=matrices[0].device)
        found = [part.view_as(m) for part, m in zip(whole.split(sizes), matrices, strict=True)]
        for places in alike.values():
            mine = places[rank::size]
            if mine:
                stack = torch.stack([matrices[place] for place in mine]).to(self.dtype)
                made = polar_factors(stack, group["ns_coefficients"], group["ns_steps"])
                for place, matrix in zip(mine, made, strict=True):
                    found[place].copy_(matrix)
        if self.ranks is not None:
            self.ranks.add_up(whole)
        return found


def polar_factors(
    stack: Tensor, coefficients: tuple[float, float, float], steps: int, least: float = 1e-7
) -> Tensor:
    """U V^T of each matrix U S V^T, [N, m, n], about: a quintic Newton-Schulz iteration whose
    coefficients lift small singular values fast and leave all between 0.7 and 1.2 (Jordan et al.,
    "Muon", 2024). least: of the norm that each is divided by.
    """
    a, b, c = coefficients
    x = stack.mT if stack.shape[1] > stack.shape[2] else stack
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=least)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if stack.shape[1] > stack.shape[2] else x
