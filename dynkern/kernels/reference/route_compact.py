"""Reference of route_compact."""

from __future__ import annotations

import torch
from torch import Tensor


def route_compact(keep: Tensor) -> tuple[Tensor, Tensor]:
    order = torch.argsort((~keep).to(torch.uint8), dim=1, stable=True)
    return order.to(torch.int32), keep.sum(dim=1, dtype=torch.int32)
