"""A lock beside a file: one process writes, and the system lets go of it when that one dies."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # no locks on Windows
    fcntl = None  # type: ignore[assignment]


class FileLock:
    """Taken when made, until `release`. ValueError, one line, where another process has it.

    The lock is a file of its own: closing any handle of a SQLite file would drop SQLite's locks.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(path.name + ".lock")
        self._file: IO[bytes] | None = None
        while fcntl is not None and self._file is None:
            file = open(self.path, "ab")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                raise ValueError(
                    f"output: {path} is being written by another process; wait for it or take "
                    "another --output"
                ) from None
            except OSError:  # some network file systems have no locks
                file.close()
                return
            # whoever held it before may have deleted the name since it was opened here
            if self.path.exists() and os.path.samestat(os.fstat(file.fileno()), self.path.stat()):
                self._file = file
            else:
                file.close()

    def release(self) -> None:
        """Let go of it, and leave nothing behind."""
        if self._file is not None:
            self.path.unlink(missing_ok=True)
            self._file.close()
            self._file = None
