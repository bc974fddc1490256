"""PackedEngine: an engine over a module's own parameters, rebuilt when they have changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dynkern.models.fingerprint import fingerprints
from dynkern.models.opt import pack_weights, source_tensors, spec_from_config
from dynkern.models.packed import PackedWeights
from dynkern.models.spec import DecoderSpec
from dynkern.models.storage import packing_obstacle
from dynkern.models.weights import DecoderWeights
from dynkern.runtime.engine import Engine

# what of a module can be packed for the CPU engine without rounding
_FORMATS = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


class PackedEngine:
    """Holds the engine of one module, and knows whether it still has the module's weights.

    On a CPU the parameters are packed for the CPU engine, beside the module's own, and those that
    changed are packed again. Elsewhere they are shared where they can be; q, k and v are packed
    into one matrix, which is compared with them before each use.
    """

    def __init__(self) -> None:
        self._engine: Engine | None = None
        self._signature: Any = None
        self._marks: list[int] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedEngine:
        # a copied module has parameters of its own
        return PackedEngine()

    def __reduce__(self) -> tuple[type[PackedEngine], tuple[()]]:
        return PackedEngine, ()

    def engine(self, module: nn.Module) -> Engine:
        """The engine over the module's weights as they are now."""
        tensors = dict(module.state_dict(keep_vars=True))
        spec = spec_from_config(module.config.to_dict())
        weight = module.get_input_embeddings().weight
        format = _FORMATS.get(weight.dtype)
        on_cpu = all(tensor.device.type == "cpu" for tensor in tensors.values())
        if on_cpu and format is not None and packing_obstacle(format, weight.device) is None:
            return self._native(tensors, spec, format)
        return self._shared(tensors, spec, weight)

    def _native(self, tensors: Mapping[str, Tensor], spec: DecoderSpec, format: str) -> Engine:
        sources = list(source_tensors(tensors, spec))
        # an edit through `.data` or numpy moves no version counter, so the content is looked at;
        # reading every parameter once costs about as much as one decode pass, or less
        marks = fingerprints([tensor for _, tensor in sources])
        signature = spec, format, [tensor.dtype for _, tensor in sources]
        engine, known = self._engine, self._marks
        if engine is None or signature != self._signature:
            engine = self._engine = None  # freed ahead of what replaces it
            weights, known = PackedWeights(spec, format), [None] * len(marks)
        else:
            weights = engine.weights
        changed = [i for i, mark in enumerate(marks) if mark != known[i]]
        if changed:
            self._engine = None  # until all of it is written
            for i in changed:
                weights.write(*sources[i])
            self._engine, self._signature, self._marks = Engine(spec, weights), signature, marks
        return self._engine

    def _shared(self, tensors: Mapping[str, Tensor], spec: DecoderSpec, weight: Tensor) -> Engine:
        signature = tuple((name, t.data_ptr(), t.dtype, t.device) for name, t in tensors.items())
        stale = self._engine is None or signature != self._signature
        if stale or not _holds(self._engine.weights, tensors):
            with torch.no_grad():
                weights = pack_weights(tensors, spec, weight.dtype, weight.device)
            self._engine, self._signature = Engine(spec, weights), signature
        return self._engine


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
