"""Argument checks shared by the ops: one line with the argument, the given and the expected."""

from __future__ import annotations

import torch
from torch import Tensor


def expect_shape(name: str, tensor: Tensor, shape: tuple[int | None, ...]) -> None:
    """Raise ValueError unless `tensor` has this shape; None stands for any size."""
    given = tensor.shape
    fits = len(given) == len(shape)
    if fits:
        # a plain loop: run for some thirty shapes a layer, a generator took a tenth of a pass
        for size, wanted in zip(given, shape, strict=True):
            if wanted is not None and size != wanted:
                fits = False
                break
    if not fits:
        sizes = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name}: got shape {tuple(given)}, expected ({sizes})")


def expect_dtype(name: str, tensor: Tensor, *dtypes: torch.dtype) -> None:
    """Raise ValueError unless `tensor` has one of the dtypes."""
    if tensor.dtype not in dtypes:
        wanted = " or ".join(str(dtype) for dtype in dtypes)
        raise ValueError(f"{name}: got dtype {tensor.dtype}, expected {wanted}")


def expect_rows(
    row_index: Tensor | None,
    n_active: Tensor | None,
    capacity: int | None = None,
    names: tuple[str, str] = ("row_index", "n_active"),
) -> None:
    """Check the pair that says which rows are active: int32 [capacity] and one int32 element.

    names: of the two arguments, for the message.
    """
    if row_index is not None:
        expect_shape(names[0], row_index, (capacity,))
        expect_dtype(names[0], row_index, torch.int32)
    if n_active is not None:
        if n_active.numel() != 1:
            raise ValueError(f"{names[1]}: got {n_active.numel()} elements, expected 1")
        expect_dtype(names[1], n_active, torch.int32)
