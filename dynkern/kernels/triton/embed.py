"""embed: h[j] = P · token_weight[token_ids[j]] + position_weight[positions[j] + offset].

token_ids, positions: int64 [n]; h: [n, D]. One program a token; a projection P is a ragged_linear
over the gathered token rows first. Not yet run on a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dynkern.kernels.triton import tuning
from dynkern.kernels.triton.common import block, gather, last_contiguous, launch
from dynkern.kernels.triton.ragged_linear import ragged_linear


@triton.jit
def _embed(
    token_ids_ptr,
    positions_ptr,
    token_ptr,
    position_ptr,
    out_ptr,
    hidden,
    stride_token,
    stride_position,
    offset,
    BLOCK_D: tl.constexpr,
):
    """Grid: tokens. Without token ids the token rows are already in order."""
    j = tl.program_id(0)
    d = tl.arange(0, BLOCK_D)
    inside = d < hidden
    token_row = token_ptr + gather(token_ids_ptr, j, j >= 0) * stride_token + d
    place = tl.load(positions_ptr + j).to(tl.int64) + offset
    token = tl.load(token_row, mask=inside, other=0.0).to(tl.float32)
    position = tl.load(position_ptr + place * stride_position + d, mask=inside, other=0.0)
    h = (token + position.to(tl.float32)).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + j.to(tl.int64) * hidden + d, h, mask=inside)


def embed(
    token_ids: Tensor,
    positions: Tensor,
    token_weight: Tensor,
    position_weight: Tensor,
    project_in: Tensor | None,
    position_offset: int,
) -> Tensor:
    """The op (ops/embed.py)."""
    tokens, index = last_contiguous(token_weight), token_ids.contiguous()
    if project_in is not None:
        tokens, index = ragged_linear(tokens, project_in, None, index, None, "none"), None
    places = last_contiguous(position_weight)
    n, hidden = len(token_ids), places.shape[1]
    out = torch.empty((n, hidden), dtype=places.dtype, device=places.device)
    width = block(hidden)
    launch(
        _embed,
        (n,),
        index,
        positions.contiguous(),
        tokens,
        places,
        out,
        hidden,
        tokens.stride(0),
        places.stride(0),
        position_offset,
        BLOCK_D=width,
        num_warps=tuning.row_warps(width),
    )
    return out
