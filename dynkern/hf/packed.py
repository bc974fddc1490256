"""PackedEngine: an engine over a module's own parameters, rebuilt when they have changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dynkern.hf.served import module_spec
from dynkern.models.fingerprint import fingerprints
from dynkern.models.opt import pack_weights, source_tensors
from dynkern.models.packed import PackedWeights
from dynkern.models.spec import DecoderSpec
from dynkern.models.storage import packing_obstacle
from dynkern.models.weights import DecoderWeights
from dynkern.runtime.engine import Engine

# what of a module can be packed for the CPU engine without rounding
_FORMATS = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
FREED = "its parameters were dropped by free_parameters=True, load the model again without it"


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
        self.freed = False

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedEngine:
        # a copied module has parameters of its own
        return PackedEngine()

    def __reduce__(self) -> tuple[type[PackedEngine], tuple[()]]:
        return PackedEngine, ()

    def engine(self, module: nn.Module) -> Engine:
        """The engine over the module's weights as they are now, or were when they were freed."""
        if self.freed:
            return self._engine
        tensors = dict(module.state_dict(keep_vars=True))
        spec, weight = module_spec(module), module.get_input_embeddings().weight
        if (format := _packed_format(tensors, weight)) is not None:
            return self._native(tensors, spec, format)
        return self._shared(tensors, spec, weight)

    def free(self, module: nn.Module) -> None:
        """Drop the module's parameters and keep what the engine holds; the module's own code fails
        in one line from here on. Each is dropped as soon as it is packed, so that no moment needs
        room for both.
        """
        tensors = dict(module.state_dict(keep_vars=True))
        spec, weight = module_spec(module), module.get_input_embeddings().weight
        format = _packed_format(tensors, weight)
        owners = _Owners(module)
        if format is None:
            self.engine(module)
        else:
            for _ in source_tensors(tensors, spec):
                pass  # raises on a wrong one, ahead of dropping any
            del weight
            self._engine = None
            weights = PackedWeights(spec, format)
            for part, tensor in source_tensors(tensors, spec):
                weights.write(part, tensor)
                owners.drop(tensor, tensors)
                del tensor
            self._engine = Engine(spec, weights)
        owners.drop_all()
        _bar(module)
        self.freed, self._signature, self._marks = True, None, []

    def check_held(self, what: str) -> None:
        """RuntimeError, one line, if the parameters that `what` needs are gone."""
        if self.freed:
            raise RuntimeError(f"{what}: {FREED}")

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


def _packed_format(tensors: Mapping[str, Tensor], weight: Tensor) -> str | None:
    """The CPU engine's format for a module's parameters, None where they cannot be packed."""
    format = _FORMATS.get(weight.dtype)
    if format is None or any(tensor.device.type != "cpu" for tensor in tensors.values()):
        return None
    return format if packing_obstacle(format, weight.device) is None else None


class _Owners:
    """Which modules hold which parameters, tied ones several times."""

    def __init__(self, module: nn.Module) -> None:
        self._places: dict[int, list[tuple[nn.Module, str]]] = {}
        self._names: dict[int, list[str]] = {}
        for prefix, owner in module.named_modules():
            for name, parameter in owner.named_parameters(recurse=False):
                self._places.setdefault(parameter.data_ptr(), []).append((owner, name))
                path = f"{prefix}.{name}".lstrip(".")
                self._names.setdefault(parameter.data_ptr(), []).append(path)

    def drop(self, tensor: Tensor, names: dict[str, Tensor]) -> None:
        """Leave shape and dtype of a parameter, and forget it in `names` too."""
        address = tensor.data_ptr()
        for owner, name in self._places.pop(address, ()):
            held = owner._parameters[name]
            empty = torch.empty_like(held, device="meta")
            owner._parameters[name] = nn.Parameter(empty, requires_grad=False)
        for path in self._names.pop(address, ()):
            names.pop(path, None)

    def drop_all(self) -> None:
        """Drop what is left."""
        for places in list(self._places.values()):
            owner, name = places[0]
            self.drop(owner._parameters[name], {})


def _bar(module: nn.Module) -> None:
    """Make calls of the module and its parts, and their state dicts, fail in one line."""

    def fail(what: str) -> Any:
        def hook(*_: Any) -> None:
            raise RuntimeError(f"{what}: {FREED}")

        return hook

    for part in module.modules():
        part.register_forward_pre_hook(fail("forward"))
        part.register_state_dict_pre_hook(fail("state_dict"))
        part.register_load_state_dict_pre_hook(fail("load_state_dict"))
