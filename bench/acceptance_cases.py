"""What GPU acceptance measures of copy-forward."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.device_timing import time_op
from dynkern import routes
from dynkern.ops import kv_copy_forward, use_backend

# layers, heads, head size of the models whose caches are copied
SHAPES = {"1.3b": (24, 32, 64), "6.7b": (32, 32, 128), "tiny": (4, 2, 16)}
POSITIONS = 64


@dataclass(frozen=True)
class CopyCase:
    """A cache shape, a number of rows, and how skipped layers are spread."""

    shape: str
    rows: int
    skips: str

    def keep(self, num_layers: int) -> Tensor:
        """Keep bits [L, rows]."""
        if self.skips == "early_exit":
            route = routes.early_exit(num_layers, num_layers // 2 - 1)
            return route[:, None].expand(num_layers, self.rows).contiguous()
        if self.skips == "all_but_first":
            return routes.early_exit(num_layers, 0)[:, None].expand(num_layers, self.rows).clone()
        generator = torch.Generator().manual_seed(self.rows)
        scores = torch.rand((num_layers, self.rows), generator=generator)
        return routes.smallest_subset(scores, num_layers // 2)


def copy_cases(dry_run: bool) -> Iterator[CopyCase]:
    """The grid of step 5."""
    shapes, rows = (("tiny",), (1, 7)) if dry_run else (("1.3b", "6.7b"), (1, 8, 64, 256, 512))
    for shape in shapes:
        for count in rows:
            for skips in ("half_random", "all_but_first", "early_exit"):
                yield CopyCase(shape, count, skips)


def measure_copy(case: CopyCase, device: torch.device, repeats: int) -> dict[str, Any] | None:
    """Check a case bit for bit against the reference, then time it; None where memory is short."""
    num_layers, heads, size = SHAPES[case.shape]
    lanes = num_layers * case.rows
    # the cache as large as memory allows: beyond L2 every row's entry is cold
    positions = POSITIONS
    needed = 2 * lanes * heads * positions * size * 2
    if device.type == "cuda" and 2 * needed > torch.cuda.mem_get_info(device)[0]:
        return None
    k, v = (
        torch.randn(lanes, heads, positions, size, device=device).to(torch.bfloat16)
        for _ in range(2)
    )
    lane = torch.randperm(lanes).view(num_layers, case.rows).to(device, torch.int32)
    keep = case.keep(num_layers)
    source = routes.copy_source(keep, torch.ones(case.rows, dtype=torch.bool)).to(device)
    position = torch.randint(positions, (case.rows,), dtype=torch.int32).to(device)
    backend = "cuda" if device.type == "cuda" else "cpu"
    expected = k.clone(), v.clone()
    with use_backend("reference"):
        kv_copy_forward(*expected, lane, source, position)
    with use_backend(backend):
        kv_copy_forward(k, v, lane, source, position)
        if not (torch.equal(k, expected[0]) and torch.equal(v, expected[1])):
            raise AssertionError(f"{case}: {backend} differs from the reference")
        del expected
        times = time_op(lambda: kv_copy_forward(k, v, lane, source, position), device, repeats)
    copies = int((source >= 0).sum())
    # K and V, read and written
    moved = copies * heads * size * 2 * 4
    return {
        "case": f"kv_copy_forward {case.shape} {case.skips}",
        "rows": case.rows,
        "seconds": times.median,
        "p20": times.p20,
        "p80": times.p80,
        "bytes": moved,
        "bytes_per_second": moved / times.median,
    }
