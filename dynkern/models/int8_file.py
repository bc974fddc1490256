"""Matrices kept as int8 in a file: `NAME.int8` [N, K] with `NAME.scale` float32 [N].

NAME = NAME.int8 * NAME.scale, a scale for each output. Loading widens them, so that whatever reads
the checkpoint meets NAME alone, in float32; storage in memory is decided later, as ever.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

INT8, SCALE = ".int8", ".scale"
# not model.safetensors: transformers would read it, find no weights and make random ones
INT8_FILE = "model.int8.safetensors"
_LARGEST = 127


def narrow(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 [N, K] and scales float32 [N] of a float [N, K]: rounded to nearest, |q| <= 127."""
    rows = weight.detach().to(torch.float32)
    scale = rows.abs().amax(dim=1) / _LARGEST
    # a row of zeros has no scale: any will do
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return (rows / scale[:, None]).round().to(torch.int8), scale


def widen(name: str, values: Tensor, scale: Tensor) -> Tensor:
    """float32 [N, K]; ValueError, one line, for tensors that are no such pair."""
    if values.dtype != torch.int8 or values.dim() != 2:
        raise ValueError(
            f"model: {name}{INT8} is {_kind(values)}, expected a matrix of torch.int8 values"
        )
    if not scale.is_floating_point() or scale.shape != values.shape[:1]:
        raise ValueError(
            f"model: {name}{SCALE} is {_kind(scale)}, expected {values.shape[0]} floats"
        )
    return values.to(torch.float32) * scale.to(torch.float32)[:, None]


def narrowed_names(names: Iterable[str]) -> frozenset[str]:
    """Names of the matrices that `names` hold as pairs; ValueError for int8 without its scale."""
    held = set(names)
    bases = {name.removesuffix(INT8) for name in held if name.endswith(INT8)}
    for base in sorted(bases):
        if base + SCALE not in held:
            raise ValueError(
                f"model: the checkpoint has {base}{INT8} but no {base}{SCALE}, expected both"
            )
    return frozenset(bases)


def _kind(tensor: Tensor) -> str:
    return f"{tensor.dtype} of shape {tuple(tensor.shape)}"
