"""The tolerance table. A kernel may err twice as much as plain PyTorch in the same dtype, plus a
floor in units of the largest true value; the truth is the reference in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

FACTOR = 2.0
# floors for when PyTorch happens to round to the truth: a few units in the last place
FLOOR = {
    torch.float64: 1e-13,
    torch.float32: 1e-6,
    torch.bfloat16: 8e-3,
    torch.float16: 1e-3,
}
# the reference itself in `dtype` against float64, relative to the largest true value
REFERENCE = {torch.float32: 2e-6, torch.bfloat16: 2.5e-2, torch.float16: 3e-3}
# logits of a whole model against float64, relative to the largest logit
LOGITS = {torch.float32: 2e-5, torch.bfloat16: 6e-2, torch.float16: 8e-3}
# losses [nats a token] of pretraining in float32 by two processes, whose sums have another order,
# against one
TWO_PROCESSES = 1e-5
# elements, at most about 1, of Muon's polar factors in float64 against singular values on their own
POLAR_FACTORS = 1e-12
# and in float32, where the number of matrices in a product may change its sums
POLAR_SHARES = 1e-6
# Muon's steps, in units of the longest that an element can take, against torch's in bfloat16
MUON_STEPS = {torch.bfloat16: 1e-2, torch.float32: 5e-2}


def assert_as_good(actual: Tensor, plain: Tensor, truth: Tensor, least: float = 0.0) -> None:
    """actual: a kernel's result; plain: the reference in the same dtype; truth: in float64. least:
    smallest size of values that the floor is relative to.
    """
    assert actual.shape == truth.shape and actual.dtype == plain.dtype
    if not actual.is_floating_point():
        assert torch.equal(actual.cpu(), truth.cpu())
        return
    if truth.numel() == 0:
        return
    truth = truth.double().cpu()
    error = (actual.double().cpu() - truth).abs()
    allowed = FACTOR * (plain.double().cpu() - truth).abs().max()
    allowed = allowed + FLOOR[actual.dtype] * truth.abs().max().clamp(min=least)
    assert not error.isnan().any(), f"NaN at {_first(error.isnan())}"
    worst = error.max()
    assert worst <= allowed, f"error {worst:.3g} > {allowed:.3g} at {_first(error == worst)}"


def assert_near(actual: Tensor, truth: Tensor, dtype: torch.dtype, least: float = 0.0) -> None:
    """The reference in `dtype` against the float64 truth, by the table. least: smallest
    size of values to be relative to, 1 for probabilities.
    """
    assert actual.shape == truth.shape
    if truth.numel() == 0:
        return
    error = (actual.double() - truth).abs()
    worst, size = error.max(), truth.abs().max().clamp(min=least)
    allowed = REFERENCE[dtype] * size
    assert worst <= allowed, f"error {worst:.3g} > {allowed:.3g} at {_first(error == worst)}"


def assert_logits_close(actual: Tensor, truth: Tensor, dtype: torch.dtype) -> None:
    """Logits of a model in `dtype` against the float64 truth, by the table."""
    truth = truth.double()
    error = (actual.double() - truth).abs().max()
    assert error <= LOGITS[dtype] * truth.abs().max(), f"logits err by {error:.3g}"


def _first(mask: Tensor) -> list[int]:
    return mask.nonzero()[0].tolist() if mask.any() else []
