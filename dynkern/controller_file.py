"""Trained skip controllers as data: what their file holds, and their gates as executors read them.

A controller is one safetensors file. Its header carries a JSON text (key "controller") with the
fields of ControllerInfo and a checksum; its tensors are "layers.{l}.{i}.weight" and ".bias",
float32, linear layer i of the gate ahead of decoder layer l, and "model", the signature of the
model that it was trained for (dynkern.models.signature).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dynkern.files import check_readable, write_whole

INPUTS = ("hidden", "fixed", "position", "token")
_KEY = "controller"
_MODEL = "model"
_SUM = "sha256"
_FORMAT = 1


@dataclass(frozen=True)
class ControllerInfo:
    """What a controller was trained as. input: one of INPUTS, input_size wide. Gates stand on
    layers 1 to num_layers - 2, each of `depth` linear layers, hidden ones `width` wide. alpha: the
    cost's weight, or where it started under a budget. budget: mean layers that were asked for.
    model: the name of the model.
    """

    input: str
    num_layers: int
    input_size: int
    depth: int
    width: int
    tau: float
    alpha: float
    joint: bool = False
    budget: float | None = None
    model: str = ""


@dataclass(frozen=True, eq=False)
class GateStack:
    """Gates of a whole model. weights[l], biases[l]: linear layers of the gate ahead of layer l,
    none where layer l always runs. sampled: bits are drawn by their probability, not by arg-max.
    signature: of the model trained for; None in files that hold none.

    Compared by identity: a batch runs under one stack.
    """

    info: ControllerInfo
    weights: tuple[tuple[Tensor, ...], ...]
    biases: tuple[tuple[Tensor, ...], ...]
    sampled: bool = False
    signature: Tensor | None = None
    _cast: dict = field(default_factory=dict, repr=False)

    def cast(
        self, device: torch.device, dtype: torch.dtype
    ) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
        """Weights and biases on a device in a dtype, converted once."""
        key = device, dtype
        if key not in self._cast:
            self._cast[key] = tuple(
                [[tensor.to(device, dtype) for tensor in layer] for layer in table]
                for table in (self.weights, self.biases)
            )
        return self._cast[key]

    def constant_probabilities(self) -> tuple[float, ...]:
        """Probability of running for each layer under a fixed input, 1.0 without a gate."""
        chances = []
        for weights, biases in zip(self.weights, self.biases, strict=True):
            x = torch.ones(self.info.input_size)
            for place, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
                x = torch.nn.functional.linear(x if place == 0 else x.relu(), weight, bias)
            chances.append(float((x[1] - x[0]).sigmoid()) if weights else 1.0)
        return tuple(chances)


def write_controller(
    path: Path,
    info: ControllerInfo,
    tensors: Mapping[str, Tensor],
    signature: Tensor | None = None,
) -> None:
    """Write a controller's file, whole or not at all. signature: of its model."""
    from safetensors.torch import save_file

    plain = {name: t.detach().to("cpu", torch.float32).contiguous() for name, t in tensors.items()}
    if signature is not None:
        plain[_MODEL] = signature.detach().to("cpu", torch.float32).contiguous()
    kept = {"format": _FORMAT, **asdict(info)}
    header = {_KEY: json.dumps({**kept, _SUM: _digest(kept, plain)})}
    write_whole(path, lambda part: save_file(plain, part, metadata=header))


def read_controller(path: str | Path, sampled: bool = False) -> GateStack:
    """The gates of a file. FileNotFoundError or ValueError, one line, on anything else."""
    from safetensors import safe_open

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"controller: no file {path}")
    check_readable(path, "controller")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(_KEY, "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"controller: {path} cannot be read ({reason})") from None
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        raise ValueError(f"controller: {path} is no controller of dynkern train-controller")
    try:
        # controllers from before there was a sum have none
        if _SUM in header and header.pop(_SUM) != _digest(header, tensors):
            raise KeyError("it differs from its sum")
        info = ControllerInfo(**{k: v for k, v in header.items() if k != "format"})
        return _stack(info, tensors, sampled)
    except (TypeError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"controller: {path} is damaged ({reason})") from None


def _digest(kept: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Of everything that is kept: the header's entries, the sum aside, and the tensors."""
    found = hashlib.sha256(json.dumps(kept, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        found.update(repr((name, tensor.dtype, tuple(tensor.shape))).encode())
        found.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _stack(info: ControllerInfo, tensors: Mapping[str, Tensor], sampled: bool) -> GateStack:
    if info.input not in INPUTS:
        raise KeyError(f"input {info.input!r}")
    if info.num_layers > 2 and not 0 < info.depth <= len(tensors):
        raise KeyError(f"depth {info.depth!r}")
    if any(t.dtype != torch.float32 or not t.isfinite().all() for t in tensors.values()):
        raise KeyError("its tensors are no finite float32 numbers")
    sizes = [info.input_size, *[info.width] * (info.depth - 1), 2]
    tables: dict[str, list[tuple[Tensor, ...]]] = {"weight": [], "bias": []}
    for layer in range(info.num_layers):
        gated = range(info.depth) if 0 < layer < info.num_layers - 1 else ()
        for kind, table in tables.items():
            table.append(tuple(tensors[f"layers.{layer}.{i}.{kind}"] for i in gated))
            for i in gated:
                wanted = (sizes[i + 1], sizes[i]) if kind == "weight" else (sizes[i + 1],)
                if table[-1][i].shape != wanted:
                    raise KeyError(f"layers.{layer}.{i}.{kind} of {tuple(table[-1][i].shape)}")
    weights, biases = tuple(tables["weight"]), tuple(tables["bias"])
    return GateStack(info, weights, biases, sampled, tensors.get(_MODEL))


def describe(stack: GateStack) -> dict[str, Any]:
    """What a reader of results wants to know of a controller."""
    parameters = sum(t.numel() for table in (stack.weights, stack.biases) for g in table for t in g)
    return {**asdict(stack.info), "parameters": parameters}
