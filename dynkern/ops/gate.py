"""gate: a skip controller's logits and keep bit."""

from __future__ import annotations

import torch
from torch import Tensor

from dynkern.kernels import native
from dynkern.kernels.cpu import gate as cpu
from dynkern.kernels.reference.gate import gate as reference
from dynkern.ops.backends import Kernel, define_op, triton_kernel
from dynkern.ops.checks import expect_dtype, expect_shape


def _check(h, weights, biases, uniform):
    expect_shape("h", h, (None, None))
    if not weights or len(weights) != len(biases):
        raise ValueError(
            f"weights: got {len(weights)} with {len(biases)} biases, expected as many, at least one"
        )
    width = h.shape[-1]
    for weight, bias in zip(weights, biases, strict=True):
        expect_shape("weights", weight, (None, width))
        expect_dtype("weights", weight, h.dtype)
        expect_shape("biases", bias, (weight.shape[0],))
        expect_dtype("biases", bias, h.dtype)
        width = weight.shape[0]
    if width != 2:
        raise ValueError(f"weights: the last one has {width} outputs, expected 2")
    if uniform is not None:
        expect_shape("uniform", uniform, (h.shape[0],))


def _fake(h, weights, biases, uniform):
    return h.new_empty(h.shape[0], 2), h.new_empty(h.shape[0], dtype=torch.bool)


_op = define_op(
    "gate(Tensor h, Tensor[] weights, Tensor[] biases, Tensor? uniform) -> (Tensor, Tensor)",
    check=_check,
    fake=_fake,
    reference=reference,
    cpu=Kernel(cpu.gate, native.cpu_missing, cpu.refuses),
    triton=triton_kernel("gate"),
)


def gate(
    h: Tensor, weights: list[Tensor], biases: list[Tensor], uniform: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """logits = MLP(h), ReLU between its layers; keep = logits[1] > logits[0], or sampled.

    h: [B, D], the residual entering the layer. weights, biases: of one or more linear layers,
    the last with two outputs (skip, run). uniform: [B] in [0, 1) or None; given, the gate is
    sampled: keep = uniform < softmax(logits)[run], the Gumbel-max of a two-way controller (arXiv
    2410.20022).
    Returns logits [B, 2] and keep bool [B]; equal logits skip. Raises ValueError on shapes.
    """
    return _op.torch_op(h, weights, biases, uniform)
