"""bench.cost_model, bench.scaling and bench.levels: what is computed of times, and dry runs."""

from __future__ import annotations

import csv
import struct
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench import cost_model, cost_model_plot, levels, scaling, scaling_plot
from bench.latency import gaps, percentile
from dynkern.evaluation.load_meter import Load
from dynkern.evaluation.timing import CaseTiming, Timings, interleave
from dynkern.kernels import native


def _dry(module, folder, monkeypatch, name):
    monkeypatch.setattr(
        module,
        "interleave",
        lambda cases, repeats, progress: interleave(cases, repeats, min_window=0.0, limit=1e9),
    )
    app = module.typer.Typer()
    app.command()(module.main)
    result = CliRunner().invoke(app, ["--output", str(folder), "--dry-run"])
    assert result.exit_code == 0, result.output
    with (folder / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_case_is_predicted(tmp_path, monkeypatch):
    rows = _dry(cost_model, tmp_path, monkeypatch, "cost_model")
    assert {row["kv_fill"] for row in rows} == {"", "project", "copy", "deferred", "mask"}
    for row in rows:
        assert float(row["predicted"]) > 0 and float(row["predicted_earlier"]) > 0
        assert float(row["error"]) > -1
    assert {row["policy"] for row in rows if row["batch"] == "3"} >= {"bimodal", "one straggler"}
    cost_model_plot.draw(rows, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_errors_are_summed_up():
    rows = [{"error": e} for e in (0.1, -0.3, 0.2, "")]
    mean, worst, row = cost_model.summary(rows)
    assert mean == pytest.approx(0.2) and worst == 0.3 and row is rows[1]
    with pytest.raises(ValueError, match="none with a value"):
        cost_model.summary(rows[3:])


def test_every_axis_has_points(tmp_path, monkeypatch):
    rows = _dry(scaling, tmp_path, monkeypatch, "scaling")
    assert {row["axis"] for row in rows} == set(scaling.AXES)
    assert all(0 < float(row["expected"]) and float(row["seconds"]) > 0 for row in rows)
    scaling_plot.draw(rows, tmp_path / "a.png")
    one = _size(tmp_path / "a.png")
    # another device has panels of its own
    other = [{**row, "device": "another"} for row in rows if row["axis"] == "rows"]
    scaling_plot.draw([*rows, *other], tmp_path / "b.png")
    two = _size(tmp_path / "b.png")
    assert two[0] == one[0] and two[1] == 2 * one[1] > 200


def test_a_line_is_found_again():
    fixed, slope, r2 = scaling.line_through([1.0, 2.0, 4.0], [5.0, 7.0, 11.0])
    assert (fixed, slope, r2) == pytest.approx((3.0, 2.0, 1.0))
    assert scaling.line_through([2.0], [6.0]) == (0.0, 3.0, 1.0)


def test_tokens_that_come_together_share_their_wait():
    each, waits = gaps([1.0, 2.0, 4.0, 4.0])
    assert each == [1.0, 1.0, 1.0] and waits == [1.0, 2.0]
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0 and percentile([0.0, 1.0], 0.95) == 0.95


def _size(picture: Path) -> tuple[int, int]:
    return struct.unpack(">II", picture.read_bytes()[16:24])


def test_every_level_is_timed_against_the_one_that_is_taken(tmp_path, monkeypatch):
    held = native.cpu_isa()
    native.set_cpu_isa("auto")
    auto = native.cpu_isa()
    # left as it was found, whatever that is
    native.set_cpu_isa("portable")
    rows = _dry(levels, tmp_path, monkeypatch, "levels")
    left = native.cpu_isa()
    native.set_cpu_isa(held)
    assert left == "portable"
    assert [row["level"] for row in rows[: len(native.cpu_levels())]] == native.cpu_levels()
    assert len(rows) == 6 * len(native.cpu_levels())
    taken = [row for row in rows if row["auto"] == "1"]
    assert len({(row["dtype"], row["kind"], row["rows"]) for row in taken}) == len(taken) == 6
    assert {(row["level"], float(row["against_auto"])) for row in taken} == {(auto, 1.0)}


def case(name, seconds):
    return CaseTiming(name, (seconds,), ((None,),), (Load(1.0, 1.0, 0.0, 0.0),), 0, False)


def test_a_level_that_beats_the_automatic_choice_is_flagged(monkeypatch):
    best, auto = native.cpu_levels()[0], native.cpu_isa()
    seconds = {name: 1.0 for name in native.cpu_levels()} | {best: 0.9}
    timings = Timings({name: case(name, value) for name, value in seconds.items()})
    monkeypatch.setattr(levels, "interleave", lambda cases, repeats, progress: timings)
    width = scaling.Width(64, 2, 128)
    rows = levels.measure(width, 1, "float32", "prefill", 3, 1, lambda *a: None)
    flagged = {row["level"]: row["flagged"] for row in rows}
    assert flagged == {name: int(name == best != auto) for name in native.cpu_levels()}
