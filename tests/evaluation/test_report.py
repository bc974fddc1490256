"""The table, results.json and curve.png."""

from __future__ import annotations

import io
import json
import math
import os

import numpy as np
import pytest
from rich.console import Console

from dynkern.evaluation.curve import MAX_LABELS, draw_curve
from dynkern.evaluation.report import (
    RUN_KEYS,
    plot_curve,
    print_table,
    timing_notes,
    write_results,
)
from support.errors import one_line_error

# the contract of results.json, word for word
CONTRACT = """policy batch_size rouge1 rouge2 rougeL rougeL_ci agreement_with_full mean_layers
new_tokens seconds seconds_prefill seconds_decode tokens_per_second speedup speedup_decode
speedup_spread predicted_speedup realisation saved_fraction roofline_efficiency
peak_memory_bytes""".split()


def run(policy: str, layers: float | None, rouge: float, seconds: float | None, **more) -> dict:
    timed = {}
    if seconds is not None:
        timed = {
            "speedup": 10 / seconds,
            "speedup_spread": [9.5 / seconds, 10.5 / seconds],
            "speedup_decode": 12 / seconds,
            "speedup_decode_spread": [11 / seconds, 13 / seconds],
            "predicted_speedup": 2.125,
            "realisation": 0.875,
            "saved_fraction": 0.625,
            "roofline_efficiency": 0.375,
        }
    return {
        "policy": policy,
        "batch_size": 8,
        "rougeL": rouge,
        "rougeL_ci": [rouge - 0.03, rouge + 0.04],
        "agreement_with_full": 0.5,
        "mean_layers": layers,
        "seconds": seconds,
        **timed,
        **more,
    }


RUNS = [
    run("full", 12, 0.299, 10.0),
    run("uniform:9", 9, 0.284, 8.0),
    run("uniform:6", 6, 0.261, 5.9),
    run("uniform:3", 3, 0.228, 3.8),
    run("early_exit:8", 9, 0.261, 7.9),
    run("early_exit:5", 6, 0.215, 5.8),
    run("random:6", 6, 0.22, 6.3),
    run("confidence:margin=0.2,exits=0+1+4", 7.1, 0.24, 8.8),
]
UNTIMED = [run(r["policy"], r["mean_layers"], r["rougeL"], None) for r in RUNS]


def printed(runs: list[dict], meta: dict | None = None, **console) -> str:
    file = io.StringIO()
    print_table(Console(file=file, color_system=None, **console), runs, meta)
    return file.getvalue()


def test_results_hold_exactly_the_contract(tmp_path):
    path = tmp_path / "new" / "results.json"
    write_results(path, {"prompts": 64}, [{"policy": "full", "rougeL": 0.25}])
    content = json.loads(path.read_text())
    assert list(content) == ["meta", "runs"] and content["meta"] == {"prompts": 64}
    assert list(content["runs"][0]) == CONTRACT == list(RUN_KEYS)
    assert content["runs"][0]["rougeL"] == 0.25
    assert all(content["runs"][0][key] is None for key in CONTRACT[1:] if key != "rougeL")


def test_results_keep_further_keys(tmp_path):
    write_results(tmp_path / "r.json", {}, [{"policy": "full", "rougeL_diff_ci": [0.0, 0.0]}])
    (got,) = json.loads((tmp_path / "r.json").read_text())["runs"]
    assert got["rougeL_diff_ci"] == [0.0, 0.0]


def test_results_hold_no_nan_and_plain_values(tmp_path):
    runs = [
        {
            "policy": "full",
            "rougeL": np.float64(0.5),
            "rougeL_ci": (np.float32(0.25), math.nan),
            "seconds": math.inf,
            "new_tokens": np.int64(7),
            "speedup": np.float64("nan"),
            "layers": np.arange(3),
        }
    ]
    write_results(tmp_path / "r.json", {"deep": [{"x": -math.inf}], "out": tmp_path}, runs)
    text = (tmp_path / "r.json").read_text()
    assert "NaN" not in text and "Infinity" not in text
    content = json.loads(text)
    assert content["meta"] == {"deep": [{"x": None}], "out": str(tmp_path)}
    got = content["runs"][0]
    assert got["rougeL_ci"] == [0.25, None] and got["new_tokens"] == 7
    assert got["seconds"] is None and got["speedup"] is None and got["layers"] == [0, 1, 2]


def test_results_are_whole_or_not_there(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    write_results(path, {}, RUNS)
    before = path.read_bytes()

    def stopped(source: str, target: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stopped)
        with pytest.raises(KeyboardInterrupt):
            write_results(path, {"other": 1}, RUNS)
        with pytest.raises(KeyboardInterrupt):
            plot_curve(RUNS, tmp_path / "curve.png")
    with pytest.raises(TypeError):
        write_results(path, {"bad": object()}, RUNS)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_results_need_a_policy(tmp_path):
    with one_line_error(ValueError, "runs: got no policy in run 1"):
        write_results(tmp_path / "r.json", {}, [RUNS[0], {"rougeL": 1.0}])


def test_table_on_a_wide_screen():
    seen = printed(RUNS, width=200, force_terminal=True)
    (line,) = [line for line in seen.splitlines() if "uniform:6" in line]
    cells = line.split()
    assert cells[:5] == ["uniform:6", "0.261", "(0.231-0.301)", "50%", "6.00"]
    assert cells[5:10] == ["5.90", "1.69", "(1.61-1.78)", "2.03", "(1.86-2.20)"]
    assert cells[10:] == ["2.12", "0.88", "0.62", "0.38"]
    assert "note" not in seen


@pytest.mark.parametrize("width", [80, 100])
def test_table_on_a_narrow_screen_loses_no_number(width):
    seen = printed(RUNS, width=width, force_terminal=True)
    assert max(map(len, seen.splitlines())) <= width
    assert "…" not in seen
    for number in ("0.261", "(0.231-0.301)", "50%", "5.90", "1.69", "(1.61-1.78)", "2.03", "2.12"):
        assert number in seen


def test_table_in_a_pipe_is_one_however_wide():
    seen = printed(RUNS)
    assert "…" not in seen
    (line,) = [line for line in seen.splitlines() if "confidence" in line]
    assert "confidence:margin=0.2,exits=0+1+4" in line and line.split()[-1] == "0.38"


def test_what_was_not_measured_is_n_a():
    seen = printed(UNTIMED)
    (line,) = [line for line in seen.splitlines() if "uniform:6" in line]
    assert line.split()[5:] == ["n/a"] * 7
    assert "note: no time was measured" in seen
    bare = printed([{"policy": "full", "rougeL": math.nan}])
    assert bare.count("n/a") == 10


def test_names_are_no_markup():
    seen = printed([run("controller:[bold]x[/bold]", 6, 0.2, 1.0, loaded=True)])
    assert seen.count("controller:[bold]x[/bold]") == 1


def test_small_and_large_seconds_keep_their_digits():
    shown = printed([run("full", 12, 0.3, 0.01234), run("uniform:6", 6, 0.2, 1234.56)])
    assert "0.0123" in shown and "1234.6" in shown


def test_notes_on_timing():
    assert timing_notes(RUNS, {}) == []
    assert timing_notes(UNTIMED, {}) == ["no time was measured"]
    assert timing_notes([RUNS[0], UNTIMED[1]], {}) == ["no time was measured for uniform:9"]
    loaded = [RUNS[0], {**RUNS[1], "loaded": True}]
    (note,) = timing_notes(loaded, {})
    assert "busy: uniform:9" in note
    (note,) = timing_notes([{**r, "loaded": True} for r in RUNS], {})
    assert "all policies" in note
    stamps = {"timing": {"natural": {"load": "load not metered"}, "forced_rows": 8}}
    (note,) = timing_notes(RUNS, stamps)
    assert "could not be metered" in note
    assert timing_notes(RUNS, {"timing": {"natural": {"load": "metered"}}}) == []
    assert timing_notes(UNTIMED, {"timing": None}) == ["no time was measured"]


def panels(runs: list[dict]) -> list:
    return draw_curve(runs).axes


def test_curve_is_a_png(tmp_path):
    plot_curve(RUNS, tmp_path / "new" / "curve.png", title="a model")
    content = (tmp_path / "new" / "curve.png").read_bytes()
    assert content.startswith(b"\x89PNG") and content.endswith(b"IEND\xaeB`\x82")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["curve.png"]


def test_curve_has_two_panels_with_units():
    seconds, layers = panels(RUNS)
    assert "[s]" in seconds.get_xlabel() and "layers" in layers.get_xlabel()
    assert "ROUGE-L" in seconds.get_ylabel() and "under load" not in seconds.get_xlabel()
    seconds, _ = panels([*RUNS, run("uniform:1", 1, 0.2, 2.0, loaded=True)])
    assert "under load" in seconds.get_xlabel()


def test_families_are_joined_in_order_of_layers():
    _, layers = panels(RUNS)
    lines = {c.get_label(): c.lines[0].get_xydata().tolist() for c in layers.containers}
    assert set(lines) == {"full", "uniform", "early_exit", "random", "confidence:margin"}
    assert lines["uniform"] == [[3, 0.228], [6, 0.261], [9, 0.284]]
    assert lines["early_exit"] == [[6, 0.215], [9, 0.261]]
    labels = sorted(text.get_text() for text in layers.texts)
    assert labels == ["0.2,exits=0+1+4", "3", "5", "6", "6", "8", "9", "full"]


def test_error_bars_are_the_interval():
    seconds, _ = panels(RUNS[:1])
    (container,) = seconds.containers
    (segment,) = container.lines[2][0].get_segments()
    assert segment[:, 1].tolist() == pytest.approx([0.269, 0.339])


def test_labels_cover_neither_markers_nor_each_other():
    figure = draw_curve(RUNS)
    figure.draw_without_rendering()
    for panel in figure.axes:
        boxes = [text.get_window_extent() for text in panel.texts]
        frame = panel.get_window_extent()
        for i, box in enumerate(boxes):
            assert frame.x0 <= box.x0 and box.x1 <= frame.x1
            assert not any(box.overlaps(other) for other in boxes[:i])
        points = [xy for c in panel.containers for xy in c.lines[0].get_xydata()]
        for x, y in panel.transData.transform(points):
            assert not any(box.contains(x, y) for box in boxes)


def test_curve_without_times_has_the_layers_only():
    (layers,) = panels(UNTIMED)
    assert "layers" in layers.get_xlabel()
    assert len(layers.containers) == 5


def test_a_run_without_a_value_is_left_out_of_its_panel():
    seconds, layers = panels([RUNS[0], UNTIMED[1], run("uniform:6", None, 0.2, 5.0)])
    assert [len(c.lines[0].get_xdata()) for c in seconds.containers] == [1, 1]
    assert [c.lines[0].get_xdata().tolist() for c in layers.containers] == [[12], [9]]


@pytest.mark.parametrize(
    "runs",
    [
        RUNS[:1],
        RUNS[1:2],
        [run("full", None, 0.3, None)],
        [{"policy": "full"}],
        [{**RUNS[0], "rougeL_ci": None}],
        [{**RUNS[0], "rougeL": math.nan}],
        [run("controller:/a/$x$/b_{c", 5.0, 0.3, 1.0)],
        [run("full", 12, 0.0, 3.0), run("uniform:3", 3, 0.0, 3.0)],
        [run(f"uniform:{k}", k, 0.2 + k / 1000, k + 1.0) for k in range(1, MAX_LABELS + 5)],
        [run(f"family{k}:6", k, 0.2 + k / 1000, k + 1.0) for k in range(1, 15)],
    ],
    ids=["full", "one", "no-layers", "bare", "no-ci", "nan", "math", "zero", "many", "families"],
)
def test_odd_runs_can_be_drawn(tmp_path, runs):
    plot_curve(runs, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 5_000


def test_no_runs_cannot_be_drawn(tmp_path):
    with one_line_error(ValueError, "runs: got none"):
        plot_curve([], tmp_path / "curve.png")
    assert not any(tmp_path.iterdir())
