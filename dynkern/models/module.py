"""Checkpoints as transformers' modules, int8 matrices (`int8_file`) widened."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import torch

from dynkern.models.checkpoint import Checkpoint

Module = TypeVar("Module")


def load_module(kind: type[Module], path: Path, dtype: torch.dtype = torch.float32) -> Module:
    """A checkpoint directory as `kind`, a transformers model class, in `dtype` and eval mode.

    kind.from_pretrained does it wherever there are no int8 matrices, which it does not know.
    ValueError, one line, where such a file lacks a tensor.
    """
    with Checkpoint(path) as tensors:
        if not tensors.narrowed:
            return kind.from_pretrained(path, dtype=dtype)  # type: ignore[attr-defined]
        state = {name: tensors[name].to(dtype) for name in tensors}
    return _filled(kind, path, state, dtype)


def _filled(kind: Any, path: Path, state: dict[str, torch.Tensor], dtype: torch.dtype) -> Any:
    from transformers import GenerationConfig

    model = kind(kind.config_class.from_pretrained(path)).to(dtype)
    left = model.load_state_dict(state, strict=False)
    missing = sorted(set(left.missing_keys) - set(getattr(model, "_tied_weights_keys", None) or ()))
    if missing:
        raise ValueError(
            f"model: the checkpoint has no tensor {missing[0]}, expected by config.json"
        )
    model.tie_weights()
    if (path / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(path)
    return model.eval()
