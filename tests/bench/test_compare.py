"""bench.compare: what counts as changed, and what it says."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from bench import compare

RESULTS = Path(__file__).resolve().parents[2] / "bench" / "results"


def write(path, rows):
    columns = ("commit", "device", "dry_run", "case", "batch", "seconds", "low", "high", "speedup")
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for row in rows:
            writer.writerow({"device": "a CPU", "dry_run": 0, "case": "pass", "batch": 1} | row)
    return path


def run(*arguments):
    app = typer.Typer()
    app.command()(compare.main)
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.mark.parametrize(
    ("old", "new", "verdict"),
    [(2.0, 2.05, "same"), (2.0, 2.2, "better"), (2.0, 1.8, "worse")],
)
def test_ratios_count_beyond_the_least_change(tmp_path, old, new, verdict):
    before = write(tmp_path / "old.csv", [{"speedup": old}])
    after = write(tmp_path / "new.csv", [{"speedup": new}])
    (change,) = compare.compare(compare.read(before, None), compare.read(after, None), False)
    assert (change.measure, change.verdict) == ("speedup", verdict)
    result = run(before, after)
    assert result.exit_code == (verdict == "worse")
    assert f"1 {verdict}" in result.output


def test_repetitions_and_spread_widen_the_noise(tmp_path):
    apart = [{"speedup": 1.6}, {"speedup": 2.0}]
    before = compare.read(write(tmp_path / "old.csv", apart), None)
    after = compare.read(write(tmp_path / "new.csv", [{"speedup": 1.7}]), None)
    assert [c.verdict for c in compare.compare(before, after, False)] == ["same"]
    assert [c.verdict for c in compare.compare(before[1:], after, False)] == ["worse"]
    spread = {"seconds": 1.0, "low": 0.8, "high": 1.2}
    before = compare.read(write(tmp_path / "old.csv", [spread]), None)
    after = compare.read(write(tmp_path / "new.csv", [spread | {"seconds": 1.15}]), None)
    assert compare.compare(before, after, False) == []
    (change,) = compare.compare(before, after, True)
    assert (change.measure, change.verdict) == ("seconds", "same")
    after = compare.read(write(tmp_path / "new.csv", [spread | {"seconds": 1.3}]), None)
    assert [c.verdict for c in compare.compare(before, after, True)] == ["worse"]


def test_seconds_count_on_a_gpu(tmp_path):
    row = {"device": "NVIDIA H100", "seconds": 1.0}
    before = compare.read(write(tmp_path / "old.csv", [row]), None)
    after = compare.read(write(tmp_path / "new.csv", [row | {"seconds": 0.5}]), None)
    assert [c.verdict for c in compare.compare(before, after, False)] == ["better"]


def test_commits_of_one_file_and_cases_apart(tmp_path):
    rows = [
        {"commit": "a", "speedup": 2.0},
        {"commit": "a", "speedup": 1.0, "batch": 8},
        {"commit": "b", "speedup": 3.0},
    ]
    path = write(tmp_path / "both.csv", rows)
    result = run(path, path, "--old-commit", "a", "--new-commit", "b")
    assert result.exit_code == 0 and "+50.0%" in result.output
    assert "1 better, 0 worse, 0 same" in result.output


@pytest.mark.parametrize("name", ["cpu.csv", "eval.csv", "aot.csv", "int8_kernels.csv"])
def test_the_committed_results_equal_themselves(name):
    result = run(RESULTS / name, RESULTS / name)
    assert result.exit_code == 0, result.output
    assert "0 better, 0 worse" in result.output and ", 0 same" not in result.output


def test_bad_input_is_one_line(tmp_path):
    path = write(tmp_path / "a.csv", [{"commit": "a", "speedup": 2.0}])
    other = write(tmp_path / "b.csv", [{"case": "other", "speedup": 2.0}])
    dry = write(tmp_path / "c.csv", [{"dry_run": 1, "speedup": 2.0}])
    (tmp_path / "d.csv").write_bytes(b"\xff\xfe,\n")
    for arguments, words in (
        ((tmp_path / "none.csv", path), "none.csv: cannot be read"),
        ((path, tmp_path), "cannot be read"),
        ((path, tmp_path / "d.csv"), "d.csv: cannot be read"),
        ((path, dry), "c.csv: no measured rows"),
        ((path, path, "--old-commit", "z"), "no measured rows of commit 'z'"),
        ((path, other), "no case in common"),
    ):
        result = run(*arguments)
        assert result.exit_code == 2 and words in result.output
        assert len(result.output.splitlines()) == 1
