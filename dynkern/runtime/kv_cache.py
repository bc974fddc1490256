"""KVCache: preallocated K/V in lanes, so that a row holds room only for layers that it can run.

A lane is one layer's K/V of one row: [H, T, Dh]. `lane[l, i]` says where row i keeps layer l,
-1 where it keeps none: a planned route never reads a layer that it skips, so nothing is held for
it. `length[l, i]` counts the entries; layers differ under kv_fill "mask" and "deferred".
"""

from __future__ import annotations

import torch
from torch import Tensor

from dynkern.kernels.cpu.copy_kv import copy_kv
from dynkern.runtime.cells import cells


class KVCache:
    """K/V of up to n_slots rows in n_lanes lanes of `capacity` positions.

    k, v: [n_lanes, H, capacity, Dh]; lane, length: int32 [L, n_slots] on the device.
    """

    def __init__(
        self,
        num_layers: int,
        n_slots: int,
        n_lanes: int,
        num_heads: int,
        head_size: int,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (n_lanes, num_heads, capacity, head_size)
        self.k = torch.empty(shape, dtype=dtype, device=device)
        self.v = torch.empty(shape, dtype=dtype, device=device)
        self.lane = torch.full((num_layers, n_slots), -1, dtype=torch.int32, device=device)
        self.length = torch.zeros((num_layers, n_slots), dtype=torch.int32, device=device)
        self._lane, self._length = cells(self.lane), cells(self.length)
        self._free = list(range(n_lanes - 1, -1, -1))
        self._held: dict[int, list[int]] = {}

    @property
    def capacity(self) -> int:
        """Positions a lane can hold."""
        return self.k.shape[2]

    @property
    def n_slots(self) -> int:
        """Rows the cache can hold."""
        return self.lane.shape[1]

    @property
    def n_lanes(self) -> int:
        """Lanes in all."""
        return self.k.shape[0]

    @property
    def free_lanes(self) -> int:
        """Lanes that no row holds."""
        return len(self._free)

    @property
    def nbytes(self) -> int:
        """Bytes of K and V."""
        return 2 * self.k.numel() * self.k.element_size()

    def fits(self, n_slots: int, n_lanes: int, capacity: int) -> bool:
        """Whether a batch of this size can be held."""
        return n_slots <= self.n_slots and n_lanes <= self.n_lanes and capacity <= self.capacity

    def admit(self, slot: int, layers: Tensor, keys: Tensor, values: Tensor) -> None:
        """Give `slot` lanes for `layers` and copy a prompt's K/V of these layers into them.

        layers: bool [L] on the host. keys, values: [L, n, H, Dh] of the prompt's n tokens. Layers
        left out are dropped. Raises RuntimeError when slot is taken or lanes run out: the engine
        admits only what fits.
        """
        wanted = cells(layers).nonzero()[0]
        if slot in self._held or len(wanted) > len(self._free):
            raise RuntimeError(
                f"slot {slot}: taken, or {len(wanted)} lanes wanted and {len(self._free)} free"
            )
        lanes = [self._free.pop() for _ in range(len(wanted))]
        self._held[slot] = lanes
        tokens = keys.shape[1]
        # [N, H, n, Dh] -> [N, n, H, Dh]
        target = tuple(whole[:, :, :tokens].transpose(1, 2) for whole in (self.k, self.v))
        copy_kv((keys, values), target, wanted.tolist(), lanes)
        column = torch.full((len(layers),), -1, dtype=torch.int32)
        cells(column)[wanted] = lanes
        self._lane[:, slot] = cells(column.to(self.lane.device))
        self._length[:, slot] = tokens

    def release(self, slot: int) -> None:
        """Take the slot's lanes back."""
        self._free.extend(reversed(self._held.pop(slot)))
        self._lane[:, slot] = -1
        self._length[:, slot] = 0

    def release_all(self) -> None:
        """Empty every slot."""
        for slot in list(self._held):
            self.release(slot)
