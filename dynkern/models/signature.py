"""A few of a model's numbers, which tell it from another of its shape in any dtype."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from dynkern.models.opt import source_tensors
from dynkern.models.spec import DecoderSpec

# vectors, which every weight format keeps in floats; training moves all of them
FIELDS = ("attn_norm_weight", "out_bias", "ffn_norm_bias", "fc1_bias")
# of each vector, evenly spread
VALUES = 8
# bfloat16 rounds to half of 2**-8; float16 keeps numbers below 6e-5 to 3e-8
RELATIVE, ABSOLUTE = 2.0**-8, 1e-6


class Readable(Protocol):
    """Weights of either layout."""

    def read(self, field: str, layer: int | None = None) -> Tensor | None:
        """A field in float32, or None where the model has none."""


def signature(weights: Readable, num_layers: int) -> Tensor:
    """float32 [n] on the CPU, the same for a model as checkpoint, in bfloat16 or as int8, up to
    rounding; empty for a model without norm parameters and biases.
    """
    return _chosen(weights.read, num_layers)


def signature_of_state(state: Mapping[str, Tensor], spec: DecoderSpec) -> Tensor:
    """`signature` of a transformers state dict."""
    parts = {
        (part.layer, part.field): tensor
        for part, tensor in source_tensors(state, spec)
        if part.field in FIELDS
    }
    return _chosen(lambda field, layer: parts.get((layer, field)), spec.num_layers)


def _chosen(read: Callable[[str, int], Tensor | None], num_layers: int) -> Tensor:
    pieces = [torch.empty(0)]
    for layer in range(num_layers):
        for field in FIELDS:
            vector = read(field, layer)
            if vector is not None:
                flat = vector.detach().flatten()
                at = torch.arange(VALUES, device=flat.device) * len(flat) // VALUES
                pieces.append(flat[at].to("cpu", torch.float32))
    return torch.cat(pieces)


def differs(one: Tensor, other: Tensor) -> bool:
    """Whether signatures are of two models, beyond what dtypes round."""
    if one.shape != other.shape:
        return True
    return not torch.allclose(one, other, rtol=RELATIVE, atol=ABSOLUTE)
