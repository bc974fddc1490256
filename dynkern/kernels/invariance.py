"""batch_invariant: sums in an order that no other row of the batch has a say in.

Inside the mode kernels take tiles, splits and kernel families by the sizes of the model alone,
never by the number of rows; the reference multiplies row by row. A row then comes out bit for bit
as it would alone. The CPU kernels are that way with or without it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_VARIABLE = "DYNKERN_BATCH_INVARIANT"
_mode: ContextVar[bool | None] = ContextVar("dynkern_batch_invariant", default=None)


def is_batch_invariant() -> bool:
    """Whether the mode is on: innermost `batch_invariant`, else DYNKERN_BATCH_INVARIANT=1.

    Raises ValueError, one line, on another value of the variable than 0 or 1.
    """
    mode = _mode.get()
    if mode is not None:
        return mode
    given = os.environ.get(_VARIABLE) or "0"
    if given not in ("0", "1"):
        raise ValueError(f"{_VARIABLE}: got {given!r}, expected 0 or 1")
    return given == "1"


@contextmanager
def batch_invariant(on: bool | None = True) -> Iterator[None]:
    """The mode on or off inside the block; None leaves it as it is."""
    if on is None:
        yield
        return
    token = _mode.set(on)
    try:
        yield
    finally:
        _mode.reset(token)
