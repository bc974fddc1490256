"""bench.int8_kernels, one round."""

from __future__ import annotations

import csv

import pytest
from typer.testing import CliRunner

from bench import int8_kernels


def _invoke(*arguments: str):
    app = int8_kernels.typer.Typer()
    app.command()(int8_kernels.main)
    return CliRunner().invoke(app, list(arguments))


def test_dry_run(tmp_path):
    if why := int8_kernels.obstacle():
        pytest.skip(why)
    result = _invoke("--output", str(tmp_path), "--dry-run")
    assert result.exit_code == 0, result.output
    with (tmp_path / "int8_kernels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = {(row["kernel"], row["rows"]) for row in rows}
    assert found == {(kernel, n) for kernel in ("vnni", "widened") for n in "1246"}
    assert all(float(row["seconds"]) > 0 and row["dry_run"] == "1" for row in rows)


def test_bad_input_is_one_line(tmp_path, monkeypatch):
    result = _invoke("--output", str(tmp_path), "--rounds", "0")
    assert result.exit_code == 2 and "--rounds: got 0, expected 1 or more" in result.output
    monkeypatch.setattr(int8_kernels, "obstacle", lambda: "no C++ compiler")
    result = _invoke("--output", str(tmp_path))
    assert result.exit_code == 2 and "int8_kernels: no C++ compiler" in result.output
    assert not list(tmp_path.iterdir())
