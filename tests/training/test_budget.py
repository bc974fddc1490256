"""Budgets: alpha's control, the shift of gates, and whose model a controller is."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import dynkern
from dynkern.cli import main
from dynkern.controller_file import read_controller, write_controller
from dynkern.models.signature import FIELDS, VALUES, differs, signature, signature_of_state
from dynkern.policies import policy as make_policy
from dynkern.training.budget import NEAR, Multiplier, calibrate
from dynkern.training.controllers import ControllerConfig, run_controllers
from dynkern.training.gates import Gates
from support.backends import BACKENDS, MISSING
from support.checkpoint import save_checkpoint, save_records

LAYERS, WIDTH = 6, 48


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("budget")
    save_records(directory / "data.jsonl", 40)
    save_checkpoint(directory / "model", LAYERS, dropout=0.0, attention_dropout=0.0)
    save_checkpoint(directory / "other", LAYERS, seed=5)
    return directory


def test_alpha_settles_where_the_budget_is_met():
    control = Multiplier(6, 12, alpha=0.0)
    share, alphas = 0.9, []
    for _ in range(400):
        control.update(share)
        alphas.append(control.alpha)
        # a model whose layers are worth the more, the fewer run
        worth = 2.0 * (1 - share)
        share += 0.05 * max(-1.0, min(1.0, worth - control.alpha))
    assert share == pytest.approx(0.5, abs=0.01)
    assert control.alpha == pytest.approx(1.0, abs=0.05) and min(alphas) >= 0.0
    # checkpoints hold all of it
    copy = Multiplier(6, 12, alpha=7.0)
    copy.load_state_dict(control.state_dict())
    assert copy.alpha == control.alpha


def _gates(kind: str) -> Gates:
    torch.manual_seed(1)
    gates = Gates(kind, LAYERS, WIDTH).eval()
    for mlp in gates.layers.values():
        torch.nn.init.normal_(mlp[-1].weight, std=0.3)
        torch.nn.init.normal_(mlp[-1].bias)
    return gates


@pytest.mark.parametrize("budget", [2.0, 3.0, 4.4, 5.0, 6.0])
def test_gates_are_shifted_to_their_budget(budget):
    x = torch.randn(500, WIDTH)

    def layers(gates: Gates) -> float:
        with torch.no_grad():
            return 2 + sum(float(gates(int(layer), x).mean()) for layer in gates.layers)

    hidden = _gates("hidden")
    before = [mlp[-1].weight.clone() for mlp in hidden.layers.values()]
    shift = calibrate(hidden, budget, lambda: layers(hidden))
    assert abs(layers(hidden) - budget) <= NEAR
    fresh = _gates("hidden")
    for name, mlp in hidden.layers.items():
        assert torch.allclose(mlp[-1].bias, fresh.layers[name][-1].bias + torch.tensor([0, shift]))
    assert all(
        torch.equal(one, mlp[-1].weight)
        for one, mlp in zip(before, hidden.layers.values(), strict=True)
    )
    fixed = _gates("fixed")
    order = [float(fixed.logits(int(layer), x[:1])[0].diff().detach()) for layer in fixed.layers]
    calibrate(fixed, budget, lambda: pytest.fail("a fixed input needs no measuring"))
    assert layers(fixed) == round(budget)
    left = [bool(fixed(int(layer), x[:1])) for layer in fixed.layers]
    # those that would rather run are left
    closed = [d for d, runs in zip(order, left, strict=True) if not runs]
    assert all(d > max(closed, default=-99) for d, runs in zip(order, left, strict=True) if runs)


def _config(place: Path, output: Path, **changes) -> ControllerConfig:
    config = ControllerConfig(
        model=str(place / "model"),
        data=str(place / "data.jsonl"),
        output=output,
        template="plain",
        max_length=100,
        settings={"max_steps": 6, "eval_every": 6, "batch_size": 8, "gate_rate": 0.05},
    )
    return replace(config, **changes)


def test_a_sweep_lands_on_its_budgets_whatever_alpha_starts_at(place, tmp_path, capsys):
    config = _config(
        place, tmp_path, inputs=("hidden", "fixed"), alphas=(0.0, 2.0), budgets=(3.0, 4.5)
    )
    output = run_controllers(config)
    names = [f"{i}-1-alpha{a}-budget{b}" for i in config.inputs for a in "02" for b in ("3", "4.5")]
    for name in names:
        row = json.loads((output / name / "controller.json").read_text())
        assert abs(row["mean_layers"] - row["budget"]) <= 0.5, name
        assert abs(row["held_out_layers"] - row["budget"]) <= 0.75, name
        assert row["final_alpha"] >= 0.0 and row["held_out_loss"] > 0
        assert row["uncalibrated_layers"] >= 2
    said = capsys.readouterr().out
    assert "asked" in said and "(+0.00)" in said
    # arg-max gates decode as they were calibrated
    llm = dynkern.LLM(place / "model")
    spec = f"controller:{output / names[-2]}/controller.safetensors"
    (done,) = llm.generate([[2, 5, 9]], spec, max_new_tokens=5, force_length=True)
    assert done.mean_layers == 3.0
    # the same seed gives the same bits
    again = run_controllers(replace(config, output=tmp_path / "again", alphas=(2.0,)))
    one, other = (
        read_controller(folder / names[2] / "controller.safetensors") for folder in (output, again)
    )
    for mine, theirs in zip(one.weights, other.weights, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def test_a_signature_survives_dtypes_and_tells_models_apart(place):
    llms = [
        dynkern.LLM(place / "model", dtype=dtype, backend=backend)
        for dtype, backend in [
            ("float32", "reference"),
            ("float16", "reference"),
            ("bfloat16", "reference"),
            ("bfloat16", "auto"),
            *([("int8", "cpu")] if MISSING is None else []),
        ]
    ]
    state = dynkern.OPTForCausalLM.from_pretrained(place / "model").state_dict()
    spec = llms[0].spec
    own = signature_of_state(state, spec)
    assert own.shape == (LAYERS * len(FIELDS) * VALUES,) and own.dtype == torch.float32
    for llm in llms:
        assert not differs(own, signature(llm.engine.weights, LAYERS))
    other = dynkern.LLM(place / "other", backend="reference")
    assert differs(own, signature(other.engine.weights, LAYERS))
    name = "model.decoder.layers.3.fc1.bias"
    assert differs(own, signature_of_state({**state, name: state[name] * 1.02}, spec))
    assert differs(own, own[:-1])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["hidden", "fixed"])
def test_a_controller_of_another_model_is_refused(place, tmp_path, kind, backend):
    state = dynkern.OPTForCausalLM.from_pretrained(place / "model").state_dict()
    llm = dynkern.LLM(place / "model", backend=backend)
    path = tmp_path / "c.safetensors"
    exported = _gates(kind).export(0.5, False, model="its-model")
    write_controller(path, *exported, signature_of_state(state, llm.spec))
    options = {"max_new_tokens": 3, "force_length": True}
    for spec in (f"controller:{path}", f"controller:{path},sample=1"):
        assert llm.generate([[2, 5]], spec, **options)[0].token_ids
        other = dynkern.LLM(place / "other", backend=backend)
        with pytest.raises(ValueError) as raised:
            other.generate([[2, 5]], spec, **options)
        text = str(raised.value)
        assert "was trained for its-model" in text and f"not those of {place / 'other'}" in text
        assert "\n" not in text


def test_the_drop_in_refuses_it_too(place, tmp_path):
    model = dynkern.OPTForCausalLM.from_pretrained(place / "model")
    path = tmp_path / "c.safetensors"
    exported = _gates("hidden").export(0.5, False, model="its-model")
    spec = dynkern.LLM(place / "model").spec
    write_controller(path, *exported, signature_of_state(model.state_dict(), spec))
    ids = torch.tensor([[2, 5, 9]])
    assert model.generate(ids, policy=f"controller:{path}", max_new_tokens=2).shape[1] >= 4
    other = dynkern.OPTForCausalLM.from_pretrained(place / "other")
    with pytest.raises(ValueError, match="trained for its-model"):
        other.generate(ids, policy=f"controller:{path}", max_new_tokens=2)


def test_a_file_that_names_no_model_is_taken_with_a_warning(place, tmp_path, caplog):
    path = tmp_path / "c.safetensors"
    write_controller(path, *_gates("hidden").export(0.5, False))
    with caplog.at_level(logging.WARNING, "dynkern"):
        make_policy(f"controller:{path}")
    assert "does not say what model it was trained for" in caplog.text


COMMAND = "train-controller --model {p}/model --data {p}/data.jsonl --template plain --output {out}"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ("--budget 1.5", "budget: got 1.5, expected 2 to the model's 6 layers"),
        ("--budget 7", "budget: got 7"),
        ("--budget nan", "budget: got nan"),
        ("--budget 3 --patience 2", "patience: got 2, expected 0 with a budget"),
        ("--data {p}/blank.jsonl", "record 'b2' has a blank output, expected a response"),
        ("--data {p}/none.jsonl", "no output"),
        ("--max-length 161", "max_length: got 161, expected 8 to the model's 160"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(place, tmp_path, capsys, options, text):
    record = {"instruction": "say it", "input": "", "output": "it"}
    rows = [{**record, "id": f"b{i}", "output": "" if i == 2 else "it"} for i in range(5)]
    (place / "blank.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [{"id": f"n{i}", "instruction": "say it", "input": ""} for i in range(5)]
    (place / "none.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = f"{COMMAND} {options}".split()
    assert main([word.format(p=place, out=tmp_path / "out") for word in words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("dynkern: ") and error.count("\n") == 1 and text in error, error
