"""embed: token plus position embedding."""

from __future__ import annotations

import torch
from torch import Tensor

from dynkern.kernels import native
from dynkern.kernels.cpu import embed as cpu
from dynkern.kernels.reference.embed import embed as reference
from dynkern.ops.backends import Kernel, define_op, triton_kernel
from dynkern.ops.checks import expect_dtype, expect_shape


def _check(token_ids, positions, token_weight, position_weight, project_in, position_offset):
    rows = token_ids.numel()
    expect_shape("position_weight", position_weight, (None, None))
    hidden = position_weight.shape[1]
    expect_shape("token_weight", token_weight, (None, None))
    expect_dtype("token_weight", token_weight, position_weight.dtype)
    expect_shape("token_ids", token_ids, (rows,))
    expect_dtype("token_ids", token_ids, torch.int64)
    expect_shape("positions", positions, (rows,))
    expect_dtype("positions", positions, torch.int64)
    if project_in is not None:
        expect_shape("project_in", project_in, (hidden, token_weight.shape[1]))
        expect_dtype("project_in", project_in, position_weight.dtype)
    else:
        expect_shape("token_weight", token_weight, (None, hidden))


def _fake(token_ids, positions, token_weight, position_weight, project_in, position_offset):
    return position_weight.new_empty(token_ids.shape[0], position_weight.shape[1])


_op = define_op(
    "embed(Tensor token_ids, Tensor positions, Tensor token_weight, Tensor position_weight, "
    "Tensor? project_in, int position_offset) -> Tensor",
    check=_check,
    fake=_fake,
    reference=reference,
    cpu=Kernel(cpu.embed, native.cpu_missing, cpu.refuses),
    triton=triton_kernel("embed"),
)


def embed(
    token_ids: Tensor,
    positions: Tensor,
    token_weight: Tensor,
    position_weight: Tensor,
    project_in: Tensor | None = None,
    position_offset: int = 2,
) -> Tensor:
    """h[j] = P · token_weight[token_ids[j]] + position_weight[positions[j] + position_offset].

    token_ids, positions: int64 [n]; positions count from 0. token_weight: [V, E].
    position_weight: [max_positions + position_offset, D]. project_in: P, [D, E], identity if None
    (then E = D). Returns [n, D] in the weights' dtype. Raises ValueError on shapes and dtypes.
    OPT keeps two unused rows ahead of its position table, hence the offset of 2.
    """
    return _op.torch_op(
        token_ids, positions, token_weight, position_weight, project_in, position_offset
    )
