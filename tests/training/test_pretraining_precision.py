"""In which dtype pretraining multiplies."""

from __future__ import annotations

import json

import pytest
import torch
from rich.console import Console

from dynkern.training.pretraining import precision, run
from dynkern.training.pretraining.precision import in_bfloat16
from dynkern.training.pretraining.recipe import Phase, Recipe

RECIPE = Recipe((Phase(400, 1),), hidden_size=32, vocab_size=400, batch_tokens=200)
CPU = torch.device("cpu")


def untried(*arguments):
    raise AssertionError(f"tried with {arguments}")


def processor(monkeypatch, supported: bool) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: supported, raising=False)


def test_what_is_named_is_taken_untried(monkeypatch):
    monkeypatch.setattr(precision, "_faster_in_bfloat16", untried)
    for supported in (True, False):
        processor(monkeypatch, supported)
        assert in_bfloat16("bfloat16", RECIPE, CPU) and not in_bfloat16("float32", RECIPE, CPU)


def test_emulated_products_are_not_tried(monkeypatch):
    processor(monkeypatch, False)
    monkeypatch.setattr(precision, "_faster_in_bfloat16", untried)
    assert not in_bfloat16("auto", RECIPE, CPU)


@pytest.mark.parametrize("quick", [torch.float32, torch.bfloat16])
def test_the_faster_of_both_is_taken(monkeypatch, quick):
    processor(monkeypatch, True)
    now, shapes = [0.0], set()

    def linear(x, weight):
        shapes.add((*x.shape, *weight.shape))
        now[0] += 1.0 if x.dtype == quick else 2.0

    monkeypatch.setattr(torch.nn.functional, "linear", linear)
    monkeypatch.setattr(precision.time, "perf_counter", lambda: now[0])
    assert in_bfloat16("auto", RECIPE, CPU) is (quick == torch.bfloat16)
    assert shapes == {(200, 32, 128, 32)}


def test_a_run_that_goes_on_keeps_its_dtype(monkeypatch, tmp_path):
    recipe = tmp_path / "recipe.json"
    facts = {**RECIPE.to_json(), "phases": [{"until_tokens": 400, "layers": 1}]}
    recipe.write_text(json.dumps({**facts, "eval_records": 4, "tokenizer_records": 50}))

    def train(name: str, **options) -> bool:
        config = run.PretrainConfig(tmp_path / "out", recipe, name, **options)
        kept = run.run_pretrain(config, console=Console(quiet=True))
        return json.loads((kept / "pretrain.json").read_text())["bfloat16"]

    monkeypatch.setattr(run, "in_bfloat16", lambda *arguments: False)
    assert train("auto") is False
    monkeypatch.setattr(run, "in_bfloat16", untried)
    assert train("auto", resume=True) is False
    monkeypatch.setattr(run, "in_bfloat16", lambda *arguments: True)
    with pytest.raises(ValueError, match=r"resume: .*bfloat16 \(False then, True now\)"):
        train("bfloat16", resume=True)
