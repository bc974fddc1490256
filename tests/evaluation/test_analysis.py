"""Intervals, agreement and the quality columns of a policy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynkern.evaluation.analysis import (
    aggregate,
    agreement,
    bootstrap_interval,
    difference_interval,
)
from support.errors import one_line_error

SCORES = np.random.default_rng(3).beta(2, 5, size=80)
IDS = st.lists(st.integers(0, 3), max_size=8)


def test_interval_is_deterministic_and_follows_the_seed():
    assert bootstrap_interval(SCORES, 7) == bootstrap_interval(list(SCORES), 7)
    assert bootstrap_interval(SCORES, 7) != bootstrap_interval(SCORES, 8)


def test_interval_is_that_of_the_normal_approximation():
    low, high = bootstrap_interval(SCORES, 0, n=4000)
    error = SCORES.std() / np.sqrt(len(SCORES))
    assert low == pytest.approx(SCORES.mean() - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(SCORES.mean() + 1.96 * error, abs=0.15 * error)


def test_interval_covers_the_mean_as_often_as_it_says():
    generator = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        low, high = bootstrap_interval(generator.beta(2, 5, size=60), trial, n=300)
        hits += low <= 2 / 7 <= high
    assert 0.89 <= hits / 200 <= 0.99


def test_interval_of_a_higher_level_is_wider():
    narrow, wide = bootstrap_interval(SCORES, level=0.5), bootstrap_interval(SCORES, level=0.99)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_interval_of_equal_scores_is_a_point():
    assert bootstrap_interval([0.25]) == (0.25, 0.25)
    assert bootstrap_interval([0.5] * 9) == (0.5, 0.5)


@pytest.mark.parametrize("scores", [[], [0.1, float("nan")], [float("inf")]])
def test_interval_of_bad_scores(scores):
    with one_line_error(ValueError, "scores: got"):
        bootstrap_interval(scores)


def test_paired_interval_is_far_narrower_than_the_scores_scatter():
    low, high = difference_interval(SCORES - 0.03, SCORES)
    assert low == pytest.approx(-0.03) and high == pytest.approx(-0.03)
    noisy = SCORES - 0.03 + np.random.default_rng(1).normal(0, 0.01, len(SCORES))
    low, high = difference_interval(noisy, SCORES)
    assert low < -0.03 + 0.005 and high > -0.03 - 0.005
    own = bootstrap_interval(SCORES)
    assert high - low < (own[1] - own[0]) / 5
    with one_line_error(ValueError, "full_scores: got 2, expected 3"):
        difference_interval([1, 2, 3], [1, 2])


@pytest.mark.parametrize(
    ("ids", "full_ids", "expected"),
    [
        ([], [], 1.0),
        ([1], [], 0.0),
        ([], [1], 0.0),
        ([1, 2, 3], [1, 2, 3], 1.0),
        ([1, 2, 3], [1, 9, 3], 2 / 3),
        ([1, 2], [1, 2, 3, 4], 0.5),
        ([2, 3, 4], [1, 2, 3, 4], 0.0),
    ],
)
def test_agreement(ids, full_ids, expected):
    assert agreement(ids, full_ids) == pytest.approx(expected)


@given(IDS, IDS)
def test_agreement_is_symmetric_and_a_share(ids, full_ids):
    share = agreement(ids, full_ids)
    assert share == agreement(full_ids, ids) and 0.0 <= share <= 1.0
    assert (share == 1.0) == (ids == full_ids)


def row(prompt_id: str, token_ids: list[int], counts: list[int], rouge: float) -> dict:
    return {
        "prompt_id": prompt_id,
        "token_ids": token_ids,
        "rouge1": rouge,
        "rouge2": rouge / 2,
        "rougeL": rouge / 4,
        "new_tokens": len(token_ids),
        "layer_counts": counts,
    }


# three layers: five tokens have four routed passes
FULL = [row("a", [5, 6, 7, 8, 2], [4, 4, 4], 0.8), row("b", [5, 2], [1, 1, 1], 0.4)]
ROUTED = [row("b", [5, 2], [1, 0, 0], 0.4), row("a", [5, 9, 7], [2, 2, 0], 0.4)]


def test_aggregate():
    got = aggregate(ROUTED, FULL, seed=5)
    assert got["rouge1"] == pytest.approx(0.4)
    assert got["rouge2"] == pytest.approx(0.2)
    assert got["rougeL"] == pytest.approx(0.1)
    assert got["rougeL_ci"] == list(bootstrap_interval([0.1, 0.1], 5))
    # matched by prompt, not by place: b lost nothing, a lost 0.1
    assert got["rougeL_diff_ci"] == list(difference_interval([0.1, 0.1], [0.1, 0.2], 5))
    assert got["agreement_with_full"] == pytest.approx((1.0 + 2 / 5) / 2)
    assert got["new_tokens"] == 5
    # over passes, not over rows: 5 layers in 3 passes
    assert got["mean_layers"] == pytest.approx(5 / 3)
    # with the full pass of each row's first token
    assert got["mean_layers_end_to_end"] == pytest.approx((5 + 2 * 3) / 5)


def test_aggregate_of_full_against_itself():
    got = aggregate(FULL, FULL)
    assert got["agreement_with_full"] == 1.0
    assert got["rougeL_diff_ci"] == [0.0, 0.0]
    assert got["mean_layers"] == got["mean_layers_end_to_end"] == 3.0


def test_aggregate_with_a_routed_prefill():
    got = aggregate(ROUTED, FULL, prefill="routed")
    assert got["mean_layers"] == pytest.approx(5 / 3)
    assert got["mean_layers_end_to_end"] == pytest.approx((5 + 1 + 2) / 5)


def test_aggregate_without_a_routed_pass():
    single = [row("a", [2], [0, 0, 0], 0.0)]
    got = aggregate(single)
    assert got["mean_layers"] is None and got["mean_layers_end_to_end"] == 3.0
    assert aggregate(single, prefill="routed")["mean_layers_end_to_end"] is None
    assert got["agreement_with_full"] is None and got["rougeL_diff_ci"] is None
    assert got["new_tokens"] == 1


def test_aggregate_of_bad_rows():
    with one_line_error(ValueError, "rows: got none"):
        aggregate([], FULL)
    with one_line_error(ValueError, "full_rows: got none for prompt 'a'"):
        aggregate(FULL, FULL[1:])
