"""Triton kernels compile for every architecture, without spills and no worse than was committed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import aot

pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def committed() -> list[dict]:
    return aot.read(aot.COMMITTED)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict], str]:
    """Rows of a fresh quick run against the committed ones, and what it printed."""
    output = tmp_path_factory.mktemp("aot")
    command = [sys.executable, "-m", "bench.aot", "--quick", "--output", str(output)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [*command, "--against", str(aot.COMMITTED), "--jobs", "2"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 1) and done.stdout, done.stderr[-2000:]
    return aot.read(output / "aot.csv"), done.stdout


def test_every_kernel_compiles_without_spills_and_no_worse_than_before(compiled):
    rows, printed = compiled
    assert printed.strip().endswith("rows, 0 problems"), printed
    assert len(rows) > 100


def test_the_run_covers_every_kernel_dtype_and_architecture(compiled):
    from bench.aot_cases import DTYPES, cases
    from dynkern.ops import OPS

    with_triton = {op.label for op in OPS.values() if "triton" in op.kernels}
    assert {case.op for case in cases()} == with_triton
    rows, _ = compiled
    seen = {(row["kernel"], row["dtype"], row["arch"]) for row in rows}
    assert seen == {(c.kernel, c.dtype, arch) for c in cases() for arch in aot.ARCHS}
    # bits and ids have no float dtype; all others exist in each
    once = {"compact", "mark_seen", "combine"}
    by_kernel = {k: {row["dtype"] for row in rows if row["kernel"] == k} for k, _, _ in seen}
    few = {kernel for kernel, dtypes in by_kernel.items() if dtypes != set(DTYPES)}
    assert few <= once | {"copy"}


def test_the_committed_file_covers_every_case_and_has_no_problem(committed):
    from bench.aot_cases import cases

    keys = [tuple(row[name] for name in aot.KEY) for row in committed]
    assert len(set(keys)) == len(keys)
    expected = {(c.op, c.name, c.kernel, c.dtype, arch) for c in cases() for arch in aot.ARCHS}
    assert set(keys) == expected
    assert aot.judge(committed, []) == []


def test_products_use_tensor_cores_and_16_byte_loads(committed):
    products = [row for row in committed if row["kernel"] in aot.PRODUCTS]
    assert {row["kernel"] for row in products} == set(aot.PRODUCTS)
    for row in products:
        assert bool(row["tensor_core"]) == (row["dtype"] != "fp32"), row
        assert row["loads_16"], row


ROW = {"op": "o", "case": "c", "kernel": "tall", "dtype": "bf16", "arch": 90, "triton": "3.7.1"}
ROW |= {"registers": 100, "stack": 0, "shared": 1024, "tensor_core": 4, "loads_16": 2}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"stack": 8}, "8 bytes of stack"),
        ({"shared": 102400}, "102400 bytes of shared memory"),
        ({"tensor_core": 0}, "no tensor-core instruction"),
        ({"registers": 101}, "registers 101, 100 before"),
        ({"shared": 2048}, "shared 2048, 1024 before"),
        ({"loads_16": 0}, "loads_16 0, 2 before"),
    ],
)
def test_what_counts_as_a_problem(change, said):
    found = aot.judge([{**ROW, **change}], [ROW])
    assert any(said in problem and problem.startswith("o c tall bf16 90: ") for problem in found)
    assert aot.judge([ROW], [ROW]) == []
    # numbers of another triton version are no measure, faults of its own are
    other = [{**ROW, "triton": "3.6.0"}]
    assert bool(aot.judge([{**ROW, **change}], other)) == ("before" not in said)
