"""The parts of pretraining: recipe, tokenizer, stream, growth, loss and schedule."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest
import torch

from dynkern.data import Record, encode_prompt
from dynkern.tasks import records
from dynkern.training.data import IGNORED
from dynkern.training.pretraining.network import answer_weights, grow, losses, new_model
from dynkern.training.pretraining.optimizers import Optimizers, rate_scale
from dynkern.training.pretraining.recipe import DEFAULT_RECIPE, Phase, Recipe, read_recipe
from dynkern.training.pretraining.stream import FAMILY_NUMBER, TaskStream, encode, padded
from dynkern.training.pretraining.tokenizer import task_text, train_task_tokenizer
from support.errors import one_line_error

RECIPE = Recipe(
    (Phase(100, 2),), hidden_size=32, vocab_size=600, max_positions=192, batch_tokens=900
)


@pytest.fixture(scope="module")
def tokenizer():
    return train_task_tokenizer(600, 300)


# -- recipe ---------------------------------------------------------------------------------------


def test_the_shipped_recipe_is_whole_and_comes_back_from_json(tmp_path):
    recipe = read_recipe(DEFAULT_RECIPE)
    assert recipe.phases[-1].layers == 12 and recipe.hidden_size == 256
    # what the bundle holds must stay below 20 MB in int8 with bfloat16 tables
    path = tmp_path / "again.json"
    path.write_text(json.dumps(recipe.to_json()))
    assert read_recipe(path) == recipe


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"phases": []}, "phases: got none"),
        ({"phases": [{"layers": 2}]}, "phases: got .* expected until_tokens and layers"),
        ({"phases": [{"until_tokens": 5, "layers": 2, "depth": 3}]}, "phases: got 'depth'"),
        ({"phases": [{"until_tokens": 0, "layers": 2}]}, "until_tokens: got 0"),
        ({"phases": [{"until_tokens": 5, "layers": 2, "layerdrop": 1}]}, "layerdrop: got 1"),
        ({"phases": [{"until_tokens": 5, "layers": 2, "families": ["nap"]}]}, "family: got 'nap'"),
        ({"phases": [{"until_tokens": 5, "layers": 2, "families": "copy"}]}, "expected a list"),
        (
            {"phases": [{"until_tokens": 9, "layers": 2}, {"until_tokens": 9, "layers": 2}]},
            "until_tokens: got 9 behind 9",
        ),
        (
            {"phases": [{"until_tokens": 5, "layers": 2}, {"until_tokens": 9, "layers": 3}]},
            "layers: got 3 behind 2, expected a multiple",
        ),
        ({"learning_rate": -1}, "learning_rate: got -1"),
        ({"answer_power": 2}, "answer_power: got 2"),
        ({"decay_tokens": 6}, "decay_tokens: got 6, expected 0 to 5"),
        ({"speed": 3}, "recipe: got 'speed'"),
        ({"seed": -1}, "seed: got -1"),
    ],
)
def test_a_bad_recipe_is_one_line(tmp_path, change, message):
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps({"phases": [{"until_tokens": 5, "layers": 2}], **change}))
    with one_line_error(ValueError, message):
        read_recipe(path)


def test_a_file_that_is_no_recipe_is_one_line(tmp_path):
    with one_line_error(FileNotFoundError, "recipe: no file"):
        read_recipe(tmp_path / "absent.json")
    for content, message in (("{", "expected JSON"), ("[]", "expected an object")):
        (tmp_path / "bad.json").write_text(content)
        with one_line_error(ValueError, message):
            read_recipe(tmp_path / "bad.json")


def test_layerdrop_goes_straight_from_phase_to_phase():
    recipe = Recipe((Phase(100, 2), Phase(200, 2, layerdrop=0.2), Phase(300, 2, layerdrop=0.2)))
    found = [recipe.layerdrop(n, t) for n, t in ((0, 50), (1, 100), (1, 150), (1, 220), (2, 250))]
    assert found == pytest.approx([0, 0, 0.1, 0.2, 0.2])


def test_rates_warm_up_after_growth_and_fall_at_the_end():
    recipe = Recipe((Phase(1000, 2),), warmup_steps=10, decay_tokens=400)
    assert [rate_scale(recipe, 0, n) for n in (0, 4, 9, 50)] == pytest.approx([0.1, 0.5, 1, 1])
    assert [rate_scale(recipe, t, 50) for t in (600, 800, 1000, 1100)] == pytest.approx(
        [1, 0.55, 0.1, 0.1]
    )


# -- tokenizer and stream -------------------------------------------------------------------------


def test_the_tokenizer_keeps_opts_ids_and_texts(tokenizer, tmp_path):
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (2, 2, 1)
    assert len(tokenizer) == 600
    for record in islice(records("test", seed=5), 64):
        for text in task_text(record):
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert tokenizer.decode(ids) == text
    ids = tokenizer("### Response:\n47", add_special_tokens=False)["input_ids"]
    # digits stand alone, and nothing reaches across the end of a heading
    assert [tokenizer.decode([i]) for i in ids[-2:]] == ["4", "7"]
    with one_line_error(ValueError, "vocab_size: got 200, expected 260"):
        train_task_tokenizer(200, 10)


def test_training_reads_the_prompts_of_generation(tokenizer):
    rows = list(islice(records("train", seed=3), 32))
    for (ids, targets, family), row in zip(encode(tokenizer, rows, 400), rows, strict=True):
        record = Record(row["id"], row["instruction"], row["input"], row["output"])
        prompt = encode_prompt(tokenizer, record, "plain").ids
        assert ids[: len(prompt)] == prompt and ids[-1] == 2
        response = ids[len(prompt) :]
        assert tokenizer.decode(response[:-1]) == row["output"]
        assert targets == [IGNORED] * (len(prompt) - 1) + response + [IGNORED]
        assert family == FAMILY_NUMBER[row["family"]]


def stream(tokenizer, phase=RECIPE.phases[0], pool=0, batch=0, seed=7):
    return TaskStream(tokenizer, phase, seed, 900, 192, pool, batch)


def test_batches_hold_each_record_once_and_about_as_many_tokens(tokenizer):
    made = stream(tokenizer)
    batches = []
    for batch in made:
        if made.pool:
            break
        batches.append(batch)
    seen = sorted(tuple(i for i in row.tolist() if i != 1) for b in batches for row in b.ids)
    rows = list(islice(records("train", seed=7), 1024))
    assert seen == sorted(tuple(ids) for ids, _, _ in encode(tokenizer, rows, 192))
    assert all(batch.tokens <= 900 for batch in batches)
    # only the last bucket may stay far below
    assert sum(batch.tokens < 600 for batch in batches) <= 1
    # random order: lengths do not rise all along
    widths = [batch.ids.shape[1] for batch in batches]
    assert widths != sorted(widths)


def test_rows_are_padded_on_the_right_and_nothing_is_heard_there(tokenizer):
    ids, targets, family = encode(tokenizer, [next(records("train", seed=9))], 400)[0]
    batch = padded([(ids, targets, family), (ids + [5, 6], targets + [7, IGNORED], family)])
    assert batch.ids.tolist() == [ids + [1, 1], ids + [5, 6]]
    assert batch.targets.tolist() == [targets + [IGNORED] * 2, targets + [7, IGNORED]]
    assert batch.families.tolist() == [family] * 2


def test_a_stream_goes_on_where_it_stood(tokenizer):
    phase = Phase(100, 2, families=("copy", "sort"), difficulties=(1, 2))
    whole = stream(tokenizer, phase)
    places, batches = [], []
    for batch in islice(whole, 80):
        places.append((whole.pool, whole.batch))
        batches.append(batch.ids)
    assert places[-1][0] >= 1
    for at in (0, 7, 60, 78):
        again = next(iter(stream(tokenizer, phase, *places[at])))
        assert torch.equal(again.ids, batches[at + 1])
    other = next(iter(stream(tokenizer, phase, seed=8)))
    assert other.ids.shape != batches[0].shape or not torch.equal(other.ids, batches[0])


def test_room_for_nothing_is_one_line(tokenizer):
    with one_line_error(ValueError, "max_positions: got 8"):
        next(iter(TaskStream(tokenizer, Phase(100, 2), 0, 900, 8)))


# -- network --------------------------------------------------------------------------------------


def batch_of(tokenizer):
    return next(iter(stream(tokenizer)))


def moved(model):
    """The model away from its initial zeros and ones, so that no part can hide."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def test_losses_are_those_of_transformers(tokenizer):
    model, batch = moved(new_model(RECIPE, 3)).double(), batch_of(tokenizer)
    mask = (torch.arange(batch.ids.shape[1]) < (batch.ids != 1).sum(1)[:, None]).long()
    wanted = model(input_ids=batch.ids, attention_mask=mask).logits
    here = batch.targets != IGNORED
    theirs = torch.nn.functional.cross_entropy(wanted[here], batch.targets[here], reduction="none")
    ours, right = losses(model, batch, [True] * 3, torch.float64)
    assert torch.allclose(ours, theirs, atol=1e-6)
    assert torch.equal(right, wanted[here].argmax(-1) == batch.targets[here])


def test_answers_weigh_alike_or_their_tokens_do(tokenizer):
    batch = batch_of(tokenizer)
    rows = (batch.targets != IGNORED).nonzero()[:, 0]
    lengths = torch.bincount(rows)
    assert lengths.unique().numel() > 1
    for power in (0.0, 0.5, 1.0):
        sums = torch.bincount(rows, weights=answer_weights(batch.targets, power))
        assert torch.allclose(sums.float(), lengths.float() ** (1 - power))


def test_a_layer_left_out_is_no_part_of_the_model(tokenizer):
    model, batch = moved(new_model(RECIPE, 3)), batch_of(tokenizer)
    without = moved(new_model(RECIPE, 2))
    state = model.state_dict()
    renamed = {
        name.replace("layers.2.", "layers.1."): tensor
        for name, tensor in state.items()
        if "layers.1." not in name
    }
    without.load_state_dict(renamed)
    ours = losses(model, batch, [True, False, True])[0]
    assert torch.equal(ours, losses(without, batch, [True, True])[0])
    assert not torch.allclose(ours, losses(model, batch, [True] * 3)[0])


def test_positions_begin_as_smooth_waves():
    model = new_model(RECIPE, 2)
    table = model.model.decoder.embed_positions.weight[2:].detach()
    assert table.pow(2).mean().sqrt().item() == pytest.approx(model.config.init_std, rel=1e-5)
    near, far = ((table[1:] * table[:-1]).sum(1), (table[:64] * table[64:128]).sum(1))
    assert (near.mean() > 1.5 * far.mean()).item()


def test_growth_keeps_the_function_about_the_same(tokenizer):
    model, batch = moved(new_model(RECIPE, 2)), batch_of(tokenizer)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".fc2." in name or ".out_proj." in name:
                # short steps: what growth leaves is of second order in them
                parameter.mul_(0.1)
    grown = grow(model, 6)
    assert grown.config.num_hidden_layers == 6 and grown.training
    old, new = (m.state_dict() for m in (model, grown))
    for place in range(6):
        for rest, factor in (("fc1.weight", 1), ("fc2.bias", 3), ("self_attn.out_proj.weight", 3)):
            theirs = old[f"model.decoder.layers.{place // 3}.{rest}"] / factor
            assert torch.equal(new[f"model.decoder.layers.{place}.{rest}"], theirs)
    # copied without scaling, each branch would write three times as much
    naive = grow(model, 6)
    with torch.no_grad():
        for name, parameter in naive.named_parameters():
            if ".fc2." in name or ".out_proj." in name:
                parameter.mul_(3)
    before = losses(model, batch, [True] * 2)[0]
    scaled, copied = (losses(m, batch, [True] * 6)[0] - before for m in (grown, naive))
    assert 0 < scaled.norm() < 0.15 * copied.norm()
    with one_line_error(ValueError, "layers: got 5, expected a multiple of 2"):
        grow(model, 5)


def test_every_parameter_is_moved_by_one_of_the_optimizers(tokenizer):
    model, batch = new_model(RECIPE, 2), batch_of(tokenizer)
    optimizers = Optimizers(model, RECIPE)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    entropies, _ = losses(model, batch, [True] * 2)
    entropies.mean().backward()
    assert optimizers.step(1.0) > 0
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter, before[name]), name
        assert parameter.grad is None
    inner = {id(p) for group in optimizers.muon.param_groups for p in group["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in inner}
    assert len(names) == 2 * 6 and not any("embed" in name for name in names)
    assert Path(DEFAULT_RECIPE).is_file()
