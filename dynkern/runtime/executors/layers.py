"""DecoderLayers: embedding, decoder layers and head of one model, composed of ops."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dynkern.models.spec import DecoderSpec
from dynkern.models.weights import DecoderWeights, LayerWeights
from dynkern.ops import embed, lm_head_argmax, ragged_linear
from dynkern.runtime.executors.stream import ResidualStream

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class OpHead:
    """The LM head by ops (see sampling.Head)."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def argmax(self, hidden: Tensor, n: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Without a [C, V] result."""
        return lm_head_argmax(hidden, self.weight, n)

    def logits(self, hidden: Tensor, n: Tensor | None) -> Tensor:
        """[C, V] in the weights' dtype."""
        return ragged_linear(hidden, self.weight, None, None, n)

    def losses(self, hidden: Tensor, wanted: Tensor) -> Tensor:
        """Cross entropy float32 [C] of the tokens wanted [C]."""
        logits = self.logits(hidden, None).float()
        return torch.nn.functional.cross_entropy(logits, wanted, reduction="none")


class DecoderLayers:
    """What passes are made of. Nothing here reads a value on the host."""

    def __init__(self, spec: DecoderSpec, weights: DecoderWeights) -> None:
        self.spec, self.weights = spec, weights
        self.head = OpHead(weights.lm_head)

    def embed(self, ids: Tensor, positions: Tensor) -> ResidualStream:
        """The residual stream of tokens [n] at positions [n]."""
        w = self.weights
        h = embed(
            ids,
            positions,
            w.token_embedding,
            w.position_embedding,
            w.project_in,
            self.spec.position_offset,
        )
        return ResidualStream(h, self.spec)

    def final(self, stream: ResidualStream, rows: Tensor, n: Tensor | None) -> Tensor:
        """Rows as the LM head reads them."""
        w = self.weights
        norm = w.final_norm_weight, w.final_norm_bias
        hidden = stream.normed(rows, n, norm, present=self.spec.final_norm)
        if w.project_out is None:
            return hidden
        return ragged_linear(hidden, w.project_out, None, None, n)

    def layer(
        self, layer: int, stream: ResidualStream, rows: Tensor, n: Tensor | None, attend: Attend
    ) -> None:
        """One decoder layer for `rows[:n]`; attend(q, k, v: [C, H, Dh]) hands back [C, D]."""
        w: LayerWeights = self.weights.layers[layer]
        attn_norm = w.attn_norm_weight, w.attn_norm_bias
        ffn_norm = w.ffn_norm_weight, w.ffn_norm_bias
        qkv = stream.linear(rows, n, attn_norm, w.qkv_weight, w.qkv_bias)
        q, k, v = qkv.view(-1, 3, self.spec.num_heads, self.spec.head_size).unbind(1)
        attended = attend(q, k, v)
        stream.add(ragged_linear(attended, w.out_weight, w.out_bias, None, n), rows, n, attn_norm)
        inner = stream.linear(rows, n, ffn_norm, w.fc1_weight, w.fc1_bias, self.spec.activation)
        stream.add(ragged_linear(inner, w.fc2_weight, w.fc2_bias, None, n), rows, n, ffn_norm)
