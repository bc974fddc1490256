"""GPU acceptance, dry: every step goes through, failures are recorded, budgets are kept."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import gpu_acceptance
from bench.acceptance_checks import LAUNCHES, OTHERS, WAITS, check_calls
from bench.results_file import append

ROOT = Path(__file__).resolve().parents[2]
OPS = ("ragged", "residual", "lm_head")
PASSES = "decode_pass,planned_routes,mixed_routes,token_policies,host_syncs,logits_error"
STEPS = f"environment,peak_rates,copy_forward,single_ops,{PASSES}"
STEPS += ",graph_kinds,batch_invariant,peers,sanitizer"


def test_dry_run(tmp_path):
    # in a process of its own, as from a checkout, on one thread beside the tests
    done = subprocess.run(
        [sys.executable, "-m", "bench.gpu_acceptance", "--output", str(tmp_path), "--dry-run"]
        + ["--steps", STEPS],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
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
    assert {row["dry_run"] for row in rows} == {"1"}
    assert all(float(row["seconds"]) > 0 and row["commit"] and row["device"] for row in rows)
    copies = [row for row in rows if row["case"].startswith("kv_copy_forward")]
    # one row, early exit at half of 4 layers: 2 layers x K and V x (read, write) x 2 heads x 32 B
    early = next(row for row in copies if row["case"].endswith("early_exit") and row["rows"] == "1")
    assert int(early["bytes"]) == 2 * 2 * 2 * 2 * 32
    assert len(copies) == 6 and all(float(row["share_of_copy"]) > 0 for row in copies)
    # full depth and each case: of two batches planned, of two mixed, of one under token policies
    decodes = [row for row in rows if row["case"].startswith("decode")]
    assert len(decodes) == 2 * 4 + 2 * 3 + 5
    assert all(float(row["realisation"]) > 0 for row in decodes)
    assert {row["engine"] for row in decodes} == {"cuda_graph"}
    compared = {row["case"]: set() for row in rows if row["engine"] and row not in decodes}
    for row in rows:
        if row["case"] in compared:
            compared[row["case"]].add(row["engine"])
    assert compared.pop("full depth") == {"graphs", "eager"}
    assert compared.pop("uniform:2") == {"whole pass", "graph a layer"}
    assert compared.pop("full depth, invariant or not") == {"graphs", "batch_invariant"}
    assert compared == {
        f"full depth against hf {way}": {"graphs", f"hf {way}"} for way in ("eager", "static")
    }
    found = {name: step["found"] for name, step in report["steps"].items()}
    assert 0 < found["logits_error"]["kernels"] < 1e-4 and found["logits_error"]["pytorch"] > 0
    assert len(found["host_syncs"]) == 3 and "absent" in found["sanitizer"]


def test_a_failing_step_is_recorded_and_takes_none_down(tmp_path):
    words = ["--output", str(tmp_path), "--dry-run", "--steps", "planned_routes,environment"]
    assert gpu_acceptance.main(words) == 1
    steps = json.loads((tmp_path / "report.json").read_text())["steps"]
    assert (
        steps["planned_routes"]["status"] == "failed"
        and "peak_rates" in steps["planned_routes"]["reason"]
    )
    assert steps["environment"]["status"] == "passed"


def test_a_spent_budget_skips_the_rest(tmp_path):
    assert gpu_acceptance.main(["--output", str(tmp_path), "--dry-run", "--minutes", "0"]) == 1
    steps = json.loads((tmp_path / "report.json").read_text())["steps"]
    assert len(steps) == 16 and {s["status"] for s in steps.values()} == {"skipped"}


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--steps", "guess"], "--steps: got 'guess'"),
        (["--minutes", "-1"], "--minutes: got -1"),
    ],
)
def test_bad_arguments(tmp_path, words, named, capsys):
    assert gpu_acceptance.main(["--output", str(tmp_path / "out"), "--dry-run", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert named in line
    assert not (tmp_path / "out").exists()


def test_rows_are_appended_under_the_same_columns_only(tmp_path):
    path = tmp_path / "x.csv"
    append(path, [{"a": 1, "b": 2}])
    append(path, [{"a": 3, "b": 4}])
    with pytest.raises(ValueError, match="has columns"):
        append(path, [{"a": 5, "c": 6}])
    assert path.read_text().split() == ["a,b", "1,2", "3,4"]


def test_without_transformers_the_other_rows_stand(tmp_path):
    hide = "import sys; sys.modules['transformers'] = sys.modules['rouge_score'] = None;"
    code = f"{hide} from bench.gpu_acceptance import main; sys.exit(main(sys.argv[1:]))"
    words = ["--output", str(tmp_path), "--dry-run", "--steps", "decode_pass,peers"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    steps = json.loads((tmp_path / "report.json").read_text())["steps"]
    assert len(steps["decode_pass"]["found"]["cases"]) == 4
    assert steps["peers"]["found"]["absent"].startswith("transformers: ")


def test_cases_beyond_a_share_of_the_time_are_named(tmp_path, monkeypatch):
    monkeypatch.setitem(gpu_acceptance.SHARES, "decode_pass", 0.0)
    acceptance = gpu_acceptance.Acceptance(tmp_path, dry_run=True, minutes=1)
    assert gpu_acceptance.run(acceptance, ["decode_pass"])
    step = acceptance.report["steps"]["decode_pass"]
    assert {case["rows"] for case in step["found"]["cases"]} == {1} and step["left_out"] == ["2"]


def test_calls_that_wait_or_launch_are_found():
    calls = {**dict.fromkeys((*WAITS, *LAUNCHES, *OTHERS), 0), "cudaGraphLaunch": 32}
    check_calls({**calls, "cudaEventSynchronize": 32, "cudaLaunchKernel": 3}, 32)
    for wrong in ({"cudaStreamSynchronize": 1}, {"cuLaunchKernelEx": 33}, {"cudaGraphLaunch": 0}):
        with pytest.raises(AssertionError, match="32 more passes made these calls"):
            check_calls({**calls, **wrong}, 32)


def test_without_a_sanitizer_it_says_so(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    from bench import acceptance_checks

    monkeypatch.setenv("CUDA_HOME", "/nowhere")
    monkeypatch.setattr(acceptance_checks.shutil, "which", lambda name: None)
    assert "no compute-sanitizer" in acceptance_checks.sanitize(1.0)["absent"]
