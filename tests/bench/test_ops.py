"""bench.ops at tiny size: every op's case, what is accounted, what blocks timing."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dynkern
from bench import compare
from bench.ops import contest, grid, suite
from bench.ops.cases import MAKERS, make_case
from bench.ops.contest import Clock
from bench.ops.grid import Selection, Spec
from bench.ops.pool import Maker, Random, TooLarge
from bench.ops.suite import Suite
from dynkern.cli import main
from dynkern.ops import OPS
from dynkern.ops.backends import Kernel, forget_choices
from support.backends import MISSING, needs_engine

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
SHORT = Clock(repeats=2, window=0.0, limit=float("inf"))
KERNELS = [] if MISSING else ["cpu"]


def small(**options) -> Suite:
    return Suite(clock=SHORT, cold=1 << 16, products=32, **options)


def tiny(op: str, routes: str = "half", dtype: str = "float32", rows: int = 5) -> list[Spec]:
    routes = routes if op in grid.ROUTED else "all"
    return [Spec(op, name, "tiny", dtype, rows, routes) for name in grid.NAMES[op]]


def read(folder: Path) -> list[dict[str, str]]:
    with (folder / "ops.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ops")
    specs = [spec for op in OPS for spec in tiny(op)]
    assert suite.run(small(), specs, folder)
    return read(folder)


def test_every_op_stands_beside_the_reference_and_the_library(rows):
    assert set(grid.NAMES) == set(MAKERS) == set(OPS)
    assert {row["op"] for row in rows} == set(OPS)
    for op, names in grid.NAMES.items():
        for name in names:
            found = [r["backend"] for r in rows if (r["op"], r["case"]) == (op, name)]
            assert found == ["reference", "library", *KERNELS]
    assert {(r["shape"], r["dtype"], r["rows"], r["dry_run"]) for r in rows} == {
        ("tiny", "float32", "5", "0")
    }


def test_rates_and_shares_follow_from_what_was_measured(rows):
    for row in rows:
        number = {key: float(row[key]) for key in ("seconds", "bytes", "flops", "bandwidth")}
        peak = float(row["peak_gflop_per_second"])
        rate = float(row["gb_per_second"])
        assert 0 < float(row["low"]) <= number["seconds"] <= float(row["high"])
        assert rate == pytest.approx(number["bytes"] / number["seconds"] / 1e9, rel=1e-3, abs=1e-3)
        share = max(rate / number["bandwidth"], float(row["gflop_per_second"]) / peak)
        assert float(row["efficiency"]) == pytest.approx(share)
        alone = {"reference": "speedup", "library": "speedup_library"}.get(row["backend"])
        assert alone is None or float(row[alone]) == 1.0
        assert float(row["speedup"]) > 0 and float(row["speedup_library"]) > 0
        assert (row["isa"] != "") == (row["backend"] == "cpu") and row["note"] == ""


def test_compare_reads_it(rows, tmp_path):
    path = tmp_path / "ops.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    slower = [dict(row, commit="later", foreign_load="0.1", bytes="1") for row in rows]
    slower[-1]["speedup_library"] = str(float(rows[-1]["speedup_library"]) / 20)
    old, new = compare.read(path, None), slower
    changes = compare.compare(old, new, absolute=False)
    # two ratios and a share of each row: every column but these is known as no part of a case
    assert len(changes) == 3 * len(rows)
    assert [(c.measure, c.verdict) for c in changes if c.verdict != "same"] == [
        ("speedup_library", "worse")
    ]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("routes", grid.ROUTES)
def test_results_agree_whatever_the_routes(dtype, routes):
    check = Suite(clock=None, cold=1 << 14)
    for op in OPS:
        if routes != "all" and op not in grid.ROUTED:
            continue
        for rows in (1, 9):
            for spec in tiny(op, routes, dtype, rows):
                held = check.contest(spec, CPU)
                assert [*held.outcomes] == ["reference", "library", *KERNELS]
                assert held.red == []


@needs_engine
@pytest.mark.parametrize("op", ["gate", "route_compact", "kv_project", "sample"])
def test_a_wrong_result_is_not_timed(op, tmp_path, monkeypatch, capsys):
    right = OPS[op].kernels["cpu"]

    def wrong(*args):
        found = right.function(*args)
        if op == "kv_project":
            args[4].mul_(1.5)
        else:
            (found if isinstance(found, torch.Tensor) else found[0]).add_(1)
        return found

    monkeypatch.setitem(OPS[op].kernels, "cpu", Kernel(wrong, right.missing, right.refuses))
    forget_choices()
    lines: list[str] = []
    spec = tiny(op)[0]
    assert not suite.run(small(), [spec], tmp_path, tell=lines.append)
    by = {row["backend"]: row for row in read(tmp_path)}
    assert by["cpu"]["note"] and not by["cpu"]["seconds"] and not by["cpu"]["speedup"]
    assert all(float(by[name]["seconds"]) > 0 for name in ("reference", "library"))
    assert any(line.startswith(f"red: {spec}: cpu: ") for line in lines)
    options = ["--quick", "--shape", "tiny", "--routes", "all"]
    assert main(["bench", "ops", "--op", op, "--dtype", "float32", *options]) == 1
    assert "red: " in capsys.readouterr().err
    forget_choices()


def test_a_library_that_errs_is_red_too(monkeypatch):
    spec = tiny("gate")[0]
    case = make_case(spec, Maker(torch.float32, CPU, 1 << 14))
    right = case.library
    object.__setattr__(case, "library", lambda s, layer: tuple(t + t for t in right(s, layer)))
    held = contest.hold(case, CPU, ["cpu"], None)
    assert [outcome.backend for outcome in held.red] == ["library"]


def test_sets_outgrow_the_cache_and_are_taken_in_turn():
    make = Maker(torch.float32, CPU, cold=1 << 20)
    sets = make.pool(Random((100, 8)), Random((8,)))
    assert sum(t.nbytes for s in sets for t in s) >= 1 << 20
    assert len({s[0].data_ptr() for s in sets}) == len(sets)
    case = make_case(tiny("ragged_linear")[0], Maker(torch.float32, CPU, 1 << 20))
    turns, seen = contest._Turns(case), []
    monitored = [(lambda s=s: seen.append(s)) for s in range(len(case.pool))]
    turns.sets = iter(range(len(case.pool)))
    object.__setattr__(case, "arguments", lambda s, layer: [s])
    object.__setattr__(case, "library", lambda s, layer: monitored[s]())
    alone = [turns.calls("library") for _ in range(3)]
    for _ in range(4):
        for one in alone:
            next(one)()
    assert seen == list(range(12))


def test_each_contestant_sees_every_layer():
    (spec,) = tiny("residual_bypass_layer_norm", "straggler")
    case = make_case(spec, Maker(torch.float32, CPU, 1 << 14))
    turns, layers = contest._Turns(case), []
    assert len(case.layers) == spec.sizes.layers and turns.round_up(1) == spec.sizes.layers
    object.__setattr__(case, "library", lambda s, layer: layers.append(layer))
    turns.burst("library", turns.round_up(1))()
    timed = layers[-len(case.layers) :]  # the lead-in comes first
    assert [id(layer) for layer in timed] == [id(layer) for layer in case.layers]


def test_the_gpu_loop_on_a_cpu():
    (spec,) = tiny("ragged_attention.decode", "bimodal")
    case = make_case(spec, Maker(torch.float32, CPU, 1 << 14))
    timed = contest._time_on_gpu(case, CPU, ["reference", "library"], SHORT)
    assert [*timed] == ["reference", "library"]
    assert all(len(o.seconds) == 2 and min(o.seconds) > 0 for o in timed.values())


def test_memory_is_asked_for_first(monkeypatch):
    monkeypatch.setattr("bench.ops.pool.free_bytes", lambda device: 1 << 20)
    with pytest.raises(TooLarge, match=r"takes .* GB, .* are free"):
        Maker(torch.float32, CPU, 1 << 16).pool(Random((512, 512)))
    check = small()
    spec = Spec("lm_head_argmax", "", "125m", "float32", 1, "all")
    assert check.contest(spec, CPU) is None and "are free" in check.left_out[str(spec)]


def test_routes_are_what_they_are_called():
    bits = {kind: grid.active(kind, 12, 8) for kind in grid.ROUTES}
    assert bits["all"].all() and not bits["none"].any()
    assert bits["half"].sum(dim=0).tolist() == [6] * 8
    assert sorted(bits["bimodal"].sum(dim=0).tolist()) == [3] * 4 + [12] * 4
    assert sorted(bits["straggler"].sum(dim=0).tolist()) == [3] * 7 + [12]
    assert not torch.equal(bits["half"], grid.active("half", 12, 8))
    with pytest.raises(ValueError, match="^routes: got 'some', expected one of all"):
        grid.active("some", 12, 8)


def test_selections():
    default = Selection().specs()
    assert {spec.op for spec in default} == set(OPS)
    assert {spec.shape for spec in default} == set(grid.MODELS)
    assert {spec.routes for spec in default} == set(grid.ROUTES)
    assert {spec.dtype for spec in default} == {"float32", "bfloat16"}
    assert len(set(default)) == len(default)
    everything = Selection(everything=True).specs()
    # a shape of the default's streams only; the whole grid holds all
    assert set(default) <= set(everything)
    assert {spec.rows for spec in everything} == set(grid.ROWS) >= {1, 512}
    assert {s.op for s in Selection(ops=["gate"]).specs()} == {"gate"}
    asked = Selection(rows=[3], shapes=["1.3b"], routes=["none"]).specs()
    assert {(s.rows, s.shape, s.routes) for s in asked} == {(3, "1.3b", "none")}
    counts = suite.counts()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"{counts['default']} cases" in readme and f"{counts['all']:,} cases" in readme


def test_time_is_bounded():
    lines: list[str] = []
    assert suite.run(small(), tiny("ragged_linear"), seconds=-1.0, tell=lines.append)
    assert "left out: 4 cases, for which there was no time" in lines


def test_pytest_keeps_what_the_suite_measures(tmp_path, pytestconfig):
    assert pytestconfig.getini("testpaths") == ["tests"]
    words = "--ops-op gate --ops-shape tiny --ops-dtype float32 --ops-quick --ops-backend cpu"
    kept = tmp_path / "kept.json"
    # a worker of xdist tells its children that they are workers, too, and these do not measure
    own = {name: value for name, value in os.environ.items() if "XDIST" not in name}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "bench/ops", "--benchmark-only", *words.split()]
        + ["--ops-output", str(tmp_path), f"--benchmark-json={kept}", "-p", "no:cacheprovider"],
        cwd=ROOT,
        env=own,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    medians = {
        b["params"]["contestant"]: b["stats"]["median"]
        for b in json.loads(kept.read_text())["benchmarks"]
    }
    rows = {row["backend"]: row for row in read(tmp_path)}
    assert [*rows] == ["reference", "library", *KERNELS] == [*medians]
    for name, row in rows.items():
        assert medians[name] == pytest.approx(float(row["seconds"]), rel=1e-6)
        assert row["dry_run"] == "1"


def test_an_installation_without_benchmarks_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(dynkern, "__file__", str(tmp_path / "dynkern" / "__init__.py"))
    assert main(["bench", "ops"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("dynkern: bench: got an installation without benchmarks")
    assert "expected a source checkout" in line
