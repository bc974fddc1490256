"""DecoderWeights: named, packed weights of a decoder, independent of where they came from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class SourcePart:
    """A tensor of a checkpoint and its place in the packed weights.

    field: of DecoderWeights where layer is None, else of LayerWeights; the field is `parts` such
    tensors one below the other, this one the `part`-th. name: the checkpoint's, without prefix.
    """

    layer: int | None
    field: str
    name: str
    shape: tuple[int, ...]
    part: int = 0
    parts: int = 1


@dataclass
class LayerWeights:
    """One layer. Linear weights are [out, in]; q, k and v lie in one matrix, in this order.

    qkv_weight [3D, D], out_weight [D, D], fc1_weight [F, D], fc2_weight [D, F]; biases and norm
    affine parts are None where the model has none.
    """

    attn_norm_weight: Tensor | None
    attn_norm_bias: Tensor | None
    qkv_weight: Tensor
    qkv_bias: Tensor | None
    out_weight: Tensor
    out_bias: Tensor | None
    ffn_norm_weight: Tensor | None
    ffn_norm_bias: Tensor | None
    fc1_weight: Tensor
    fc1_bias: Tensor | None
    fc2_weight: Tensor
    fc2_bias: Tensor | None

    @property
    def kv_weight(self) -> Tensor:
        """k and v rows of qkv_weight: [2D, D], a view."""
        return self.qkv_weight[self.qkv_weight.shape[1] :]

    @property
    def kv_bias(self) -> Tensor | None:
        """k and v part of qkv_bias: [2D], a view."""
        return None if self.qkv_bias is None else self.qkv_bias[self.qkv_weight.shape[1] :]


@dataclass
class DecoderWeights:
    """All weights of a decoder in one dtype on one device.

    token_embedding [V, E], position_embedding [max_positions + offset, D], project_in [D, E] and
    project_out [E, D] or None, final_norm_* [D] or None, lm_head [V, E] (the token embedding
    itself where tied).
    """

    token_embedding: Tensor
    position_embedding: Tensor
    project_in: Tensor | None
    project_out: Tensor | None
    layers: list[LayerWeights]
    final_norm_weight: Tensor | None
    final_norm_bias: Tensor | None
    lm_head: Tensor

    @property
    def dtype(self) -> torch.dtype:
        """Of every weight, and of the K/V cache."""
        return self.token_embedding.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.token_embedding.device

    @property
    def element_size(self) -> int:
        """Bytes of one linear weight."""
        return self.token_embedding.element_size()

    def read(self, field: str, layer: int | None = None) -> Tensor | None:
        """A field of the model, or of a layer, as PackedWeights.read hands it out; None without."""
        tensor = getattr(self if layer is None else self.layers[layer], field)
        return None if tensor is None else tensor.float()

    def checksums(self) -> list[float]:
        """Numbers that tell models of one shape and dtype apart, without hashing gigabytes."""
        return [tensor.sum(dtype=torch.float64).item() for tensor in self.tensors()]

    def tensors(self) -> Iterator[Tensor]:
        """Every distinct tensor once."""
        seen: set[int] = set()
        owners = [self, *self.layers]
        for owner in owners:
            for item in fields(owner):
                tensor = getattr(owner, item.name)
                if isinstance(tensor, Tensor) and id(tensor) not in seen:
                    seen.add(id(tensor))
                    yield tensor

    @property
    def nbytes(self) -> int:
        """Bytes held by the weights, tied ones counted once."""
        return sum(t.numel() * t.element_size() for t in self.tensors())
