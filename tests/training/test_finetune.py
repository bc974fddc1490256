"""`dynkern finetune`: deterministic, resumable, the same over processes, and its file generates."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import dynkern
from dynkern.cli import main
from dynkern.training import loop
from dynkern.training.finetune import PRESETS, FinetuneConfig, run_finetune
from support.checkpoint import save_checkpoint, save_records
from support.gloo import run_in_two_processes

STEPS = {"max_steps": 6, "eval_every": 2, "batch_size": 8, "micro_batch": 4, "patience": 0}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("finetune")
    save_records(directory / "data.jsonl", 60)
    save_checkpoint(directory / "model", num_layers=4, max_position_embeddings=96)
    return directory


def _config(place: Path, output: Path, **changes) -> FinetuneConfig:
    config = FinetuneConfig(
        data=str(place / "data.jsonl"),
        output=output,
        config="4x32",
        preset="small",
        settings=STEPS,
        template="plain",
        max_length=64,
        vocab_size=300,
        layerdrop=0.2,
        seed=5,
    )
    return replace(config, **changes)


def _weights(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "model" / "model.safetensors")


def _curves(output: Path) -> list[dict[str, str]]:
    with (output / "curves.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _same(one: Path, other: Path) -> bool:
    a, b = _weights(one), _weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_killed_and_resumed_run_is_the_uninterrupted_one(place, tmp_path, monkeypatch):
    whole = run_finetune(_config(place, tmp_path / "whole"))
    step = loop._Trainer.training_step

    def killed(self, *args, **kwargs):
        if self.state.global_step == 5:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    config = _config(place, tmp_path / "stopped")
    monkeypatch.setattr(loop._Trainer, "training_step", killed)
    with pytest.raises(KeyboardInterrupt):
        run_finetune(config)
    monkeypatch.undo()
    assert not (tmp_path / "stopped" / "model").exists()
    # a checkpoint whose writing was cut short is passed over
    (tmp_path / "stopped" / "checkpoints" / "checkpoint-99").mkdir()
    with pytest.raises(ValueError, match="holds checkpoints of a run"):
        run_finetune(config)
    with pytest.raises(ValueError, match="resume: the stopped run had seed 5, got 6"):
        run_finetune(replace(config, resume=True, seed=6))
    stopped = run_finetune(replace(config, resume=True))
    assert _same(whole, stopped)
    assert _curves(whole) == _curves(stopped)
    assert len({row["loss"] for row in _curves(whole)}) > 6
    report = json.loads((stopped / "finetune.json").read_text())
    validated = [float(r["loss"]) for r in _curves(whole) if r["split"] == "validation"]
    assert report["best_validation_loss"] == min(validated) and len(validated) == 3
    # another seed is another run
    other = run_finetune(_config(place, tmp_path / "other", seed=6))
    assert not _same(whole, other)


def test_the_model_generates_and_its_skipped_layers_are_untouched(place, tmp_path):
    config = _config(
        place,
        tmp_path / "routed",
        config=None,
        model=str(place / "model"),
        route="uniform:2",
        layerdrop=0.0,
        exit_loss=0.2,
        settings={**STEPS, "gradient_checkpointing": True, "precision": "bfloat16"},
    )
    output = run_finetune(config)
    before, after = load_file(place / "model" / "model.safetensors"), _weights(output)
    for layer in range(4):
        name = f"model.decoder.layers.{layer}.fc1.weight"
        changed = not torch.equal(before[name].float(), after[name])
        assert changed == (layer in (0, 3))
    llm = dynkern.LLM(output / "model")
    (done,) = llm.generate(["Today is"], policy="uniform:2", max_new_tokens=4, batch_size=1)
    assert done.text is not None and done.layer_counts in ([3, 0, 0, 3], [0, 0, 0, 0])
    assert (output / "curves.png").stat().st_size > 1000


def test_training_lowers_the_loss_and_stops_early(place, tmp_path):
    # other answers than those trained on: the better these are learnt, the worse those become
    other = tmp_path / "other.jsonl"
    text = (place / "data.jsonl").read_text(encoding="utf-8")
    other.write_text(text.replace("is near the river", "has no music"), encoding="utf-8")
    settings = {
        "eval_every": 5,
        "batch_size": 20,
        "epochs": 40,
        "patience": 2,
        "learning_rate": 0.01,
        "schedule": "constant",
    }
    config = _config(place, tmp_path / "early", validation=str(other), layerdrop=0.0)
    output = run_finetune(replace(config, settings=settings))
    report = json.loads((output / "finetune.json").read_text())
    assert report["stopped_early"] and report["steps"] < 40 * 3
    assert report["best_step"] == report["steps"] - 2 * 5
    losses = [float(r["loss"]) for r in _curves(output) if r["split"] == "training"]
    assert losses[-1] < 0.5 * losses[0]


def test_two_processes_are_one_with_twice_the_batch(place, tmp_path):
    config = _config(place, tmp_path / "one", settings={**STEPS, "micro_batch": 8})
    one = run_finetune(config)
    other = replace(config, output=tmp_path / "two", settings={**STEPS, "micro_batch": 4})
    run_in_two_processes("dynkern.training.finetune:run_finetune", other, tmp_path)
    a, b = _weights(one), _weights(tmp_path / "two")
    # sums over 8 sequences in another order; AdamW divides by gradients, so a step of 1e-3 can
    # turn where a gradient is as small as that difference
    worst = max(float((a[name] - b[name]).abs().max()) for name in a)
    assert worst < 2e-4, worst
    for left, right in zip(_curves(one), _curves(tmp_path / "two"), strict=True):
        assert left["step"] == right["step"]
        assert float(left["loss"]) == pytest.approx(float(right["loss"]), rel=2e-5)


def test_presets_are_those_of_the_paper_and_its_authors():
    paper, authors = PRESETS["paper"], PRESETS["authors"]
    assert (paper.learning_rate, paper.batch_size, paper.epochs) == (5e-5, 64, 6)
    assert paper.patience >= 1
    assert (authors.learning_rate, authors.epochs, authors.schedule) == (2e-5, 2, "linear")


COMMAND = "finetune --data {p}/data.jsonl --template plain --output {out} --preset small"
SCRATCH = f"{COMMAND} --config 4x32 --vocab-size 300 --max-length 64"
BAD = [
    (f"{COMMAND} --preset huge --config 4x32", "preset: got 'huge'"),
    (COMMAND, "expected either a checkpoint"),
    (f"{SCRATCH} --model {{p}}/model", "expected either a checkpoint"),
    (f"{COMMAND} --config 4x33", "config: got '4x33'"),
    (f"{COMMAND} --model {{p}}/nothing/here", "does not exist"),
    (
        f"{COMMAND} --model {{p}}/model --max-length 97",
        "max_length: got 97, expected 8 to the model's 96",
    ),
    (f"{SCRATCH} --route uniform:9", "uniform budget: got 9"),
    (f"{SCRATCH} --route stochastic:0.5", "route: got 'stochastic:0.5'"),
    (f"{SCRATCH} --layerdrop 1", "layerdrop: got 1.0"),
    (f"{SCRATCH} --exit-loss 0.5 --exit-layer 3", "exit_layer: got 3, expected 0 to 2"),
    (f"{SCRATCH} --exit-loss 1.5", "exit_loss: got 1.5, expected 0 to below 1"),
    (f"{SCRATCH} --batch-size 6 --micro-batch 4", "micro_batch: got 4, expected a divisor of 6"),
    (f"{SCRATCH} --learning-rate 0", "learning_rate: got 0.0"),
    (f"{SCRATCH} --precision half", "precision: got 'half'"),
    (f"{SCRATCH} --seed -1", "seed: got -1"),
    (f"{SCRATCH} --prefill half", "prefill: got 'half'"),
    (f"{SCRATCH} --limit 3", "3 records, expected at least 4"),
    (f"{SCRATCH} --template chat", "template: got 'chat'"),
    (f"{SCRATCH} --output {{p}}/data.jsonl", "cannot be made"),
]


@pytest.mark.parametrize(("command", "text"), BAD)
def test_bad_input_is_one_line_and_exit_code_2(place, tmp_path, capsys, command, text):
    arguments = [part.format(p=place, out=tmp_path / "out") for part in command.split()]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("dynkern: ") and error.count("\n") == 1 and text in error
