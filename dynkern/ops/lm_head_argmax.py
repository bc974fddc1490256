"""lm_head_argmax: the greedy token and its confidence, without a [B, V] result."""

from __future__ import annotations

import torch
from torch import Tensor

from dynkern.kernels import native
from dynkern.kernels.cpu import lm_head_argmax as cpu
from dynkern.kernels.reference.lm_head_argmax import lm_head_argmax as reference
from dynkern.ops.backends import Kernel, define_op, triton_kernel
from dynkern.ops.checks import expect_dtype, expect_rows, expect_shape


def _check(x, weight, n_active):
    expect_shape("weight", weight, (None, None))
    expect_shape("x", x, (None, weight.shape[1]))
    expect_dtype("weight", weight, x.dtype)
    expect_rows(None, n_active)
    if weight.shape[0] < 2:
        raise ValueError(f"weight: got a vocabulary of {weight.shape[0]}, expected at least 2")


def _fake(x, weight, n_active):
    rows = x.shape[0]
    wide = torch.promote_types(x.dtype, torch.float32)
    return (
        x.new_empty(rows, dtype=torch.int64),
        *(x.new_empty(rows, dtype=wide) for _ in range(3)),
    )


_op = define_op(
    "lm_head_argmax(Tensor x, Tensor weight, Tensor? n_active) -> (Tensor, Tensor, Tensor, Tensor)",
    check=_check,
    fake=_fake,
    reference=reference,
    cpu=Kernel(cpu.lm_head_argmax, native.cpu_missing, cpu.refuses),
    triton=triton_kernel("lm_head_argmax"),
)


def lm_head_argmax(
    x: Tensor, weight: Tensor, n_active: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """z = weight · x[j]; token = argmax z (lowest id on a tie), probability, margin, log Σ exp z.

    x: [C, E], final hidden states after norm and projection. weight: [V, E]. n_active: one int32
    element or None for all C rows. Returns token int64 [C], top probability, margin (difference of
    the two largest probabilities) and log-sum-exp, each [C] in at least float32; rows from
    n_active on are unspecified. Raises ValueError on shapes and dtypes.
    """
    return _op.torch_op(x, weight, n_active)
