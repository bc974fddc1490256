"""Arguments out of the caches: sets of tensors that calls take in turn, more than a cache holds."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from dynkern.kernels import native

# of the last cache: its replacement is no strict LRU, and what others hold in it goes too
COLD_FACTOR = 4
# taken for a cache that the system does not tell of
UNKNOWN_CACHE = 64 << 20
# sets of a few kilobytes are many: views beyond this take longer to make than to read
MOST_SETS = 1 << 14
# random numbers drawn for a pool; the sets after them are copies, which no cache can tell
DRAWN = 4 << 20


@cache
def cold_bytes(device: torch.device) -> int:
    """Bytes that must be touched between two uses of the same set."""
    if device.type == "cuda":
        return COLD_FACTOR * torch.cuda.get_device_properties(device).L2_cache_size
    return COLD_FACTOR * (_last_cache() or UNKNOWN_CACHE)


def _last_cache() -> int | None:
    """Bytes of the largest cache of the first core (Linux)."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        try:
            text = path.read_text(encoding="ascii").strip()
            sizes.append(int(text[:-1]) * units[text[-1]])
        except (OSError, ValueError, KeyError, IndexError):
            continue
    return max(sizes, default=None)


def free_bytes(device: torch.device) -> int:
    """Memory that can be had on the device, about."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo", encoding="ascii") as info:
            for line in info:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) << 10
    except (OSError, ValueError):
        pass
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


class TooLarge(Exception):
    """A case does not fit into memory; the message says what it takes."""


@dataclass(frozen=True)
class Random:
    """A tensor of each set: normal numbers times `scale`."""

    shape: tuple[int, ...]
    scale: float = 1.0


class Maker:
    """Tensors of one dtype on one device. cold: bytes that a pool must exceed."""

    def __init__(self, dtype: torch.dtype, device: torch.device, cold: int | None = None) -> None:
        self.dtype, self.device = dtype, device
        self.cold = cold_bytes(device) if cold is None else cold

    def floats(self, *shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(shape, dtype=self.dtype, device=self.device) * scale

    def ints(self, values: Tensor | Sequence[int], dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.as_tensor(values).to(self.device, dtype)

    def pool(self, *kinds: Random, least: int = 1) -> list[tuple[Tensor, ...]]:
        """Sets of such tensors, as many as are cold and at least `least`. TooLarge."""
        element = torch.empty((), dtype=self.dtype).element_size()
        sizes = [torch.Size(kind.shape).numel() for kind in kinds]
        count = self.sets(sum(sizes) * element, least)
        # beside the pool, for parity: a set twice as wide, copies of it, and outputs
        self.expect_room((count + 6) * sum(sizes) * element)
        columns = [self._column(kind, size, count) for kind, size in zip(kinds, sizes, strict=True)]
        return list(zip(*columns, strict=True))

    def sets(self, set_bytes: int, least: int = 1) -> int:
        """How many sets of that many bytes are cold."""
        return max(least, min(MOST_SETS, -(-self.cold // max(1, set_bytes))))

    def expect_room(self, needed: int) -> None:
        """TooLarge unless so much memory can be had, and a tenth more."""
        free = free_bytes(self.device)
        if 1.1 * needed > free:
            raise TooLarge(f"takes {needed / 1e9:.1f} GB, {free / 1e9:.1f} are free")

    def _column(self, kind: Random, size: int, count: int) -> tuple[Tensor, ...]:
        whole = torch.empty((count, *kind.shape), dtype=self.dtype, device=self.device)
        if self.device.type == "cpu" and whole.numel() and native.cpu_missing() is None:
            # in huge pages, as packed weights are: kernels are measured, not page walks
            native.cpu_library().dynkern_cpu_advise(whole.data_ptr(), whole.nbytes)
        drawn = max(1, min(count, DRAWN // max(1, size)))
        whole[:drawn].normal_(std=kind.scale)
        for start in range(drawn, count, drawn):
            part = whole[start : start + drawn]
            part.copy_(whole[: len(part)])
        return whole.unbind(0)
