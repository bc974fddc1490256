"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from dynkern.files import append_whole, write_whole
from support.errors import one_line_error

FULL = r"^output: .*f cannot be written \(No space left on device\), expected a place that can"


def full_disk(*args: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def interrupted(*args: object) -> None:
    raise KeyboardInterrupt


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "f"
    path.write_text("before")
    return path


def test_written_and_appended(tmp_path):
    path = tmp_path / "new" / "f"
    write_whole(path, lambda part: part.write_text("one"))
    append_whole(path, b"two")
    append_whole(tmp_path / "other" / "f", b"first")
    assert path.read_text() == "onetwo" and (tmp_path / "other" / "f").read_text() == "first"
    assert [p.name for p in path.parent.iterdir()] == ["f"]


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_full_disk_leaves_what_was(file, monkeypatch, function):
    monkeypatch.setattr(os, function, full_disk)
    with one_line_error(OSError, FULL):
        write_whole(file, lambda part: part.write_text("after"))
    assert file.read_text() == "before" and list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("stop", [full_disk, interrupted])
def test_half_a_file_is_taken_away(file, stop):
    def write(part: Path) -> None:
        part.write_text("aft")
        stop()

    with pytest.raises((OSError, KeyboardInterrupt)):
        write_whole(file, write)
    assert file.read_text() == "before" and list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("stop", [full_disk, interrupted])
def test_half_an_append_is_cut_back(file, monkeypatch, stop):
    monkeypatch.setattr(os, "fsync", stop)
    with pytest.raises((OSError, KeyboardInterrupt)) as raised:
        append_whole(file, b"more")
    assert file.read_text() == "before"
    if stop is full_disk:
        assert raised.value.errno == errno.ENOSPC and "output: " in str(raised.value)


def test_another_argument_is_named(tmp_path):
    (tmp_path / "f").write_text("")
    with one_line_error(OSError, "^table: .*f/x cannot be written"):
        write_whole(tmp_path / "f" / "x", lambda part: part.write_text(""), "table")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_device_that_is_full():
    with one_line_error(OSError, r"^output: /dev/full cannot be written \(No space left"):
        append_whole("/dev/full", b"more")
