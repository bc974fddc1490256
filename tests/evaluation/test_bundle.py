"""`dynkern bundle` on a tiny checkpoint, and the card that it writes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from dynkern.allocation.predictor import load_predictor
from dynkern.cli import main
from dynkern.data import load_records
from dynkern.evaluation.bundle import bundle_bytes, write_model
from dynkern.evaluation.bundle_card import card
from dynkern.llm import LLM
from dynkern.models.checkpoint import Checkpoint
from support.bundle import LAYERS, save_task_checkpoint
from support.errors import one_line_error

PREDICTOR_PROMPTS = 48
TRAINING = {
    "tokens": 7_000_000,
    "steps": 5000,
    "seconds": 7200,
    "device": "two cores",
    "recipe": {
        "seed": 3,
        "phases": [{"until_tokens": 7_000_000, "layers": 8, "families": ["copy"]}],
    },
}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with MODEL and its BUNDLE."""
    folder = tmp_path_factory.mktemp("bundle")
    save_task_checkpoint(folder / "MODEL")
    (folder / "pretrain.json").write_text(json.dumps(TRAINING))
    words = f"bundle --model {folder}/MODEL --output {folder}/BUNDLE --work {folder}/WORK --limit 6"
    words += f" --training {folder}/pretrain.json --predictor-prompts {PREDICTOR_PROMPTS}"
    assert main(words.split()) == 0
    return folder


def test_the_bundle_loads_close_to_its_original_and_is_small(made):
    with Checkpoint(made / "MODEL") as wide, Checkpoint(made / "BUNDLE") as kept:
        names = [name for name in wide if name != "lm_head.weight"]
        assert sorted(names) == sorted(kept)
        for name in names:
            error = (wide[name] - kept[name].float()).abs().max()
            # half a step of int8, or of bfloat16's 8 bits
            assert error <= wide[name].abs().max() * 0.5 / 127, name
            assert wide[name].dim() == 2 or torch.equal(wide[name], kept[name])
    weights = (made / "BUNDLE/model.int8.safetensors").stat().st_size
    # small matrices and biases weigh more here than in the real one
    assert weights < 0.5 * (made / "MODEL/model.safetensors").stat().st_size
    assert (made / "BUNDLE/model.int8.safetensors").stat().st_mode & 0o777 == 0o644
    assert bundle_bytes(made / "BUNDLE") > weights
    llm = LLM(made / "BUNDLE")
    assert llm.dtype == torch.float32 and llm.tokenizer.pad_token_id == 1
    assert llm.generate(["### Instruction:\nCount."], max_new_tokens=3)[0].token_ids


def test_its_predictor_was_fitted_on_its_own_weights(made):
    predictor = load_predictor(made / "BUNDLE/predictor")
    assert predictor.num_layers == LAYERS and predictor.about["reads_state"]
    table = predictor.about["table"]
    assert table["prompts"] == PREDICTOR_PROMPTS and table["template"] == "plain"
    facts = json.loads((made / "BUNDLE/scores.json").read_text())
    assert facts["predictor_prompts"] == PREDICTOR_PROMPTS


def test_scores_and_card_say_what_was_measured(made):
    facts = json.loads((made / "BUNDLE/scores.json").read_text())
    bundle, wide = (facts["scores"][name] for name in ("bundle", "float32"))
    assert list(bundle["rougeL"]) == ["full", "3/4", "1/2", "1/4"]
    assert bundle["loss"] == pytest.approx(wide["loss"], rel=0.02)
    page = (made / "BUNDLE/README.md").read_text()
    for text in ("Apache-2.0", "synthetic", "7.0 million tokens", "2.0 hours on two cores", "copy"):
        assert text in page
    values = [f"{value:.3f}" for value in bundle["rougeL"].values()]
    assert f"| this bundle | {' | '.join(values)} |" in page
    lost = [f"{wide['rougeL'][k] - v:.3f}" for k, v in bundle["rougeL"].items()]
    assert f"| lost by int8 | {' | '.join(lost)} |" in page
    assert "difficulty, right to the letter" in page
    levels = Counter(str(r.difficulty) for r in load_records("tasks:test", limit=facts["records"]))
    for one, whole in (("difficulty", "rougeL"), ("exact_difficulty", "exact")):
        for label, parts in bundle[one].items():
            mean = sum(parts[level] * n for level, n in levels.items()) / levels.total()
            assert set(parts) == set(levels) and mean == pytest.approx(bundle[whole][label])
    assert f"on {PREDICTOR_PROMPTS} records" in page


def test_a_second_call_makes_it_anew_from_the_same_table(made, capsys):
    before = (made / "BUNDLE/README.md").read_text()
    words = f"bundle --model {made}/MODEL --output {made}/AGAIN --work {made}/WORK --limit 6"
    words += f" --training {made}/pretrain.json --predictor-prompts {PREDICTOR_PROMPTS}"
    assert main(words.split()) == 0
    assert (made / "AGAIN/README.md").read_text() == before
    assert "lost by int8" in capsys.readouterr().out
    names = ("model.int8.safetensors", "predictor/predictor.safetensors", "config.json")
    for name in names:
        assert (made / "AGAIN" / name).read_bytes() == (made / "BUNDLE" / name).read_bytes()


def test_a_card_tells_each_phase():
    phase = {"until_tokens": 5000, "layers": 4, "drills": 0.25}
    phases = [{**phase, "kinds": ["drill_key", "drill_sort", "drill_key"]}, phase]
    phases[1] = {**phase, "accumulation": 3, "families": ["copy"], "layerdrop": 0.125}
    training = {"tokens": 7, "recipe": {"phases": phases, "accumulation": 2, "seed": 9}}
    model = {"layers": 4, "width": 8, "parameters": 1.5, "vocab": 300, "positions": 64}
    page = card("name", {"model": model, "training": training, "predictor_prompts": 0})
    assert "| 5,000 | 4 | all | all | 0 | 0.25: 2 × key, sort | 2 |" in page
    assert "| 5,000 | 4 | copy | all | 0.125 | 0.25 | 3 |" in page
    assert "accumulation 2, seed 9." in page


def test_a_card_without_scores_or_training_says_so():
    model = {"layers": 2, "width": 32, "parameters": 0.5, "vocab": 300, "positions": 64}
    page = card("name", {"model": model, "training": None, "predictor_prompts": 0})
    assert "Not stated." in page and "## Scores" not in page and "predictor/" not in page


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("--model {p}/absent --output {p}/x", "absent does not exist"),
        ("--model {p}/MODEL --output {p}/MODEL", "the model's own folder"),
        ("--model {p}/MODEL --output {p}/x --limit -1", "limit: got -1"),
        ("--model {p}/MODEL --output {p}/x --predictor-prompts -1", "predictor_prompts: got -1"),
        ("--model {p}/MODEL --output {p}/x --training {p}/absent.json", "expected pretrain.json"),
        ("--model {p}/MODEL --output {p}/pretrain.json/x", "cannot be made"),
    ],
)
def test_bad_words_are_one_line(made, capsys, words, named):
    assert main(["bundle", *words.format(p=made).split()]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and named in error


def test_a_checkpoint_without_tokenizer_is_refused(made, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((made / "MODEL" / name).read_bytes())
    with one_line_error(ValueError, "no tokenizer.json, expected a tokenizer to ship"):
        write_model(tmp_path, tmp_path)
