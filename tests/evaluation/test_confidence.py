"""The threshold that keeps a share of quality is the lowest from which on all do."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from dynkern.cli import main
from dynkern.evaluation.confidence import choose_interval, choose_place, load_part
from support.checkpoint import save_checkpoint, save_records


def test_the_lowest_threshold_from_which_all_keep_the_target():
    full = np.array([0.5, 0.7])
    means = [0.2, 0.595, 0.4, 0.59, 0.6]
    scores = np.array([[m - 0.1, m + 0.1] for m in means])
    assert choose_place(scores, full, 0.98) == 3
    assert choose_place(scores, full, 0.999) == 4
    assert choose_place(scores, full, 0.3) == 0
    assert choose_place(scores[:3], full, 0.98) == 3  # none of the three: only full depth


def test_the_interval_holds_the_choice_and_narrows_with_sequences():
    generator = np.random.default_rng(0)
    widths = []
    for count in (20, 2000):
        full = generator.uniform(0.3, 0.9, count)
        shares = np.linspace(0.9, 1.02, 25)[:, None]
        scores = full * shares + generator.normal(0, 0.1, (25, count))
        place = choose_place(scores, full, 0.98)
        low, high = choose_interval(scores, full, 0.98)
        assert low <= place <= high
        widths.append(high - low)
    assert widths[1] < widths[0]
    assert choose_interval(scores, full, 0.98) == (low, high)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    directory = tmp_path_factory.mktemp("calibrate")
    save_checkpoint(directory / "model", num_layers=4)
    save_records(directory / "data.jsonl", 20)
    return directory


COMMAND = "calibrate --model {p}/model --data {p}/data.jsonl --template plain --output {out}"


def _run(place, out, options: str) -> int:
    return main([w.format(p=place, out=out) for w in f"{COMMAND} {options}".split()])


def test_calibrate_writes_what_it_found(place, tmp_path):
    assert _run(place, tmp_path, "--grid 3 --max-new-tokens 6 --split all --limit 6") == 0
    found = json.loads((tmp_path / "calibration.json").read_text())
    with (tmp_path / "thresholds.csv").open() as file:
        rows = {row["policy"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["full", *(f"confidence:top_prob={t}" for t in ("0", "0.5", "1"))]
    # at threshold 0 every row leaves at the first exit, the end of the first quarter
    assert float(rows["confidence:top_prob=0"]["mean_layers"]) == 1.0
    assert float(rows["full"]["mean_layers"]) == 4.0
    chosen = rows[found["policy"]]
    assert found["mean_layers"] == float(chosen["mean_layers"])
    assert found["rougeL"] == pytest.approx(float(chosen["rougeL"]))
    assert found["rougeL"] >= 0.98 * found["full_rougeL"] and found["prompts"] == 6


def test_parts_are_those_of_training(place):
    data = str(place / "data.jsonl")
    parts = [load_part(data, name, None) for name in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [14, 3, 3]
    assert len({record.id for part in parts for record in part}) == 20
    assert load_part(data, "train", 2) == parts[0][:2]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ("--target 0", "target: got 0.0"),
        ("--target 1.2", "target: got 1.2"),
        ("--policy uniform", "policy: got 'uniform'"),
        ("--measure entropy", "measure: got 'entropy'"),
        ("--grid 1", "grid: got 1"),
        ("--split dev", "split: got 'dev'"),
        ("--exit-layer 3", "exit_layer: got 3, expected 0 to 2"),
        ("--limit 0", "limit: got 0"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(place, tmp_path, capsys, options, text):
    assert _run(place, tmp_path / "out", options) == 2
    error = capsys.readouterr().err
    assert error.startswith("dynkern: ") and error.count("\n") == 1 and text in error
