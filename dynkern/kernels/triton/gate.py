"""gate: logits = MLP(h), ReLU between its layers; keep = run > skip, or sampled.

h: [B, D]; logits: [B, 2]; keep: bool [B]. Hidden layers run as ragged_linear; the last one, whose
two outputs a product would waste a tile on, one program a row. A gate of one layer can also ride
along with the norm before it: residual_bypass_layer_norm_gate. Not yet run on a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dynkern.kernels.triton import tuning
from dynkern.kernels.triton.common import block, last_contiguous, launch
from dynkern.kernels.triton.ragged_linear import ragged_linear
from dynkern.kernels.triton.residual_bypass_layer_norm import store_gate


@triton.jit
def _gate(
    h_ptr,
    weight_ptr,
    bias_ptr,
    uniform_ptr,
    logits_ptr,
    keep_ptr,
    hidden,
    stride_h,
    BLOCK_D: tl.constexpr,
):
    """Grid: rows."""
    i = tl.program_id(0)
    d = tl.arange(0, BLOCK_D)
    at = h_ptr + i.to(tl.int64) * stride_h + d
    x = tl.load(at, mask=d < hidden, other=0.0).to(tl.float32)
    store_gate(x, i, weight_ptr, bias_ptr, uniform_ptr, logits_ptr, keep_ptr, d, hidden)


def gate(
    h: Tensor, weights: list[Tensor], biases: list[Tensor], uniform: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The op (ops/gate.py)."""
    x = h
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        x = ragged_linear(x, weight, bias, None, None, "relu")
    x = last_contiguous(x)
    rows, hidden = x.shape
    logits = torch.empty((rows, 2), dtype=h.dtype, device=h.device)
    keep = torch.empty(rows, dtype=torch.bool, device=h.device)
    outputs = logits, keep.view(torch.uint8)
    width = block(hidden)
    launch(
        _gate,
        (rows,),
        x,
        weights[-1].contiguous(),
        biases[-1],
        uniform,
        *outputs,
        hidden,
        x.stride(0),
        BLOCK_D=width,
        num_warps=tuning.row_warps(width),
    )
    return logits, keep
