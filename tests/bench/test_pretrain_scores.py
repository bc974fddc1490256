"""Two runs of pretraining compared, on tiny bundles, and drawn."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench import pretrain_plot, pretrain_scores
from bench.results_file import read
from dynkern.cli import main
from support.bundle import save_task_checkpoint

RUNNER = CliRunner()
APP = pretrain_scores.typer.Typer()
APP.command()(pretrain_scores.main)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("again")
    save_task_checkpoint(folder / "MODEL")
    facts = {"tokens": 4096, "seconds": 7.5, "device": "some processor", "steps": 2}
    (folder / "pretrain.json").write_text(json.dumps(facts))
    words = f"bundle --model {folder}/MODEL --output {folder}/BUNDLE --work {folder}/WORK"
    more = ["--training", f"{folder}/pretrain.json", "--limit", "0", "--predictor-prompts", "0"]
    assert main([*words.split(), *more]) == 0
    return folder / "BUNDLE"


def test_rows_of_every_run_and_a_model_does_not_differ_from_itself(bundle, tmp_path):
    kept = tmp_path / "scores.csv"
    words = [*2 * [str(bundle)], "--shipped", str(bundle), "--limit", "6", "--output", str(kept)]
    result = RUNNER.invoke(APP, words)
    assert result.exit_code == 0, result.output
    with kept.open(newline="") as file:
        rows = list(csv.DictReader(file))
    cases = [(row["run"], row["layers"]) for row in rows]
    runs = ("shipped", "other", "other 2")
    assert cases == [(r, n) for r in runs for n in ("full", "3/4", "1/2", "1/4")]
    for row in rows:
        assert row["prompts"] == "6" and row["trained_on"] == "some processor"
        assert (float(row["training_seconds"]), row["training_tokens"]) == (7.5, "4096")
        ends = (row["minus_shipped"], row["minus_low"], row["minus_high"])
        assert [float(end) for end in ends] == [0.0, 0.0, 0.0]
        low, mean, high = (float(row[f"rougeL{end}"]) for end in ("_low", "", "_high"))
        assert low <= mean <= high
    for label in ("full", "3/4", "1/2", "1/4"):
        assert re.search(
            rf"^{label} of the layers: 3 runs .* deviation 0\.000$", result.output, re.M
        )


def test_differences_are_paired_by_task():
    hard_and_easy = [0.1 * place for place in range(10)]
    better = [value + 0.05 for value in hard_and_easy]
    shipped = {"full": (hard_and_easy, [False] * 10)}
    other = {"full": (better, [True] * 10)}
    rows = pretrain_scores.compare({"shipped": shipped, "other": other})
    row = rows[1]
    assert row["run"] == "other" and row["exact"] == 1.0
    for key in ("minus_shipped", "minus_low", "minus_high"):
        assert row[key] == pytest.approx(0.05)
    # tasks differ from each other by far more than the runs do
    assert row["rougeL_high"] - row["rougeL_low"] > 0.2
    # of two runs 0.05 apart
    mean, spread, low, high = pretrain_scores.spreads(rows)["full"]
    assert (mean, low, high) == pytest.approx((0.475, 0.45, 0.5))
    assert spread == pytest.approx(0.05 / 2**0.5)


def test_a_bundle_that_does_not_say_how_it_was_trained_is_refused(bundle, tmp_path):
    copy = tmp_path / "silent"
    copy.mkdir()
    (copy / "scores.json").write_text(json.dumps({"training": None}))
    kept = tmp_path / "scores.csv"
    result = RUNNER.invoke(APP, [str(copy), "--shipped", str(bundle), "--output", str(kept)])
    assert result.exit_code == 2 and not kept.exists()
    assert len(result.output.strip().splitlines()) == 1 and "scores.json" in result.output


@pytest.mark.parametrize("others", [1, 2])
def test_two_runs_and_more_are_drawn_and_one_is_not(others, tmp_path):
    runs = pretrain_scores.names(others)
    score = {"full": ([0.8, 0.9], [True, True]), "1/2": ([0.4, 0.6], [False, True])}
    rows = pretrain_scores.compare(dict.fromkeys(runs, score))
    written = [{"time": "now", **{k: str(v) for k, v in row.items()}} for row in rows]
    earlier = [{**row, "time": "before", "run": "other 9"} for row in written]
    pretrain_plot.draw(earlier + written, tmp_path / "runs.png")
    assert (tmp_path / "runs.png").read_bytes()[:4] == b"\x89PNG"
    for few in ([row for row in written if row["run"] == "shipped"], earlier):
        with pytest.raises(ValueError, match="not of two or three runs"):
            pretrain_plot.draw(few, tmp_path / "few.png")
    assert not (tmp_path / "few.png").exists()


def test_two_processors_that_round_alike_gave_the_same_rows():
    """What README says of committed curves: equal up to where the recipes differ."""
    again, before = (
        read(pretrain_scores.RESULTS / f"pretrain_{run}.csv") for run in ("other", "before")
    )
    equal = [row == earlier for row, earlier in zip(again, before, strict=True)]
    assert equal.index(False) == 105 and again[104]["step"] == "9100"
