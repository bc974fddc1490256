"""Controller gates in a decode pass: which rows run a layer, by op `gate`."""

from __future__ import annotations

import torch
from torch import Tensor

from dynkern import rng
from dynkern.controller_file import GateStack
from dynkern.models.weights import DecoderWeights
from dynkern.ops import gate
from dynkern.runtime.batch import DecodeBatch
from dynkern.runtime.executors.stream import ResidualStream


def check_gates(stack: GateStack, hidden_size: int, embed_size: int) -> None:
    """Raise a one-line ValueError unless the gates read what a model of these widths has."""
    size = embed_size if stack.info.input == "token" else hidden_size
    if stack.info.input_size != size:
        raise ValueError(
            f"controller: its gates read {stack.info.input_size} numbers, expected {size}, "
            "the width of this model"
        )


class PassGates:
    """The gates of one pass.

    Gates on hidden states read the residual where their layer stands; those on positions or tokens
    read what the pass was handed, and could run ahead of it. ValueError where the gates read other
    sizes than the model's.
    """

    def __init__(
        self, stack: GateStack, weights: DecoderWeights, batch: DecodeBatch, offset: int
    ) -> None:
        self.stack, self.batch = stack, batch
        self.weights, self.biases = stack.cast(weights.device, weights.dtype)
        self.rows = torch.arange(batch.n_slots, dtype=torch.int32, device=weights.device)
        self.source: Tensor | None = None
        hidden_size = weights.layers[0].qkv_weight.shape[-1]
        check_gates(stack, hidden_size, weights.token_embedding.shape[-1])
        if stack.info.input == "position":
            # a free slot may stand anywhere; live rows lie within the table
            last = weights.position_embedding.shape[0] - 1
            self.source = weights.position_embedding[(batch.position + offset).clamp(max=last)]
        elif stack.info.input == "token":
            self.source = weights.token_embedding[batch.token]

    def keep(self, layer: int, stream: ResidualStream) -> Tensor:
        """Live rows that run the layer, bool [B]."""
        batch = self.batch
        if not self.weights[layer]:
            return batch.alive
        x = stream.raw(self.rows, None) if self.source is None else self.source
        uniform = None
        if self.stack.sampled:
            uniform = rng.uniform(batch.seed, batch.request, batch.step, layer, rng.STREAM_GATE)
        _, keep = gate(x, self.weights[layer], self.biases[layer], uniform)
        return keep & batch.alive
