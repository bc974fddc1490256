"""route_compact: keep bits to compacted row lists, for all layers at once or for one."""

from __future__ import annotations

import torch
from torch import Tensor

from dynkern.kernels import native
from dynkern.kernels.cpu import route_compact as cpu
from dynkern.kernels.reference.route_compact import route_compact as reference
from dynkern.ops.backends import Kernel, define_op, triton_kernel
from dynkern.ops.checks import expect_dtype, expect_shape


def _check(keep):
    expect_shape("keep", keep, (None, None))
    expect_dtype("keep", keep, torch.bool)


def _fake(keep):
    return (
        keep.new_empty(keep.shape, dtype=torch.int32),
        keep.new_empty(keep.shape[0], dtype=torch.int32),
    )


_op = define_op(
    "route_compact(Tensor keep) -> (Tensor, Tensor)",
    check=_check,
    fake=_fake,
    reference=reference,
    cpu=Kernel(cpu.route_compact, native.cpu_missing, cpu.refuses),
    triton=triton_kernel("route_compact", any_dtype=True),
)


def route_compact(keep: Tensor) -> tuple[Tensor, Tensor]:
    """row_index[l] = the rows with keep[l, i], ascending, then the others, ascending.

    keep: bool [L, B]. Returns row_index int32 [L, B], a permutation of 0..B-1 in every row, and
    n_active int32 [L], how many of its first entries are kept. Raises ValueError on shape or dtype.
    """
    return _op.torch_op(keep)
