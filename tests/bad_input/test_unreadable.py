"""Files and folders that may not be read or written: one line that names them, nothing left."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import pytest

from bad_input.cases import Place
from support.controllers import made_controller
from support.forked import Forked

pytestmark = pytest.mark.skipif(
    not hasattr(os, "fork") or os.geteuid() != 0, reason="takes another user's part: needs root"
)
NOBODY = 65534


@pytest.fixture(scope="module")
def forked() -> Iterator[Forked]:
    with Forked() as server:
        yield server


@pytest.fixture(scope="module")
def place(forked) -> Iterator[Place]:
    # a folder that others may enter, unlike pytest's
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    made = Place(folder)
    made_controller(folder / "gates" / "c.safetensors", "fixed", 6)
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    (folder / "own").mkdir()
    (folder / "own").chmod(0o777)
    forked.warm(_words(made, folder / "warm"))
    yield made
    shutil.rmtree(folder)


def _words(place: Place, output: Path) -> list[str]:
    words = ["eval", "--model", str(place.model), "--data", str(place.data), "--template", "plain"]
    words += ["--policy", "uniform:3", "--batch-size", "2", "--limit", "2", "--no-timing"]
    return [*words, "--max-new-tokens", "3", "--output", str(output)]


@pytest.fixture
def locked(request, place) -> Iterator[Path]:
    path = place.folder / request.param
    mode = path.stat().st_mode
    path.chmod(0)
    yield path
    path.chmod(mode)


def _check_one_line(done, path: Path) -> None:
    assert done.code == 2, done.error
    (line,) = done.error.splitlines()
    assert line.startswith("dynkern: ") and str(path) in line


def _open_to_all(folder: Path) -> bool:
    return all(part.stat().st_mode & 0o005 == 0o005 for part in (folder, *folder.parents))


@pytest.mark.skipif(
    not _open_to_all(Path(matplotlib.get_data_path())),
    reason="fonts, which are opened late, lie where others may not read",
)
def test_the_same_user_may_run_it(forked, place, tmp_path):
    output = place.folder / "own" / "fine"
    done = forked.run(_words(place, output), tmp_path, user=NOBODY)
    assert done.code == 0, done.error
    assert (output / "results.json").exists()


WORDS = {"model/model.safetensors", "model/tokenizer.json", "gates/c.safetensors"}


@pytest.mark.parametrize(
    "locked", ["model", "model/config.json", "data.jsonl", *sorted(WORDS)], indirect=True
)
def test_what_may_not_be_read_is_named(forked, place, tmp_path, locked):
    output = place.folder / "own" / "unread"
    words = _words(place, output)
    if locked.parent.name == "gates":
        words += ["--policy", f"controller:{locked}"]
    done = forked.run(words, tmp_path, user=NOBODY)
    _check_one_line(done, locked)
    if str(locked.relative_to(place.folder)) in WORDS:
        assert f"{locked} may not be read (Permission denied)" in done.error
    assert not output.exists()


def test_where_nothing_may_be_written_is_named(forked, place, tmp_path):
    output = place.folder / "closed" / "out"
    output.parent.mkdir(mode=0o755)
    done = forked.run(_words(place, output), tmp_path, user=NOBODY)
    _check_one_line(done, output)
    assert not output.exists()
