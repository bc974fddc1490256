"""Files that are there whole or not at all, whatever interrupts their writing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def writing(path: Path, argument: str = "output") -> Iterator[None]:
    """Where the system refuses a write: one line that names the argument, as an OSError."""
    try:
        yield
    except OSError as error:
        if error.strerror is None:  # said already
            raise
        refusal = OSError(
            f"{argument}: {path} cannot be written ({error.strerror}), expected a place that can; "
            "what was complete is kept"
        )
        refusal.errno = error.errno
        raise refusal from None


def write_whole(path: str | Path, write: Callable[[Path], Any], argument: str = "output") -> None:
    """Let `write` fill a file of another name beside `path`, then put it in its place.

    Until then `path` is what it was before, and a failure, or Ctrl-C, leaves nothing new. Folders
    are made. argument: whose value `path` is, for the OSError, one line, of a full disk and the
    like.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with writing(path, argument):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(part)
            with open(part, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(part, path)
        except BaseException:
            with suppress(OSError):
                part.unlink()
            raise


def append_whole(path: str | Path, content: bytes, argument: str = "output") -> None:
    """Append all of `content`, or cut the file back to what it was. Raises as write_whole."""
    path = Path(path)
    with writing(path, argument):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab", buffering=0) as file:
            before = os.fstat(file.fileno()).st_size
            try:
                write_all(file, content)
            except BaseException:
                with suppress(OSError):  # a device has no length
                    file.truncate(before)
                raise


def write_all(file: Any, content: bytes) -> None:
    """Write to an unbuffered file and wait for the disk; a raw write may take only a part."""
    remaining = memoryview(content)
    while remaining:
        remaining = remaining[file.write(remaining) :]
    os.fsync(file.fileno())


def replace_folder(folder: Path, write: Callable[[Path], Any]) -> None:
    """write(part) fills a new folder beside `folder`, which then takes its place."""
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    part.mkdir(parents=True)
    try:
        write(part)
        # a folder cannot be replaced by a full one in one step: the old one steps aside
        if folder.exists():
            os.replace(folder, old)
        os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def check_readable(path: Path, argument: str) -> None:
    """Raise a one-line ValueError where the system refuses to let an existing file be read.

    Libraries that map files say of such a one that there is none.
    """
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        raise ValueError(
            f"{argument}: {path} may not be read ({error.strerror}), expected a readable file"
        ) from None


def make_folder(folder: Path) -> None:
    """Make a folder to write into; ValueError, one line, where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"output: {folder} cannot be made ({error.strerror}), expected a folder to write into"
        ) from None
