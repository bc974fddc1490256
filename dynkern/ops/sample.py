"""sample: a token from logits, with counter-based randomness."""

from __future__ import annotations

import torch
from torch import Tensor

from dynkern.arguments import check_integer, check_sampling
from dynkern.kernels import native
from dynkern.kernels.cpu import sample as cpu
from dynkern.kernels.reference.sample import sample as reference
from dynkern.ops.backends import Kernel, define_op, triton_kernel
from dynkern.ops.checks import expect_dtype, expect_shape


def _check(logits, history, request, step, seed, temperature, top_k, top_p, repetition_penalty):
    expect_shape("logits", logits, (None, None))
    rows, vocab_size = logits.shape
    if vocab_size < 1:
        raise ValueError("logits: got a vocabulary of 0, expected at least 1")
    for name, tensor in (("request", request), ("step", step)):
        expect_shape(name, tensor, (rows,))
        expect_dtype(name, tensor, torch.int64)
    if history is not None:
        expect_shape("history", history, (rows, None))
        expect_dtype("history", history, torch.int64)
    check_sampling(temperature, top_k, top_p, repetition_penalty)


def _fake(logits, history, request, step, seed, temperature, top_k, top_p, repetition_penalty):
    return logits.new_empty(logits.shape[0], dtype=torch.int64)


_op = define_op(
    "sample(Tensor logits, Tensor? history, Tensor request, Tensor step, int seed, "
    "float temperature, int top_k, float top_p, float repetition_penalty) -> Tensor",
    check=_check,
    fake=_fake,
    reference=reference,
    cpu=Kernel(cpu.sample, native.cpu_missing, cpu.refuses),
    triton=triton_kernel("sample"),
)


def sample(
    logits: Tensor,
    history: Tensor | None,
    request: Tensor,
    step: Tensor,
    seed: int = 0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
) -> Tensor:
    """token = argmax_v(z[v] / temperature + Gumbel(seed, request, step, v)) over the kept entries.

    First the repetition penalty (positive logits of seen tokens are divided by it, others
    multiplied), then top_k (0 = off; the lower id wins a tie), then top_p: the smallest set of
    most probable tokens whose mass reaches top_p. temperature 0 is greedy.

    logits: [B, V]. history: int64 [B, T] of token ids seen, -1 where nothing stands, or None.
    request, step: int64 [B], the counters of the draw. seed: 0 to 2**64 - 1. Returns
    int64 [B]. Gumbel-max needs no ordered sum, so a draw is the same alone and in any batch.
    Raises ValueError on shapes, dtypes and parameters out of range.
    """
    check_integer("seed", seed, 0, (1 << 64) - 1, "an integer from 0 to 2**64 - 1")
    # a schema's int has a sign: kernels take the upper half of the seeds as negative numbers
    seed -= (seed >> 63) << 64
    return _op.torch_op(
        logits, history, request, step, seed, temperature, top_k, top_p, repetition_penalty
    )
