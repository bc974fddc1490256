"""Controllers: trained, written, read, and decoded under as they were trained."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import dynkern
from dynkern.cli import main
from dynkern.controller_file import read_controller, write_controller
from dynkern.policies import check_policy, is_planned
from dynkern.policies import policy as make_policy
from dynkern.routes import KV_FILLS
from dynkern.training.controllers import ControllerConfig, run_controllers
from dynkern.training.data import Collator, Example
from dynkern.training.gates import Gates
from dynkern.training.model import OPTForCausalLM, Visit
from support.backends import BACKENDS, needs_engine
from support.checkpoint import save_checkpoint, save_records
from support.gloo import run_in_two_processes
from support.opt import random_prompts

LAYERS, WIDTH = 6, 48


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("controllers")
    save_records(directory / "data.jsonl", 40)
    save_checkpoint(directory / "model", LAYERS, dropout=0.0, attention_dropout=0.0)
    save_checkpoint(directory / "wide", LAYERS, hidden_size=96, word_embed_proj_dim=96)
    return directory


def _gates(kind: str, depth: int = 2, seed: int = 0, size: int = WIDTH) -> Gates:
    torch.manual_seed(seed)
    gates = Gates(kind, LAYERS, size, depth, width=8)
    for mlp in gates.layers.values():
        torch.nn.init.normal_(mlp[-1].weight)
        torch.nn.init.normal_(mlp[-1].bias)
    return gates.eval()


def _saved(path: Path, gates: Gates) -> str:
    write_controller(path, *gates.export(0.5, False))
    return str(path)


@pytest.mark.parametrize("kind", ["hidden", "position", "token", "fixed"])
@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("backend", BACKENDS)
def test_decoding_runs_the_layers_that_training_would(place, tmp_path, kind, depth, backend):
    gates = _gates(kind, depth)
    path = _saved(tmp_path / "c.safetensors", gates)
    llm = dynkern.LLM(place / "model", dtype="float32", backend=backend)
    prompts = random_prompts(5, longest=12)
    result = llm.run(
        prompts, f"controller:{path}", max_new_tokens=9, force_length=True, batch_size=3
    )
    model = OPTForCausalLM.from_pretrained(place / "model", dtype=torch.float32).eval()
    model.add_gates(gates, 0.5)
    rows = [
        Example([*prompt, *done.token_ids], len(prompt))
        for prompt, done in zip(prompts, result.completions, strict=True)
    ]
    batch = Collator(1)(rows)
    with torch.no_grad():
        model(**batch)
        ran = model.last["ran"].T.int().tolist()
        hidden = model.hidden_states(batch["input_ids"], model._plan(*batch.values()))
        best = model.lm_head(hidden).argmax(dim=-1)
    assert [done.layer_counts for done in result.completions] == ran
    counts = torch.tensor(ran)
    assert (counts[:, [0, -1]] == 8).all()
    assert 0 < counts[:, 1:-1].sum() < counts[:, 1:-1].numel() * 8
    for row, (prompt, done) in enumerate(zip(prompts, result.completions, strict=True)):
        span = slice(len(prompt) - 1, len(prompt) + 8)
        assert best[row, span].tolist() == done.token_ids


def test_a_fixed_input_is_compiled_away(place, tmp_path):
    gates = _gates("fixed")
    path = _saved(tmp_path / "c,d.safetensors", gates)
    planned = make_policy(f"controller:{path}")
    assert is_planned(planned) and planned.spec == f"controller:{path}"
    with torch.no_grad():
        logits = [gates.logits(layer, torch.zeros(WIDTH)) for layer in range(1, LAYERS - 1)]
    chances = [1.0, *[float(x.softmax(0)[1]) for x in logits], 1.0]
    assert planned.route(LAYERS).tolist() == [chance > 0.5 for chance in chances]
    sampled = make_policy(f"controller:{path},sample=1")
    program = sampled.lower(LAYERS)
    assert program.kind == "bernoulli"
    assert program.probability == pytest.approx(chances)
    # both run where whole passes do
    llm = dynkern.LLM(place / "model")
    for policy in (planned, sampled):
        (done,) = llm.generate([[2, 5, 9]], policy, max_new_tokens=5, force_length=True)
        assert done.layer_counts[0] == done.layer_counts[-1] == 4
    assert done.text is not None


@pytest.mark.parametrize("backend", BACKENDS)
def test_sampled_gates_follow_their_probabilities(place, tmp_path, backend):
    gates = _gates("token", depth=1)
    path = _saved(tmp_path / "c.safetensors", gates)
    llm = dynkern.LLM(place / "model", dtype="float32", backend=backend)
    options = {"max_new_tokens": 25, "force_length": True, "batch_size": 16}
    done = llm.generate([[2, 7 + i] for i in range(16)], f"controller:{path},sample=1", **options)
    again = llm.generate([[2, 7 + i] for i in range(16)], f"controller:{path},sample=1", **options)
    assert [d.layer_counts for d in done] == [d.layer_counts for d in again]
    model = OPTForCausalLM.from_pretrained(place / "model")
    embedded = model.model.decoder.embed_tokens.weight
    for layer in range(1, LAYERS - 1):
        fed = torch.tensor([token for d in done for token in d.token_ids[:-1]])
        with torch.no_grad():
            chance = gates.logits(layer, embedded[fed]).softmax(-1)[:, 1]
        spread = float((chance * (1 - chance)).sum().sqrt())
        ran = sum(d.layer_counts[layer] for d in done)
        assert abs(ran - float(chance.sum())) < 4.5 * spread + 1


@needs_engine
@pytest.mark.parametrize("kind", ["hidden", "position", "token"])
@pytest.mark.parametrize("sampled", [False, True])
def test_the_cpu_engine_decides_as_the_reference_does(place, tmp_path, kind, sampled):
    path = _saved(tmp_path / "c.safetensors", _gates(kind, depth=2, seed=3))
    spec = f"controller:{path}" + (",sample=1" if sampled else "")
    prompts = random_prompts(9, seed=4, longest=12)
    for kv_fill in KV_FILLS:
        options = {"max_new_tokens": 9, "batch_size": 4, "seed": 7, "kv_fill": kv_fill}
        engine, reference = (
            dynkern.LLM(place / "model", dtype="float32", backend=backend).run(
                prompts, spec, force_length=True, **options
            )
            for backend in ("cpu", "reference")
        )
        assert engine.completions == reference.completions
        counts = {tuple(done.layers_run) for done in engine.completions}
        assert len(counts) > 1
        filled = [sum(c.fill_rows) for c in engine.stats.passes]
        assert any(filled) == (kv_fill in ("project", "deferred"))
        alone = dynkern.LLM(place / "model", dtype="float32", backend="cpu")
        for i in (0, 5):
            (row,) = alone.generate(
                [prompts[i]],
                spec,
                force_length=True,
                request_ids=[i],
                **options | {"batch_size": 1},
            )
            assert row.token_ids == engine.completions[i].token_ids


def test_files_that_do_not_fit_are_said_in_one_line(place, tmp_path):
    path = _saved(tmp_path / "c.safetensors", _gates("hidden"))
    with pytest.raises(FileNotFoundError, match="controller: no file"):
        make_policy(f"controller:{tmp_path}/none")
    with pytest.raises(ValueError, match="malformed"):
        make_policy("controller:")
    with pytest.raises(ValueError, match="trained for a model of 6 layers, expected 12"):
        check_policy(make_policy(f"controller:{path}"), 12)
    for backend in ("reference", "auto"):
        wide = dynkern.LLM(place / "wide", backend=backend)
        with pytest.raises(ValueError, match="its gates read 48 numbers, expected 96"):
            wide.generate([[2, 5]], f"controller:{path}", max_new_tokens=3, force_length=True)
    (tmp_path / "junk").write_bytes(b"junk")
    with pytest.raises(ValueError, match="cannot be read"):
        make_policy(f"controller:{tmp_path}/junk")
    save_file({"a": torch.zeros(1)}, tmp_path / "plain")
    with pytest.raises(ValueError, match="is no controller"):
        make_policy(f"controller:{tmp_path}/plain")
    info, tensors = _gates("hidden").export(0.5, False)
    tensors.pop("layers.3.1.bias")
    write_controller(tmp_path / "less", info, tensors)
    with pytest.raises(ValueError, match="is damaged .*layers.3.1.bias"):
        make_policy(f"controller:{tmp_path}/less")
    write_controller(
        tmp_path / "more", replace(info, depth=3), _gates("hidden").export(0, False)[1]
    )
    with pytest.raises(ValueError, match="is damaged"):
        make_policy(f"controller:{tmp_path}/more")
    content = bytearray(Path(path).read_bytes())
    content[-3] ^= 1
    (tmp_path / "bit").write_bytes(content)
    with pytest.raises(ValueError, match="is damaged .*differs from its sum"):
        make_policy(f"controller:{tmp_path}/bit")


def _config(place: Path, output: Path, **changes) -> ControllerConfig:
    config = ControllerConfig(
        model=str(place / "model"),
        data=str(place / "data.jsonl"),
        output=output,
        template="plain",
        max_length=100,
        settings={"max_steps": 8, "eval_every": 4, "batch_size": 8, "gate_rate": 0.02},
    )
    return replace(config, **changes)


def test_a_sweep_trains_gates_that_cost_less_as_alpha_grows(place, tmp_path):
    config = _config(
        place, tmp_path / "sweep", inputs=("hidden", "fixed"), alphas=(0.0, 500.0), depths=(1,)
    )
    config = replace(config, settings={**config.settings, "gate_rate": 0.1})
    output = run_controllers(config)
    with (output / "sweep.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(r["input"], float(r["alpha"])) for r in rows] == [
        ("hidden", 0.0), ("hidden", 500.0), ("fixed", 0.0), ("fixed", 500.0)
    ]  # fmt: skip
    layers = [float(row["mean_layers"]) for row in rows]
    assert layers[1] < layers[0] - 0.5 and layers[3] < layers[2] - 0.5
    assert (output / "sweep.png").stat().st_size > 1000
    for row in rows:
        rates = [float(row[f"rate_{layer}"]) for layer in range(LAYERS)]
        assert rates[0] == rates[-1] == 1.0
        assert sum(rates) == pytest.approx(float(row["mean_layers"]))
        fraction = float(row["mean_layers"]) / LAYERS
        objective = float(row["validation_loss"]) + float(row["alpha"]) * fraction
        assert float(row["validation_objective"]) == pytest.approx(objective)
    with (output / "hidden-1-alpha500" / "curves.csv").open(encoding="utf-8") as file:
        curve = list(csv.DictReader(file))
    assert all(row["rate_2"] and row["mean_layers"] for row in curve)
    path = output / "fixed-1-alpha500" / "controller.safetensors"
    assert read_controller(path).info.alpha == 500.0
    route = make_policy(f"controller:{path}").route(LAYERS)
    assert int(route.sum()) == pytest.approx(layers[3])
    # nothing is trained again
    before = path.stat().st_mtime_ns
    run_controllers(replace(config, resume=True))
    assert path.stat().st_mtime_ns == before


def test_joint_training_moves_the_backbone_and_freezing_does_not(place, tmp_path):
    outputs = {}
    for joint in (False, True):
        outputs[joint] = run_controllers(_config(place, tmp_path / str(joint), joint=joint))
    assert not (outputs[False] / "model").exists()
    before = load_file(place / "model" / "model.safetensors")
    after = load_file(outputs[True] / "model" / "model.safetensors")
    assert before.keys() == after.keys()
    name = "model.decoder.layers.2.fc1.weight"
    assert not torch.equal(before[name], after[name])
    report = json.loads((outputs[False] / "controller.json").read_text())
    assert report["trained_parameters"] == report["controller_parameters"] == 4 * (48 * 2 + 2)


def _log(folder: Path) -> list[dict[str, float]]:
    # Trainer counts epochs otherwise where it accumulates
    skipped = ("split", "epoch")
    with (folder / "curves.csv").open(encoding="utf-8") as file:
        return [
            {name: float(cell) for name, cell in row.items() if cell and name not in skipped}
            for row in csv.DictReader(file)
        ]


def _assert_one_training(one: Path, other: Path) -> None:
    """Equal but for the order of sums. AdamW divides by gradients: where one is as small as what
    that makes, a weight may go the other way for a step of 0.02.
    """
    a, b = (load_file(folder / "controller.safetensors") for folder in (one, other))
    assert a.keys() == b.keys()
    worst = max(float((a[name] - b[name]).abs().max()) for name in a)
    assert worst < 4e-3, worst
    logs = _log(one), _log(other)
    # another draw of a gate would show: a layer more or less of a token is 0.02 of a mean
    for left, right in zip(*logs, strict=True):
        assert left == pytest.approx(right, rel=1e-4)
    assert len({row["mean_layers"] for row in logs[0]}) > 2


@pytest.mark.parametrize("budgets", [(), (4.0,)])
def test_two_processes_and_micro_batches_are_one_with_twice_the_batch(place, tmp_path, budgets):
    config = _config(place, tmp_path / "one", budgets=budgets, joint=not budgets)
    settings = {**config.settings, "max_steps": 3, "eval_every": 3}
    one = run_controllers(replace(config, settings={**settings, "micro_batch": 8}))
    settings["micro_batch"] = 4
    config = replace(config, settings=settings)
    _assert_one_training(one, run_controllers(replace(config, output=tmp_path / "micro")))
    run = "dynkern.training.controllers:run_controllers"
    run_in_two_processes(run, replace(config, output=tmp_path / "two"), tmp_path)
    _assert_one_training(one, tmp_path / "two")


def test_a_visit_without_gates_runs_everything(place):
    model = OPTForCausalLM.from_pretrained(place / "model").eval()
    ids = torch.tensor([[2, 5, 9, 11]])
    with torch.no_grad():
        plain = model.model(input_ids=ids).last_hidden_state
        assert torch.equal(model.hidden_states(ids, Visit()), plain)


COMMAND = "train-controller --model {p}/model --data {p}/data.jsonl --template plain --output {out}"
BAD = [
    ("--alpha -1", "alpha: got -1.0"),
    ("--alpha nan", "alpha: got nan"),
    ("--tau 0", "tau: got 0.0"),
    ("--tau -2", "tau: got -2.0"),
    ("--depth 4", "depth: got 4"),
    ("--width 0", "width: got 0"),
    ("--input entropy", "input: got 'entropy'"),
    ("--gate-rate 0", "gate_rate: got 0.0"),
    ("--max-length 4000", "max_length: got 4000, expected 8 to the model's 160"),
]


@pytest.mark.parametrize(("options", "text"), BAD)
def test_bad_input_is_one_line_and_exit_code_2(place, tmp_path, capsys, options, text):
    command = f"{COMMAND} {options}"
    arguments = [part.format(p=place, out=tmp_path / "out") for part in command.split()]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("dynkern: ") and error.count("\n") == 1 and text in error
