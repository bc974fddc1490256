"""The executors to test: eager under "reference", and the CPU engine where it is there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from dynkern.kernels import native

MISSING = native.cpu_missing()
needs_engine = pytest.mark.skipif(MISSING is not None, reason=f"CPU engine: {MISSING}")
BACKENDS = ["reference", pytest.param("cpu", marks=needs_engine)]


def isa_levels() -> list[str]:
    """Levels of the CPU engine that this processor has, lowest first; empty without the engine."""
    return [] if MISSING is not None else native.cpu_levels()


@contextmanager
def cpu_isa(level: str | None) -> Iterator[None]:
    """The CPU kernels on that level inside the block; None leaves them as they are."""
    if level is None:
        yield
        return
    held = native.cpu_isa()
    native.set_cpu_isa(level)
    try:
        yield
    finally:
        native.set_cpu_isa(held)
