"""Launches of several processes, and stand-ins for one of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence


def launched(
    count: int, words: Sequence[str], launcher: Sequence[str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`dynkern` in `count` processes, under torchrun by default."""
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    command = [sys.executable, "-m", *(launcher or torchrun), "-m", "dynkern", *words]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


class OneOfTwo:
    """Rank `rank` of two, whose other rank is gone once all is laid out."""

    size, device = 2, None

    def __init__(self, rank: int) -> None:
        self.rank, self.waited = rank, 0

    @property
    def leads(self):
        return self.rank == 0

    def wait(self):
        self.waited += 1
        if self.waited == 2:
            raise ValueError("another process of this run has ended early")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None
