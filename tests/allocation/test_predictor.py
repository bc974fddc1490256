"""Predictors: what can be learned is learned, nothing else; kept without pickle."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dynkern.allocation.predictor import JSON_NAME, TENSORS_NAME, choose, load_predictor
from dynkern.allocation.training import parse_budget, split, train
from dynkern.evaluation.predictor_report import judge
from support.tables import made_table


def unseen_digests(table, unseen):
    return [digest for digest, here in zip(table.digests, unseen, strict=True) if here]


def learnable(count: int = 300, layers: int = 6, states: int = 8, noise: float = 0.02):
    """A table in which the first number of a prompt's state says whether depth helps."""
    generator = np.random.default_rng(0)
    state = generator.normal(0, 1, (count, states))
    hard = state[:, 0] > 0
    depth = np.linspace(0, 1, layers)
    quality = np.where(hard[:, None], 0.1 + 0.4 * depth, 0.5)
    quality = quality + generator.normal(0, noise, quality.shape)
    return made_table(quality[..., None], states=state), hard


@pytest.mark.parametrize("head", ["ridge", "mlp"])
def test_a_signal_in_the_state_is_found(head):
    table, hard = learnable()
    made = train(table, head, "3.5", 0.7)
    unseen = ~split(table.digests, 0.7)
    predicted = made.predict(table.prompt_tokens[unseen].tolist(), table.states[unseen])
    layers = table.costs[made.choose(predicted, unseen_digests(table, unseen))]
    assert layers[hard[unseen]].mean() > 5 and layers[~hard[unseen]].mean() < 2
    judged = judge(table, made, 0.7, resamples=100, seed=0)
    at = judged.at_budget
    assert at["predictor_minus_histogram"]["ci"][0] > 0
    assert at["predictor_minus_one_route"]["ci"][0] > 0
    assert at["oracle"]["rougeL"] >= at["predictor"]["rougeL"] - 1e-9
    assert made.about["mean_layers_on_train"] == pytest.approx(3.5, abs=0.5)


def test_samples_bring_the_held_out_oracle_in():
    generator = np.random.default_rng(4)
    # alike for everybody, and each further layer brings less
    truth = np.sqrt(np.linspace(0.04, 0.36, 5))[None, :, None]
    quality = truth + generator.normal(0, 0.2, (200, 5, 4))
    table = made_table(quality, states=generator.normal(0, 1, (200, 8)))
    judged = judge(table, train(table, "ridge", "3", 0.5), 0.5, resamples=50, seed=0)
    held_out, upper = judged.at_budget["held_out"], judged.at_budget["oracle"]
    assert held_out["rougeL"] < upper["rougeL"] - 0.05  # all of it was noise
    gap = judged.at_budget["held_out_minus_predictor"]
    assert gap["rougeL"] == pytest.approx(
        held_out["rougeL"] - judged.at_budget["predictor"]["rougeL"]
    )
    assert "held_out_low" in judged.curve_rows()[0]


@pytest.mark.parametrize("head", ["ridge", "mlp"])
def test_no_signal_gives_no_gain(head):
    generator = np.random.default_rng(2)
    quality = np.linspace(0.2, 0.6, 5) + generator.normal(0, 0.2, (300, 5))
    table = made_table(quality[..., None], states=generator.normal(0, 1, (300, 8)))
    judged = judge(table, train(table, head, "3", 0.7), 0.7, resamples=200, seed=0)
    low, high = judged.at_budget["predictor_minus_histogram"]["ci"]
    assert low < 0.02 and high > -0.02
    assert judged.at_budget["oracle_minus_predictor"]["ci"][0] > 0.05


def test_budgets_move_with_the_price():
    table, _ = learnable()
    made = train(table, "ridge", "equal", 0.7)
    assert made.about["reaches_full_depth_on_train"]
    unseen = ~split(table.digests, 0.7)
    predicted = made.predict(table.prompt_tokens[unseen].tolist(), table.states[unseen])
    layers = [
        table.costs[
            made.choose(predicted, unseen_digests(table, unseen), made.price_at(budget))
        ].mean()
        for budget in (1, 2.5, 4)
    ]
    assert layers == sorted(layers) and layers[0] == 1.0
    with pytest.raises(ValueError, match="budget: got 0.5 layers on average, expected 1 to 6"):
        made.price_at(0.5)


def test_a_budget_is_met_where_prompts_are_alike():
    # quality grows by the same with every layer: no single price stops halfway
    generator = np.random.default_rng(6)
    quality = np.linspace(0.2, 0.6, 5) + generator.normal(0, 0.1, (600, 5))
    table = made_table(quality[..., None], states=generator.normal(0, 1, (600, 4)))
    for wanted in ("2", "3", "0.9"):
        judged = judge(table, train(table, "ridge", wanted, 0.5), 0.5, resamples=5, seed=0)
        mean = parse_budget(wanted, 5)
        assert judged.mean_layers == pytest.approx(mean, abs=0.5)


def test_the_cheapest_of_equally_good_routes():
    taken = choose(np.array([[0.5, 0.5, 0.5], [0.0, 1.0, 1.0]]), np.array([3.0, 1.0, 2.0]), 0.0)
    assert taken.tolist() == [1, 1]


def test_the_split_goes_by_the_prompt():
    table, _ = learnable()
    mine = split(table.digests, 0.7)
    assert 0.6 < mine.mean() < 0.8
    assert np.array_equal(split(table.digests[::-1], 0.7)[::-1], mine)
    assert (split(table.digests, 0.5) <= mine).all()
    with pytest.raises(ValueError, match="train_share: got 1.0"):
        split(table.digests, 1.0)


def test_kept_without_pickle_and_equal_when_loaded(tmp_path):
    table, _ = learnable()
    made = train(table, "mlp", "0.5", 0.7)
    made.save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [JSON_NAME, TENSORS_NAME]
    for path in (tmp_path, tmp_path / JSON_NAME):
        loaded = load_predictor(path)
        lengths = table.prompt_tokens[:50].tolist()
        first = made.predict(lengths, table.states[:50])
        assert np.array_equal(loaded.predict(lengths, table.states[:50]), first)
        assert loaded.price == made.price and loaded.prices == made.prices
        assert loaded.keep == made.keep and np.array_equal(loaded.histogram, made.histogram)
    assert b"pickle" not in (tmp_path / TENSORS_NAME).read_bytes()


def test_a_table_without_states_leaves_the_lengths():
    table, _ = learnable()
    bare = made_table(table.quality)
    made = train(bare, "ridge", "equal", 0.7)
    assert made.state_size == 0 and not made.about["reads_state"]
    assert made.predict([4, 9], None).shape == (2, 6)


@pytest.mark.parametrize(
    "harm",
    [
        lambda folder: (folder / JSON_NAME).write_text("{"),
        lambda folder: (folder / JSON_NAME).write_text("[]"),
        lambda folder: (folder / JSON_NAME).write_text('{"kind": "other", "version": 1}'),
        lambda folder: (folder / TENSORS_NAME).write_bytes(b"nothing of use"),
        lambda folder: _change(folder, "routes", ["100000"]),
        lambda folder: _change(folder, "layers", 3),
        lambda folder: _change(folder, "prices", 3),
        lambda folder: _change(folder, "price", 3.0),
        lambda folder: _change(folder, "prices", []),
        lambda folder: _change(folder, "routes", ["111111"] * 5 + ["1111"]),
        lambda folder: _change(folder, "sha255", "0"),
    ],
)
def test_damaged_predictors(tmp_path, harm):
    train(learnable(60)[0], "ridge", "3", 0.6).save(tmp_path)
    harm(tmp_path)
    with pytest.raises(ValueError, match="damaged or no predictor") as caught:
        load_predictor(tmp_path)
    assert "\n" not in str(caught.value)


def _change(folder, key, value):
    content = json.loads((folder / JSON_NAME).read_text())
    # as one from before there was a sum
    del content["sha256"]
    (folder / JSON_NAME).write_text(json.dumps({**content, key: value}))


def test_a_change_of_any_number_is_found(tmp_path):
    made = train(learnable(60)[0], "ridge", "3", 0.6)
    made.save(tmp_path)
    files = {name: (tmp_path / name).read_bytes() for name in (JSON_NAME, TENSORS_NAME)}
    changes = {
        JSON_NAME: files[JSON_NAME].replace(b'"share": 0', b'"share": 1', 1),
        TENSORS_NAME: files[TENSORS_NAME][:-3] + b"\x01" + files[TENSORS_NAME][-2:],
    }
    for name, content in changes.items():
        assert content != files[name]
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match="damaged or no predictor .*differs from its sum"):
            load_predictor(tmp_path)
        (tmp_path / name).write_bytes(files[name])
    _change(tmp_path, "layers", 1)
    assert np.array_equal(load_predictor(tmp_path).histogram, made.histogram)


def test_bad_input():
    table, _ = learnable(30)
    with pytest.raises(ValueError, match="head: got 'tree', expected one of ridge, mlp"):
        train(table, "tree", "equal", 0.7)
    with pytest.raises(ValueError, match="leaves .* prompts to train"):
        train(table, "ridge", "equal", 0.1)
    with pytest.raises(FileNotFoundError, match="no file absent/predictor.json"):
        load_predictor("absent")
    for text in ("", "0", "-1", "7", "nan", "half", "inf"):
        with pytest.raises(ValueError, match="budget: got"):
            parse_budget(text, 6)
    assert [parse_budget(t, 6) for t in ("equal", "0.5", "1", "6", "2.5")] == [None, 3, 1, 6, 2.5]
