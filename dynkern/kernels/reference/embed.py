"""Reference of embed."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from dynkern.kernels.reference.rows import linear


def embed(
    token_ids: Tensor,
    positions: Tensor,
    token_weight: Tensor,
    position_weight: Tensor,
    project_in: Tensor | None,
    position_offset: int,
) -> Tensor:
    tokens = F.embedding(token_ids, token_weight)
    if project_in is not None:
        tokens = linear(tokens, project_in)
    return tokens + F.embedding(positions + position_offset, position_weight)
