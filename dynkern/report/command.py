"""The command line that a report is of, as somebody would type it again."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_words: ContextVar[tuple[str, ...] | None] = ContextVar("words", default=None)
# of the environment, what decides results
_PREFIXES = ("DYNKERN_",)
_NAMES = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")


@contextmanager
def given(words: Sequence[str]) -> Iterator[None]:
    """Reports written within are those of `dynkern WORDS`."""
    token = _words.set(tuple(words))
    try:
        yield
    finally:
        _words.reset(token)


def command_line(call: Any = None) -> str:
    """The command line with what the environment adds, quoted for a shell; called from Python,
    repr(call) behind a # instead.
    """
    words = _words.get()
    if words is None:
        return f"# called from Python with {call!r}"
    settings = [
        f"{name}={shlex.quote(value)}"
        for name, value in sorted(os.environ.items())
        if name.startswith(_PREFIXES) or name in _NAMES
    ]
    return " ".join([*settings, "dynkern", shlex.join(words)]).rstrip()
