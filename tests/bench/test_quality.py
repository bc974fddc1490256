"""Teacher-forced loss against transformers, and the quality bench on a tiny checkpoint."""

from __future__ import annotations

import csv
import json

import pytest
import torch
from typer.testing import CliRunner

from bench import quality
from dynkern.evaluation.teacher_forced import teacher_forced_losses
from dynkern.llm import LLM
from support.checkpoint import save_checkpoint
from support.opt import tiny_opt

PROMPTS = [[2, 5, 9, 4], [2, 7], [2, 11, 3]]
TARGETS = [[8, 6, 2], [9], [4, 4, 10, 12, 2]]


def _their_losses(module) -> list[float]:
    losses = []
    for prompt, target in zip(PROMPTS, TARGETS, strict=True):
        with torch.inference_mode():
            logits = module(torch.tensor([prompt + target])).logits[0, len(prompt) - 1 : -1]
        wanted = torch.tensor(target)
        losses += torch.nn.functional.cross_entropy(logits, wanted, reduction="none").tolist()
    return losses


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_losses_are_those_of_transformers(tmp_path, backend):
    module = tiny_opt(0)
    module.save_pretrained(tmp_path)
    llm = LLM(tmp_path, dtype="float32", backend=backend)
    done = []
    ours = teacher_forced_losses(
        llm, PROMPTS, TARGETS, batch_size=2, report=lambda *counts: done.append(counts)
    )
    assert sorted(ours) == pytest.approx(sorted(_their_losses(module)), abs=1e-4)
    assert done == [(2, 3), (3, 3)]


def test_targets_are_checked(tmp_path):
    tiny_opt(0).save_pretrained(tmp_path)
    llm = LLM(tmp_path)
    with pytest.raises(ValueError, match="targets: got 1 for 2 prompts"):
        teacher_forced_losses(llm, PROMPTS[:2], TARGETS[:1])
    with pytest.raises(ValueError, match="targets: got an empty one"):
        teacher_forced_losses(llm, PROMPTS[:1], [[]])


def test_the_bench_keeps_a_row_for_every_format(tmp_path):
    model = save_checkpoint(tmp_path / "model")
    data = tmp_path / "data.jsonl"
    records = [
        {"id": str(i), "instruction": "say it", "input": "a b c", "output": "a b c d e f g h i j"}
        for i in range(3)
    ]
    data.write_text("".join(json.dumps(record) + "\n" for record in records))
    arguments = [
        str(model),
        str(data),
        "--max-new-tokens",
        "4",
        "--output",
        str(tmp_path / "q.csv"),
    ]
    app = quality.typer.Typer()
    app.command()(quality.main)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code in (0, 1), result.output  # a random model may miss the gate
    rows = list(csv.DictReader((tmp_path / "q.csv").open()))
    assert [row["dtype"] for row in rows] == ["float32", "bfloat16", "int8"]
    assert all(0 < float(row["loss"]) < 20 for row in rows)
    assert float(rows[0]["loss_ratio"]) == 1.0
    assert 0.0 <= float(rows[0]["zero_fours"]) <= float(rows[0]["zero_pairs"]) <= 1.0
