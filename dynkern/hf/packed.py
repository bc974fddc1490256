"""PackedEngine: an engine over a module's own parameters, rebuilt when they have changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dynkern.models.opt import pack_weights, spec_from_config
from dynkern.models.weights import DecoderWeights
from dynkern.runtime.engine import Engine


class PackedEngine:
    """Holds the engine of one module. Parameters are shared where they can be; q, k and v are
    packed into one matrix, which is compared with them before each use.
    """

    def __init__(self) -> None:
        self._engine: Engine | None = None
        self._signature: tuple[Any, ...] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedEngine:
        # a copied module has parameters of its own
        return PackedEngine()

    def __reduce__(self) -> tuple[type[PackedEngine], tuple[()]]:
        return PackedEngine, ()

    def engine(self, module: nn.Module) -> Engine:
        """The engine over the module's weights as they are now."""
        tensors = dict(module.state_dict(keep_vars=True))
        signature = _signature(tensors)
        stale = self._engine is None or signature != self._signature
        if stale or not _holds(self._engine.weights, tensors):
            spec = spec_from_config(module.config.to_dict())
            weight = module.get_input_embeddings().weight
            with torch.no_grad():
                weights = pack_weights(tensors, spec, weight.dtype, weight.device)
            self._engine, self._signature = Engine(spec, weights), signature
        return self._engine


def _signature(tensors: Mapping[str, Tensor]) -> tuple[Any, ...]:
    return tuple((name, t.data_ptr(), t.dtype, t.device) for name, t in tensors.items())


def _holds(weights: DecoderWeights, tensors: Mapping[str, Tensor]) -> bool:
    """Whether the packed copies equal the parameters. A version counter would miss edits through
    `.data`; comparing reads a quarter of the layers once, less than one full-depth pass.
    """
    for index, layer in enumerate(weights.layers):
        for kind, packed in (("weight", layer.qkv_weight), ("bias", layer.qkv_bias)):
            if packed is None:
                continue
            names = [f"model.decoder.layers.{index}.self_attn.{p}_proj.{kind}" for p in "qkv"]
            for name, part in zip(names, packed.chunk(3), strict=True):
                if not torch.equal(part, tensors[name]):
                    return False
    return True
