"""Ctrl-C and a full disk, in processes of their own: one line each, nothing lost."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bad_input.cases import Place
from support.forked import POINTS, Done, Forked

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
STOPPED = "dynkern: stopped; --resume goes on with a stopped eval"


@pytest.fixture(scope="module")
def forked() -> Iterator[Forked]:
    with Forked() as server:
        yield server


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("interrupts"))


def evaluate(place: Place, output: Path, *more: str) -> list[str]:
    words = ["eval", "--model", str(place.model), "--data", str(place.data), "--template", "plain"]
    words += ["--policy", "uniform:3", "--policy", "random:4", "--batch-size", "2"]
    words += ["--limit", "6", "--max-new-tokens", "5", "--repeat", "1", "--output", str(output)]
    return [*words, *more]


QUALITY = "--no-timing"


@pytest.fixture(scope="module")
def whole(forked, place, tmp_path_factory) -> tuple[list, list]:
    """Rows and results of a run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    forked.warm(evaluate(place, folder / "warm", QUALITY))
    done = forked.run(evaluate(place, folder / "out", QUALITY), folder)
    assert done.code == 0, done.error
    return rows(folder / "out"), results(folder / "out")


def rows(output: Path) -> list[dict]:
    lines = (output / "samples.jsonl").read_text().splitlines()
    return sorted(map(json.loads, lines[1:]), key=lambda r: (r["policy"], r["prompt_id"]))


def results(output: Path) -> list:
    return json.loads((output / "results.json").read_text())["runs"]


def check_what_is_left(output: Path, ended: bool) -> None:
    """Whole rows, and results only of a run that came to its end."""
    if not output.exists():
        return
    names = {file.name for file in output.iterdir()}
    assert names <= {"samples.jsonl", "results.json", "curve.png", "report.html"}
    if "samples.jsonl" in names:
        content = (output / "samples.jsonl").read_bytes()
        assert content.endswith(b"\n") or not content
        for line in content.splitlines():
            json.loads(line)
    if ended:
        assert len(names) == 4
    if "results.json" in names:
        assert len(results(output)) == 3
    if "report.html" in names:
        assert (output / "report.html").read_text().endswith("</html>\n")
    if "curve.png" in names:
        # the mark of a PNG, and its last chunk
        picture = (output / "curve.png").read_bytes()
        assert picture[:4] == b"\x89PNG" and picture[-8:-4] == b"IEND"


def check_resumed(forked: Forked, place: Place, folder: Path, whole: tuple[list, list]) -> None:
    done = forked.run(evaluate(place, folder / "out", QUALITY, "--resume"), folder)
    assert done.code == 0, done.error
    check_what_is_left(folder / "out", ended=True)
    assert (rows(folder / "out"), results(folder / "out")) == whole


def check_stopped(done: Done, line: str) -> None:
    assert done.code == 130, done.error
    assert [text for text in done.error.splitlines() if text] == [line]


# the point at which eval is interrupted, calls of it that pass before, and rows kept by then
INTERRUPTED = [
    ("load", 0, 0),
    ("load", 40, 0),
    ("prefill", 4, 8),
    ("decode", 1, 2),
    ("samples", 5, 10),
    ("results", 0, 18),
    ("curve", 0, 18),
    ("results", 1, 18),
]


@pytest.mark.parametrize(("at", "skip", "kept"), INTERRUPTED)
def test_an_interrupted_eval_goes_on(forked, place, whole, tmp_path, at, skip, kept):
    output = tmp_path / "out"
    done = forked.run(evaluate(place, output, QUALITY), tmp_path, at=at, skip=skip)
    check_stopped(done, STOPPED)
    check_what_is_left(output, ended=False)
    assert (len(rows(output)) if (output / "samples.jsonl").exists() else 0) == kept
    check_resumed(forked, place, tmp_path, whole)


def test_an_interrupted_timing_pass_leaves_every_text(forked, place, whole, tmp_path):
    done = forked.run(evaluate(place, tmp_path / "out"), tmp_path, at="timing")
    check_stopped(done, STOPPED)
    assert rows(tmp_path / "out") == whole[0] and not (tmp_path / "out/results.json").exists()


@pytest.mark.parametrize("at", ["load", "prefill", "decode"])
def test_an_interrupted_answer(forked, place, tmp_path, at):
    words = ["generate", "--model", str(place.model), "--prompt", "hello"]
    check_stopped(forked.run(words, tmp_path, at=at), "dynkern: stopped")


@pytest.mark.parametrize("at", ["load"])
def test_an_interrupted_doctor(forked, place, tmp_path, at):
    words = ["doctor", "--model", str(place.model)]
    check_stopped(forked.run(words, tmp_path, at=at), "dynkern: stopped")


@pytest.mark.parametrize("step", range(5))
def test_an_interrupt_at_any_moment(forked, place, whole, tmp_path, step):
    done = forked.run(evaluate(place, tmp_path / "out", QUALITY), tmp_path, seconds=0.15 * step)
    if done.code:
        check_stopped(done, STOPPED)
    check_what_is_left(tmp_path / "out", ended=not done.code)
    check_resumed(forked, place, tmp_path, whole)


# bytes of the largest file that may be written: the header of the samples does not fit, a row in
# the middle does not, the results do not, the picture does not
@pytest.mark.parametrize("size", [300, 3000, 9000, 20_000])
def test_a_full_disk_while_writing(forked, place, whole, tmp_path, size):
    output = tmp_path / "out"
    done = forked.run(evaluate(place, output, QUALITY), tmp_path, file_size=size)
    assert done.code == 2
    (line,) = done.error.splitlines()
    assert line.startswith(f"dynkern: output: {output}") and "cannot be written" in line
    assert "expected" in line
    check_what_is_left(output, ended=False)
    assert not (output / "curve.png").exists()
    assert all(file.stat().st_size <= size for file in output.iterdir())
    check_resumed(forked, place, tmp_path, whole)


def test_sizes_stop_at_different_files(forked, place, tmp_path):
    named = set()
    for size in (300, 5000, 20_000):
        output = tmp_path / str(size) / "out"
        output.parent.mkdir()
        done = forked.run(evaluate(place, output, QUALITY), output.parent, file_size=size)
        named.add(Path(done.error.split("output: ")[1].split(" cannot")[0]).name)
    assert named >= {"samples.jsonl", "curve.png"}


def test_every_point_is_interrupted():
    assert {at for at, *_ in INTERRUPTED} | {"timing"} == set(POINTS)
