"""Reference of kv_copy_forward."""

from __future__ import annotations

from torch import Tensor


def kv_copy_forward(
    k_cache: Tensor, v_cache: Tensor, lane: Tensor, source: Tensor, position: Tensor
) -> None:
    layer, row = (source >= 0).nonzero(as_tuple=True)
    to_lane, from_lane = lane[layer, row].long(), lane[source[layer, row].long(), row].long()
    held = (to_lane >= 0) & (from_lane >= 0)
    to_lane, from_lane, at = to_lane[held], from_lane[held], position[row[held]].long()
    k_cache[to_lane, :, at] = k_cache[from_lane, :, at]
    v_cache[to_lane, :, at] = v_cache[from_lane, :, at]
