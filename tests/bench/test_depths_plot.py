"""Depths are drawn apart by model, weights, device and batch size."""

from __future__ import annotations

import pytest

from bench import depths_plot, results_file


def row(**given: str) -> dict[str, str]:
    own = {
        **dict.fromkeys(("dtype", "target", "schedule"), ""),
        **{"time": "2026-12-01T10:00:00+00:00", "device": "one", "model": "opt", "batch": "8"},
        **{"lengths": "natural", "way": "full", "rougeL": "0.5", "rougeL_full": "0.5"},
        **{"speedup_decode": "1.0", "possible_decode": "1.0"},
    }
    return {**own, **given}


def panels(rows: list[dict[str, str]]) -> dict[tuple[str, str], int]:
    """Lines of each panel by its row's device and its own title."""
    figure, found, device = depths_plot.figure_of(rows), {}, ""
    for axes in figure.axes:
        device = axes.get_ylabel().partition("\n")[2] or device
        found[device, axes.get_title()] = len(axes.lines)
    return found


def test_a_panel_for_each_device_and_batch_size():
    way = {"way": "uniform", "speedup_decode": "2.0", "possible_decode": "2.5"}
    found = panels([row(), row(**way), row(device="two", batch="32")])
    assert found == {
        # full depth, a way with a line to its possible time, and the level of full depth
        ("one", "opt, 8 rows"): 5,
        ("one", "opt, 32 rows: not measured"): 0,
        ("two", "opt, 8 rows: not measured"): 0,
        ("two", "opt, 32 rows"): 2,
    }


def test_weights_that_are_shipped_no_longer_have_panels_of_their_own():
    model, since = results_file.RENEWED
    before, after = "2026-11-29T23:59:59+00:00", f"{since}:00+00:00"
    found = panels([row(model=model, time=before), row(model=model, time=after), row(time=before)])
    assert list(found) == [
        ("one", f"{model}, earlier weights, 8 rows"),
        ("one", f"{model}, 8 rows"),
        ("one", "opt, 8 rows"),
    ]


def test_of_two_schedules_the_faster_and_of_two_measurements_the_later():
    fast = row(way="allocation", target="oracle:equal", schedule="cohort", speedup_decode="3.0")
    slow = {**fast, "schedule": "fifo", "speedup_decode": "2.0"}
    earlier = {**fast, "speedup_decode": "9.0"}
    axes = depths_plot.figure_of([row(), earlier, fast, slow]).axes[0]
    assert max(max(line.get_xdata()) for line in axes.lines if line.get_marker() == "o") == 3.0


def test_nothing_of_natural_lengths_is_refused():
    with pytest.raises(ValueError, match="none of natural lengths"):
        depths_plot.figure_of([row(lengths="forced")])
