"""Tokens and bits that are the largest of something: rounding may decide, and nothing else."""

from __future__ import annotations

import torch
from torch import Tensor

from dynkern.kernels.reference.gate import gate
from dynkern.kernels.reference.residual_bypass_layer_norm import residual_bypass_layer_norm
from support.tolerances import FLOOR, REFERENCE


def gate_scores(h, weights, biases, uniform) -> Tensor:
    """[B, 2]: keep is taken where the second is larger."""
    logits = gate(h, weights, biases, None)[0]
    if uniform is None:
        return logits
    return torch.stack([uniform, (logits[:, 1] - logits[:, 0]).sigmoid()], dim=1)


def bypass_gate_scores(h, *args) -> Tensor:
    *bypass, weight, bias, uniform = args
    h = h.clone()
    residual_bypass_layer_norm(h, *bypass)
    return gate_scores(h, [weight], [bias], uniform)


def head_scores(x, weight, n_active) -> Tensor:
    return (x @ weight.T).nan_to_num(0.0)


# what an index or a bit is the largest of, in float64
SCORES = {
    "gate": gate_scores,
    "residual_bypass_layer_norm.gate": bypass_gate_scores,
    "lm_head_argmax": head_scores,
}


def check_choice(name: str, got: Tensor, base: Tensor, scores: Tensor, dtype: torch.dtype) -> None:
    """The reference's choice in the same dtype, or one that only rounding sets apart from it."""
    got = got.cpu()
    assert got.dtype == base.dtype and got.shape == base.shape
    picked = (choice.long()[:, None] for choice in (got, base))
    first, second = (scores.gather(1, index) for index in picked)
    allowed = 2 * REFERENCE.get(dtype, FLOOR[dtype]) * scores.abs().max() if len(got) else 0.0
    apart = (first - second).abs().flatten()
    assert not (apart > allowed).any(), f"{name}: {apart.max():.3g} > {allowed:.3g}"
