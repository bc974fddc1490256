"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """write(part) fills a file beside `path`, which then takes its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(part)
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise


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


def make_folder(folder: Path) -> None:
    """Make a folder to write into; ValueError, one line, where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"output: {folder} cannot be made ({error.strerror}), expected a folder to write into"
        ) from None
