"""The analysis of a table: curves, equal quality, held-out choice, intervals, groups."""

from __future__ import annotations

import numpy as np
import pytest

from dynkern.allocation.bootstrap import interval, mean_interval, weights
from dynkern.allocation.curve import allocate, one_route
from dynkern.allocation.groups import grouped
from dynkern.allocation.knapsack import exact
from support.tables import made_table


def noisy(count: int, layers: int, samples: int, spread: float, seed: int = 0) -> np.ndarray:
    """Quality that rises with depth for everybody alike, plus noise of each sample."""
    generator = np.random.default_rng(seed)
    truth = np.linspace(0.2, 0.6, layers)[None, :, None]
    return truth + generator.normal(0, spread, (count, layers, samples))


def test_the_oracle_is_the_best_choice_of_all():
    table = made_table(noisy(12, 5, 1, 0.3))
    found = allocate(table, resamples=20)
    quality = table.mean_quality
    assert found.mean_layers.tolist() == np.arange(1.0, 5.01, 0.25).tolist()
    for place, budget in enumerate(found.mean_layers):
        _, best = exact(list(quality), [table.costs] * 12, int(budget * 12))
        assert found.oracle.quality[place] <= best / 12 + 1e-9
        assert best / 12 <= found.oracle.quality[place] + found.gap[place] + 1e-9
    assert (found.oracle.quality >= found.one_route.quality - 0.3 / 12).all()
    assert found.full_quality == pytest.approx(quality[:, -1].mean())


def test_equal_quality_is_reached_and_not_with_less():
    table = made_table(noisy(40, 6, 1, 0.25))
    found = allocate(table, resamples=200)
    point = found.equal["oracle"]
    assert found.solution.value >= found.full_quality - 1e-12
    assert point.mean_layers == pytest.approx(found.solution.cost)
    short = int(round(point.mean_layers * 40)) - 6  # one increment is at most five layers
    _, best = exact(list(table.mean_quality), [table.costs] * 40, short)
    assert best / 40 < found.full_quality
    assert point.ci[0] <= point.mean_layers <= point.ci[1]
    assert point.ci[0] < point.ci[1]


def test_noise_makes_the_oracle_look_good_and_the_held_out_one_does_not_fall_for_it():
    # all prompts alike: giving each its own depth cannot help
    found = allocate(made_table(noisy(400, 6, 4, 0.3)), resamples=50)
    held_out, alike = found.held_out.quality, found.one_route.quality
    assert (found.oracle.quality[4:] > alike[4:] + 0.03).all()
    assert (held_out <= alike + 0.03).all()
    assert found.equal["oracle"].mean_layers < 4
    assert found.equal["held_out"].mean_layers is None or found.equal["held_out"].mean_layers > 4


def test_a_real_difference_between_prompts_survives_holding_out():
    # half of the prompts need one layer, the other half all six
    generator = np.random.default_rng(1)
    quality = np.full((200, 6, 2), 0.5)
    quality[100:, :5] = 0.1
    quality += generator.normal(0, 0.01, quality.shape)
    found = allocate(made_table(quality), resamples=50)
    middle = int(np.flatnonzero(found.mean_layers == 3.5)[0])
    assert found.held_out.quality[middle] == pytest.approx(0.5, abs=0.01)
    assert found.one_route.quality[middle] < 0.35
    assert found.histogram.quality[middle] == pytest.approx(0.4, abs=0.02)


def test_one_sample_has_no_held_out_oracle():
    found = allocate(made_table(noisy(10, 3, 1, 0.1)), resamples=5)
    assert found.held_out is None and "held_out" not in found.equal


def test_one_route_mixes_its_neighbours():
    mixed = one_route(np.array([1.0, 3.0, 3.0]), np.array([0.1, 0.4, 0.5]), np.array([1, 2, 3]))
    assert mixed.tolist() == pytest.approx([0.1, 0.3, 0.5])


def test_weights_are_those_of_drawing_with_replacement():
    chunks = list(weights(7, 5000, seed=3))
    drawn = np.concatenate(chunks)
    assert drawn.shape == (5000, 7)
    assert np.allclose(drawn.sum(axis=1), 1.0)
    assert np.allclose(drawn.mean(axis=0), 1 / 7, atol=0.005)
    assert drawn.var(axis=0) == pytest.approx(np.full(7, (1 / 7) * (6 / 7) / 7), rel=0.15)
    assert np.array_equal(drawn, np.concatenate(list(weights(7, 5000, seed=3))))


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    generator = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        low, high = mean_interval(generator.normal(1.0, 0.5, 60), resamples=200, seed=trial)
        covered += low <= 1.0 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_intervals_of_draws_that_lack_a_value():
    draws = np.array([[1.0, np.nan], [3.0, np.nan], [np.nan, np.nan]])
    low, high = interval(draws)
    assert 1.0 <= low[0] < high[0] <= 3.0 and np.isnan(low[1])


def test_groups_by_length_and_source():
    count = 40
    quality = noisy(count, 4, 1, 0.05)
    tokens = np.full(quality.shape, 5)
    tokens[:20] = 50
    sources = ["a"] * 30 + [None] * 10
    table = made_table(quality, tokens=tokens, sources=sources)
    choice = np.where(np.arange(count) < 20, 0, 3)
    groups = grouped(table, np.arange(count), {"oracle": choice}, resamples=50)
    by_output = [g for g in groups if g.by == "output_tokens"]
    assert {g.name: g.layers["oracle"][0] for g in by_output} == {"5": 4.0, "50": 1.0}
    assert {g.name: len(g.members) for g in groups if g.by == "source"} == {
        "a": 30,
        "not stated": 10,
    }
    by_prompt = [g for g in groups if g.by == "prompt_tokens"]
    assert sorted(np.concatenate([g.members for g in by_prompt])) == list(range(count))
    for group in groups:
        mean, low, high = group.quality["full"]
        assert low <= mean <= high
        assert mean == pytest.approx(table.mean_quality[group.members, -1].mean())


def test_a_cut_into_one_group_is_left_out_and_many_sources_are_put_together():
    quality = noisy(30, 3, 1, 0.1)
    table = made_table(quality, sources=[f"s{i}" for i in range(30)])
    groups = grouped(table, np.arange(30), {}, resamples=5)
    assert "output_tokens" not in {g.by for g in groups}
    named = [g for g in groups if g.by == "source"]
    assert len(named) == 12 and named[-1].name == "others" and len(named[-1].members) == 19
