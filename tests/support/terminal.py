"""A program on a terminal of its own: keys are sent, what it shows is waited for."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Mapping

CTRL_C, CTRL_D = "\x03", "\x04"
# the terminal becomes the process's own, so that Ctrl-C is a signal to it; a test run in the
# background would hand down that it is ignored
_START = """
import fcntl, signal, sys, termios
signal.signal(signal.SIGINT, signal.default_int_handler)
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from dynkern.cli import main
sys.exit(main())
"""


class Terminal:
    """`dynkern` with these arguments; a context manager that ends it. seen: all it has shown."""

    def __init__(self, *arguments: str, env: Mapping[str, str] | None = None) -> None:
        self._keys, screen = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", _START, *arguments],
            stdin=screen,
            stdout=screen,
            stderr=screen,
            start_new_session=True,
            env={**os.environ, "TERM": "dumb", **(env or {})},
        )
        os.close(screen)
        self.seen = ""
        self._read_up_to = 0

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._keys)

    def send(self, keys: str) -> None:
        os.write(self._keys, keys.encode())

    def expect(self, pattern: str, seconds: float = 120.0) -> str:
        """What was shown since the last expectation, up to the end of `pattern`'s first match."""
        until = time.monotonic() + seconds
        while not (found := re.compile(pattern).search(self.seen, self._read_up_to)):
            left = until - time.monotonic()
            if left <= 0 or not self._read(left):
                raise AssertionError(f"{pattern!r} was not shown, but: {self.seen!r}")
        start, self._read_up_to = self._read_up_to, found.end()
        return self.seen[start : found.end()]

    def end(self, seconds: float = 60.0) -> int:
        """The exit code, once everything is read."""
        while self._read(seconds):
            pass
        return self.process.wait(seconds)

    def _read(self, seconds: float) -> bool:
        if not select.select([self._keys], [], [], seconds)[0]:
            return False
        try:
            piece = os.read(self._keys, 65536)
        except OSError:  # Linux's word for the end
            return False
        self.seen += piece.decode(errors="replace")
        return bool(piece)
