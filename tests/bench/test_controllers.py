"""The bench of controllers on a tiny checkpoint: each beside rivals of as many layers."""

from __future__ import annotations

import csv

import pytest
import torch
from typer.testing import CliRunner

from bench import controllers
from dynkern.controller_file import write_controller
from dynkern.training.gates import Gates
from support.checkpoint import save_checkpoint, save_records


def test_rivals_run_as_many_layers():
    assert controllers.rivals(6.2, 12) == [
        "uniform:6", "random:6", "random-step:6", "stochastic:0.4727"
    ]  # fmt: skip
    assert controllers.rivals(12.0, 12)[-1] == "stochastic:1.0000"


def test_a_row_for_every_rival_and_fill(tmp_path):
    save_checkpoint(tmp_path / "model", num_layers=4)
    data = save_records(tmp_path / "data.jsonl", 3)
    torch.manual_seed(0)
    for kind in ("hidden", "fixed"):
        gates = Gates(kind, 4, 48).eval()
        for layer in ("1", "2"):
            torch.nn.init.normal_(gates.layers[layer][-1].weight, std=0.2)
        path = tmp_path / "sweep" / f"{kind}-1" / "controller.safetensors"
        write_controller(path, *gates.export(0.5, False, budget=3.0))
    app = controllers.typer.Typer()
    app.command()(controllers.main)
    words = [str(tmp_path / "model"), str(data), str(tmp_path / "sweep"), "--template", "plain"]
    options = "--max-new-tokens 4 --repeat 1 --batch-size 3 --kv-fill copy --kv-fill mask".split()
    places = ["--work", str(tmp_path / "work"), "--output", str(tmp_path / "c.csv")]
    result = CliRunner().invoke(app, words + options + places)
    assert result.exit_code == 0, result.output
    rows = list(csv.DictReader((tmp_path / "c.csv").open()))
    assert {(row["kv_fill"], row["input"]) for row in rows} == {
        (fill, kind) for fill in ("copy", "mask") for kind in ("hidden", "fixed")
    }
    assert len(rows) == 2 * 2 * 6
    for row in rows:
        assert float(row["rougeL_low"]) <= float(row["rougeL"]) <= float(row["rougeL_high"])
        assert float(row["seconds"]) > 0 and int(row["prompts"]) == 3
        if row["policy"] == "controller":
            assert row["budget"] == "3.0" and float(row["controller_minus_high"]) == 0.0
        if row["policy"].startswith("uniform:"):
            assert float(row["mean_layers"]) == float(row["policy"].removeprefix("uniform:"))


def test_a_place_without_controllers_is_said(tmp_path):
    with pytest.raises(ValueError, match="holds no controller.safetensors"):
        controllers.controller_files([tmp_path])
