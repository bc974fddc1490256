"""GPU acceptance, dry: every step goes through, failures are recorded, budgets are kept."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OPS = ("ragged", "residual", "lm_head")
STEPS = "environment,peak_rates,copy_forward,single_ops,decode_pass"


def acceptance(*words: str) -> subprocess.CompletedProcess:
    """Run it from the checkout, on one thread beside the tests."""
    return subprocess.run(
        [sys.executable, "-m", "bench.gpu_acceptance", *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_dry_run(tmp_path):
    done = acceptance("--output", str(tmp_path), "--dry-run", "--steps", STEPS)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["dry_run"] is True
    assert {name: s["status"] for name, s in report["steps"].items()} == dict.fromkeys(
        STEPS.split(","), "passed"
    )
    with (tmp_path / "gpu.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    singles = [row for row in rows if row["case"].endswith(" reference")]
    # 7 ops for each of two row counts; ops may have CPU kernels beside the reference
    assert len(singles) == 2 * 7 and all(float(row["bytes"]) > 0 for row in singles)
    others = [row for row in rows if not row["case"].startswith(OPS)]
    assert len(others) == 6 + 6 and {row["dry_run"] for row in rows} == {"1"}
    assert all(float(row["seconds"]) > 0 and row["commit"] and row["device"] for row in rows)
    copies = [row for row in rows if row["case"].startswith("kv_copy_forward")]
    # one row, early exit at half of 4 layers: 2 layers x K and V x (read, write) x 2 heads x 32 B
    early = next(row for row in copies if row["case"].endswith("early_exit") and row["rows"] == "1")
    assert int(early["bytes"]) == 2 * 2 * 2 * 2 * 32
    assert all(float(row["share_of_copy"]) > 0 for row in copies)
    decodes = [row for row in rows if row["case"].startswith("decode")]
    assert all(float(row["realisation"]) > 0 for row in decodes)


def test_a_failing_step_is_recorded_and_takes_none_down(tmp_path):
    done = acceptance("--output", str(tmp_path), "--dry-run", "--steps", "decode_pass,environment")
    assert done.returncode == 1
    steps = json.loads((tmp_path / "report.json").read_text())["steps"]
    assert (
        steps["decode_pass"]["status"] == "failed"
        and "peak_rates" in steps["decode_pass"]["reason"]
    )
    assert steps["environment"]["status"] == "passed"


def test_a_spent_budget_skips_the_rest(tmp_path):
    done = acceptance("--output", str(tmp_path), "--dry-run", "--minutes", "0")
    assert done.returncode == 1
    steps = json.loads((tmp_path / "report.json").read_text())["steps"]
    assert len(steps) == 7 and {s["status"] for s in steps.values()} == {"skipped"}


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--steps", "guess"], "--steps: got 'guess'"),
        (["--minutes", "-1"], "--minutes: got -1"),
    ],
)
def test_bad_arguments(tmp_path, words, named):
    done = acceptance("--output", str(tmp_path / "out"), "--dry-run", *words)
    assert done.returncode == 2 and named in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_rows_are_appended_under_the_same_columns_only(tmp_path):
    code = (
        "import sys; from pathlib import Path; from bench.results_file import append;"
        "p = Path(sys.argv[1]); append(p, [{'a': 1, 'b': 2}]); append(p, [{'a': 3, 'b': 4}]);"
        "print(p.read_text().split());"
        "\ntry: append(p, [{'a': 5, 'c': 6}])\nexcept ValueError as e: print('refused', e)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x.csv")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines()[0] == "['a,b', '1,2', '3,4']", done.stderr
    assert "refused" in done.stdout and "has columns" in done.stdout
