"""Controllers of random gates, as files."""

from __future__ import annotations

from pathlib import Path

import torch

from dynkern.controller_file import ControllerInfo, write_controller


def made_controller(path: Path, kind: str, layers: int, size: int = 1) -> Path:
    """A controller of two linear layers for a model of `layers`; it does not say which."""
    info = ControllerInfo(kind, layers, size, depth=2, width=4, tau=5.0, alpha=0.5)
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for layer in range(1, layers - 1):
        for place, (rows, columns) in enumerate(((4, size), (2, 4))):
            name = f"layers.{layer}.{place}"
            tensors[f"{name}.weight"] = torch.randn(rows, columns, generator=generator)
            tensors[f"{name}.bias"] = torch.randn(rows, generator=generator)
    write_controller(path, info, tensors)
    return path
