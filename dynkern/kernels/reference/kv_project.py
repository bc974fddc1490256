"""Reference of kv_project."""

from __future__ import annotations

from torch import Tensor

from dynkern.kernels.reference.rows import count, linear


def kv_project(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    k_cache: Tensor,
    v_cache: Tensor,
    lane: Tensor,
    position: Tensor,
    n_active: Tensor | None,
) -> None:
    n = count(n_active, x.shape[0])
    heads, size = k_cache.shape[1], k_cache.shape[3]
    kv = linear(x[:n], weight, bias).view(n, 2, heads, size)
    lanes, positions = lane[:n].long(), position[:n].long()
    k_cache[lanes, :, positions] = kv[:, 0]
    v_cache[lanes, :, positions] = kv[:, 1]
