"""In which dtype a run's matrix products are faster."""

from __future__ import annotations

import time

import torch

from dynkern.training.pretraining.recipe import Recipe

PRECISIONS = ("auto", "float32", "bfloat16")
_TRIES = 12


def in_bfloat16(precision: str, recipe: Recipe, device: torch.device) -> bool:
    """Whether products are of bfloat16: as `precision` says, and under "auto" where the device has
    instructions for it that are the faster ones, on a CPU by trying.

    A core of an Emerald Rapids without AMX multiplied 168 GFLOP/s in float32 and 85 in bfloat16.
    """
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    # elsewhere bfloat16 is emulated, and slower by far; no public name says where
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    return supported and _faster_in_bfloat16(recipe.batch_tokens, recipe.hidden_size)


@torch.no_grad()
def _faster_in_bfloat16(rows: int, width: int) -> bool:
    """Of the largest product of a layer; the least of each dtype's times, taken in turn."""
    given = {
        dtype: (torch.ones(rows, width, dtype=dtype), torch.ones(4 * width, width, dtype=dtype))
        for dtype in (torch.float32, torch.bfloat16)
    }
    least = dict.fromkeys(given, float("inf"))
    # the first of each makes its kernel
    for _ in range(1 + _TRIES):
        for dtype, (x, weight) in given.items():
            start = time.perf_counter()
            torch.nn.functional.linear(x, weight)
            least[dtype] = min(least[dtype], time.perf_counter() - start)
    return least[torch.bfloat16] < least[torch.float32]
