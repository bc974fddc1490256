"""The model of GPU acceptance: OPT-1.3B's shape with random weights, and engines over it."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.opt_spec import opt_spec
from dynkern.models.spec import DecoderSpec
from dynkern.models.weights import DecoderWeights, LayerWeights
from dynkern.runtime.engine import Engine
from dynkern.runtime.executors import CudaGraphExecutor, EagerExecutor
from dynkern.runtime.executors.recorded_graphs import RecordedGraphs


def random_model(dry_run: bool, device: torch.device) -> tuple[DecoderSpec, DecoderWeights]:
    """OPT-1.3B's shape in bfloat16 with random weights; a tiny one in float32 for a dry run."""
    layers, d, heads, ffn, vocab = (4, 64, 2, 128, 256) if dry_run else (24, 2048, 32, 8192, 50272)
    spec = opt_spec(vocab, layers, d, heads, ffn)
    dtype = torch.float32 if dry_run else torch.bfloat16

    def weight(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=dtype, device=device) * 0.02

    def layer() -> LayerWeights:
        return LayerWeights(
            *(weight(d) + 1, weight(d)),
            *(weight(3 * d, d), weight(3 * d), weight(d, d), weight(d)),
            *(weight(d) + 1, weight(d)),
            *(weight(ffn, d), weight(ffn), weight(d, ffn), weight(d)),
        )

    embedding = weight(vocab, d)
    return spec, DecoderWeights(
        token_embedding=embedding,
        position_embedding=weight(2050, d),
        project_in=None,
        project_out=None,
        layers=[layer() for _ in range(layers)],
        final_norm_weight=weight(d) + 1,
        final_norm_bias=weight(d),
        lm_head=embedding,
    )


class Engines:
    """Engines over one model. On a CPU, graphs are recorded and run again: the way is the same."""

    def __init__(self, dry_run: bool, device: torch.device) -> None:
        self.spec, self.weights = random_model(dry_run, device)
        self.device = device

    def eager(self, batch_invariant: bool = False) -> Engine:
        """Passes op by op from Python."""
        engine = Engine(self.spec, self.weights, batch_invariant=batch_invariant)
        engine.executor = EagerExecutor(self.spec, self.weights)
        return engine

    def graphs(self, batch_invariant: bool = False, whole_passes: bool = True) -> Engine:
        """Captured passes; a capture that fails raises."""
        engine = Engine(self.spec, self.weights, batch_invariant=batch_invariant)
        recorded = RecordedGraphs() if self.device.type == "cpu" else None
        engine.executor = CudaGraphExecutor(self.spec, self.weights, recorded, demanded=True)
        engine.executor.whole_passes = whole_passes
        return engine
