"""A whole run of pretraining, tiny: phases, growth, evaluations, curves; kills and Ctrl-C."""

from __future__ import annotations

import csv
import json
import os
import signal
from pathlib import Path

import pytest
import torch
from rich.console import Console

from dynkern.cli import main
from dynkern.llm import LLM
from dynkern.training.pretraining.run import PretrainConfig, run_pretrain
from support.errors import one_line_error
from support.gloo import run_in_two_processes
from support.tolerances import TWO_PROCESSES

RECIPE = {
    "phases": [
        {"until_tokens": 2500, "layers": 2, "families": ["copy", "slip"], "difficulties": [1]},
        {"until_tokens": 5000, "layers": 4, "layerdrop": 0.3},
        {"until_tokens": 7000, "layers": 4, "layerdrop": 0.3},
    ],
    "hidden_size": 32,
    "vocab_size": 400,
    "max_positions": 160,
    "batch_tokens": 500,
    "warmup_steps": 3,
    "decay_tokens": 2000,
    "eval_tokens": 3000,
    "eval_records": 8,
    "tokenizer_records": 100,
    "seed": 5,
}
QUIET = Console(quiet=True)


class Killed(RuntimeError):
    pass


def save_recipe(folder: Path, **changes) -> Path:
    path = folder / "recipe.json"
    path.write_text(json.dumps({**RECIPE, **changes}))
    return path


def judged(folder: Path) -> dict:
    """A judge that looks at nothing but what it is given."""
    return {"rougeL": {"full": (folder / "model.safetensors").stat().st_size % 97 / 97}}


def run(folder: Path, output: str = "out", after=lambda step: None, **options) -> Path:
    """A run whose every step calls `after` with how many came before it in this process."""
    steps = 0

    def report(done: int, total: int, label: str) -> None:
        nonlocal steps
        assert 0 < done and total == 7000
        steps += 1
        after(steps)

    config = PretrainConfig(folder / output, folder / "recipe.json", precision="float32", **options)
    return run_pretrain(config, judged, QUIET, report)


def leavings(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Weights, and the files that must not depend on interruptions."""
    model = torch.load(folder / "state.pt", weights_only=True)["model"]
    names = ("curves.csv", "evaluations.jsonl", "arguments.json", "model/config.json")
    return model, {name: (folder / name).read_text() for name in names}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pretrain")
    save_recipe(folder)
    return run(folder)


def test_a_run_leaves_a_model_its_scores_and_its_curves(whole):
    facts = json.loads((whole / "pretrain.json").read_text())
    assert 7000 <= facts["tokens"] < 7500 and facts["steps"] >= 14
    assert facts["recipe"]["seed"] == 5 and facts["seconds"] > 0
    evaluations = [json.loads(line) for line in (whole / "evaluations.jsonl").open()]
    # by token count, and at the end
    assert [e["layers"] for e in evaluations] == [4, 4, 4]
    assert evaluations[-1]["tokens"] == facts["tokens"]
    assert facts["validation"]["eval_loss"] == evaluations[-1]["eval_loss"]
    with (whole / "curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["split"] for row in rows} == {"training", "validation"}
    assert all(row["rougeL_full"] for row in rows if row["split"] == "validation")
    assert (whole / "curves.png").stat().st_size > 5000
    llm = LLM(whole / "model")
    assert llm.spec.num_layers == 4 and llm.tokenizer.eos_token_id == 2
    assert llm.generate(["### Instruction:\nCopy"], max_new_tokens=4)[0].token_ids


def test_the_same_recipe_gives_the_same_bits(whole):
    again = run(whole.parent, "again")
    weights, files = leavings(whole)
    same, same_files = leavings(again)
    assert all(torch.equal(weights[name], same[name]) for name in weights)
    assert files == same_files


@pytest.mark.parametrize(
    ("kills", "save_seconds"),
    # every step is kept; or the kill finds only what growth and evaluations kept
    [((2, 4, 7), 0.0), ((9,), 1e9)],
)
def test_killed_and_resumed_equals_uninterrupted(whole, tmp_path, kills, save_seconds):
    save_recipe(tmp_path)

    def kill_at(step):
        def after(steps):
            if steps == step:
                raise Killed

        return after

    for at in kills:
        with pytest.raises(Killed):
            run(tmp_path, after=kill_at(at), save_seconds=save_seconds, resume=True)
    done = run(tmp_path, save_seconds=save_seconds, resume=True)
    weights, files = leavings(whole)
    resumed, resumed_files = leavings(done)
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)
    assert files == resumed_files


def test_ctrl_c_keeps_the_last_step(whole, tmp_path):
    save_recipe(tmp_path)

    def press(steps):
        if steps == 3:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, after=press)
    assert signal.getsignal(signal.SIGINT) is before
    kept = torch.load(tmp_path / "out" / "state.pt", weights_only=True)["progress"]
    # pressed behind step 3, it was let finish step 4
    assert kept["step"] == 4
    done = run(tmp_path, resume=True)
    weights, files = leavings(whole)
    resumed, resumed_files = leavings(done)
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)
    assert files == resumed_files


def test_what_does_not_fit_the_stopped_run_is_one_line(whole, tmp_path):
    with one_line_error(ValueError, "output: .*state.pt is left of a run; --resume"):
        run(whole.parent)
    save_recipe(tmp_path)
    (tmp_path / "out").mkdir()
    for name in ("state.pt", "arguments.json"):
        (tmp_path / "out" / name).write_bytes((whole / name).read_bytes())
    save_recipe(tmp_path, learning_rate=0.5)
    with one_line_error(ValueError, r"resume: .*recipe.learning_rate \(0.001 then, 0.5 now\)"):
        run(tmp_path, resume=True)
    (tmp_path / "out" / "state.pt").write_bytes((whole / "state.pt").read_bytes()[:2000])
    with one_line_error(ValueError, "output: .*state.pt is damaged"):
        run(tmp_path, resume=True)


def test_two_processes_share_out_what_one_does(tmp_path):
    first, *others = RECIPE["phases"]
    phases = [{**first, "accumulation": 4}, *others]
    save_recipe(tmp_path, phases=phases, accumulation=2, batch_tokens=250)
    alone = run(tmp_path, "alone")
    config = PretrainConfig(tmp_path / "two", tmp_path / "recipe.json", precision="float32")
    # without a judge, which only adds scores to what is kept
    run_in_two_processes("dynkern.training.pretraining.run:run_pretrain", config, tmp_path)
    facts = [json.loads((f / "pretrain.json").read_text()) for f in (alone, tmp_path / "two")]
    assert [part["processes"] for part in facts] == [1, 2]
    assert facts[0]["tokens"] == facts[1]["tokens"] and facts[0]["steps"] == facts[1]["steps"]
    # of 1000 tokens each up to 2500, then of 500
    assert facts[0]["steps"] == pytest.approx(3 + 9, abs=2)
    losses = []
    for folder in (alone, tmp_path / "two"):
        log = torch.load(folder / "state.pt", weights_only=True)["progress"]["log"]
        losses.append([entry[k] for entry in log for k in ("loss", "eval_loss") if k in entry])
    assert len(losses[0]) > 4 and losses[0] == pytest.approx(losses[1], abs=TWO_PROCESSES), losses


def test_processes_that_cannot_share_are_one_line(tmp_path, monkeypatch):
    phases = [
        {**RECIPE["phases"][0], "accumulation": 2},
        {**RECIPE["phases"][1], "accumulation": 3},
    ]
    save_recipe(tmp_path, phases=phases)
    for size, rank, message in (
        ("2", "0", "accumulation: got 3, expected a multiple of 2 processes"),
        ("2", "2", "RANK: got 2, expected 0 to 1"),
        ("many", "0", "WORLD_SIZE: got .many. in the environment, expected a number"),
    ):
        monkeypatch.setenv("WORLD_SIZE", size)
        monkeypatch.setenv("RANK", rank)
        with one_line_error(ValueError, message):
            run(tmp_path)


def test_a_loss_that_is_not_finite_is_one_line(tmp_path):
    save_recipe(tmp_path, learning_rate=1e30, muon_rate=1e30, warmup_steps=0)
    with one_line_error(ValueError, "learning_rate: the loss became"):
        run(tmp_path)


def test_the_command_trains_and_scores(tmp_path, capsys):
    phases = [{"until_tokens": 600, "layers": 2, "families": ["copy"]}]
    recipe = save_recipe(tmp_path, phases=phases, decay_tokens=0)
    words = f"pretrain --recipe {recipe} --output {tmp_path / 'out'}".split()
    assert main(words) == 0
    (line,) = (tmp_path / "out" / "evaluations.jsonl").open()
    scores = json.loads(line)
    assert set(scores["rougeL"]) == {"full", "1/2"}
    assert set(scores["difficulty"]["full"]) <= {"1", "2", "3", "4"}
    assert "validation loss" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("--recipe {p}/absent.json", "recipe: no file"),
        ("--precision half", "precision: got 'half'"),
        ("--save-minutes -1", "save_minutes: got -1"),
        ("--output {p}/recipe.json", "output: {p}/recipe.json cannot be made"),
    ],
)
def test_bad_words_are_one_line(tmp_path, capsys, words, named):
    recipe = save_recipe(tmp_path)
    line = words if "--recipe" in words else f"--recipe {recipe} {words}"
    assert main(["pretrain", *line.format(p=tmp_path).split()]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and named.format(p=tmp_path) in error
