"""Ctrl-C that waits for the end of a step, so that what is kept is of one moment."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType


class Interrupts:
    """`seen` once Ctrl-C was pressed within the `with`; pressed again, it interrupts at once.

    Outside of the main thread, which alone gets signals, it does nothing.
    """

    def __init__(self) -> None:
        self.seen = False
        self._before: signal.Handlers | None = None

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._note)  # type: ignore[assignment]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.seen:
            raise KeyboardInterrupt
        self.seen = True
