"""Two runs of pretraining compared, on tiny bundles, and drawn."""

from __future__ import annotations

import csv
import json
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


def test_rows_of_both_runs_and_a_model_does_not_differ_from_itself(bundle, tmp_path):
    kept = tmp_path / "scores.csv"
    words = [str(bundle), "--shipped", str(bundle), "--limit", "6", "--output", str(kept)]
    result = RUNNER.invoke(APP, words)
    assert result.exit_code == 0, result.output
    with kept.open(newline="") as file:
        rows = list(csv.DictReader(file))
    cases = [(row["run"], row["layers"]) for row in rows]
    assert cases == [(r, n) for r in ("shipped", "other") for n in ("full", "3/4", "1/2", "1/4")]
    for row in rows:
        assert row["prompts"] == "6" and row["trained_on"] == "some processor"
        assert (float(row["training_seconds"]), row["training_tokens"]) == (7.5, "4096")
        ends = (row["minus_shipped"], row["minus_low"], row["minus_high"])
        assert [float(end) for end in ends] == [0.0, 0.0, 0.0]
        low, mean, high = (float(row[f"rougeL{end}"]) for end in ("_low", "", "_high"))
        assert low <= mean <= high


def test_differences_are_paired_by_task():
    hard_and_easy = [0.1 * place for place in range(10)]
    better = [value + 0.05 for value in hard_and_easy]
    shipped = {"full": (hard_and_easy, [False] * 10)}
    _, row = pretrain_scores.compare(shipped, {"full": (better, [True] * 10)})
    assert row["run"] == "other" and row["exact"] == 1.0
    for key in ("minus_shipped", "minus_low", "minus_high"):
        assert row[key] == pytest.approx(0.05)
    # tasks differ from each other by far more than the runs do
    assert row["rougeL_high"] - row["rougeL_low"] > 0.2


def test_a_bundle_that_does_not_say_how_it_was_trained_is_refused(bundle, tmp_path):
    copy = tmp_path / "silent"
    copy.mkdir()
    (copy / "scores.json").write_text(json.dumps({"training": None}))
    kept = tmp_path / "scores.csv"
    result = RUNNER.invoke(APP, [str(copy), "--shipped", str(bundle), "--output", str(kept)])
    assert result.exit_code == 2 and not kept.exists()
    assert len(result.output.strip().splitlines()) == 1 and "scores.json" in result.output


def test_both_runs_are_drawn_and_one_is_not(tmp_path):
    rows = read(pretrain_scores.RESULTS / "pretrain_scores.csv")
    pretrain_plot.draw(rows, tmp_path / "two.png")
    assert (tmp_path / "two.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ValueError, match="not of two runs"):
        pretrain_plot.draw([row for row in rows if row["run"] == "shipped"], tmp_path / "one.png")
    assert not (tmp_path / "one.png").exists()
