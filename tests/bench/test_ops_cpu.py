"""bench.ops_cpu at tiny size: every op on both backends."""

from __future__ import annotations

import csv

import pytest
from typer.testing import CliRunner

from bench import ops_cpu
from bench.ops_cpu_cases import CASES, SHAPES
from dynkern.ops import OPS
from support.backends import needs_engine

pytestmark = needs_engine


def _invoke(*arguments: str):
    app = ops_cpu.typer.Typer()
    app.command()(ops_cpu.main)
    return CliRunner().invoke(app, list(arguments))


def test_dry_run(tmp_path, monkeypatch):
    monkeypatch.setattr(
        ops_cpu, "interleave", lambda cases, n: _interleave(cases, n, min_window=0.0)
    )
    result = _invoke("--output", str(tmp_path), "--dry-run")
    assert result.exit_code == 0, result.output
    with (tmp_path / "ops_cpu.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for dtype in ("float32", "bfloat16"):
        for batch in ("1", "7"):
            found = {r["op"] for r in rows if (r["dtype"], r["rows"]) == (dtype, batch)}
            assert found == set(OPS)
    assert {(r["shape"], r["dry_run"]) for r in rows} == {("tiny", "1")}
    for row in rows:
        seconds, gigabytes = float(row["seconds"]), float(row["gb_per_second"])
        assert seconds > 0 and float(row["speedup"]) > 0 and gigabytes > 0
        assert (row["gflop_per_second"] != "") == (
            row["op"] not in ("embed", "route_compact", "kv_copy_forward", "sample")
            and row["op"] != "residual_bypass_layer_norm"
        )


_interleave = ops_cpu.interleave


def test_every_op_has_cases():
    assert set(CASES) == set(OPS) and {"125m", "1.3b"} < set(SHAPES)


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("--op", "softmax", "--op: got 'softmax', expected one of embed"),
        ("--shape", "7b", "--shape: got '7b', expected one of tiny"),
        ("--dtype", "int8", "--dtype: got 'int8', expected one of float32"),
        ("--batch", "0", "--batch: got 0, expected more"),
        ("--repeats", "0", "--repeats: got 0, expected more"),
    ],
)
def test_bad_arguments_are_one_line(tmp_path, capfd, argument, value, message):
    result = _invoke("--output", str(tmp_path), argument, value)
    assert result.exit_code == 2
    assert message in result.output + capfd.readouterr().err
    assert not (tmp_path / "ops_cpu.csv").exists()
