"""Route arithmetic, each part against an independent restatement."""

from __future__ import annotations

import math
from collections import Counter
from itertools import combinations

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dynkern import rng, routes
from dynkern.routes import TokenProgram
from support.errors import one_line_error

DEPTHS = range(1, 49)


def ran(route: torch.Tensor) -> list[int]:
    return route.nonzero().flatten().tolist()


def brute_force_order(num_layers: int) -> list[int]:
    """The rule in words, by looking at every layer: split the widest gap, the lowest on a tie."""
    chosen = [0]
    if num_layers > 1:
        chosen.append(num_layers - 1)
    while len(chosen) < num_layers:
        best = (0, 0, 0)
        for missing in (layer for layer in range(num_layers) if layer not in chosen):
            left = max(c for c in chosen if c < missing)
            right = min(c for c in chosen if c > missing)
            if right - left > best[0]:
                best = (right - left, left, right)
        chosen.append(math.floor((best[1] + best[2]) / 2))
    return chosen


@pytest.mark.parametrize("num_layers", DEPTHS)
def test_uniform_order(num_layers):
    order = routes.uniform_order(num_layers)
    assert order == brute_force_order(num_layers)
    assert sorted(order) == list(range(num_layers))


def test_uniform_order_written_out():
    # by hand: of 0-11 the midpoint 5, of 5-11 (6 wide, 0-5 only 5) the midpoint 8, of 0-5 then 2
    assert routes.uniform_order(12) == [0, 11, 5, 8, 2, 3, 6, 9, 1, 4, 7, 10]
    assert ran(routes.uniform(24, 6)) == [0, 5, 8, 11, 17, 23]


@pytest.mark.parametrize("num_layers", DEPTHS)
def test_uniform_is_nested_and_of_the_right_size(num_layers):
    chain = [routes.uniform(num_layers, budget) for budget in range(1, num_layers + 1)]
    assert [int(route.sum()) for route in chain] == list(range(1, num_layers + 1))
    assert all(route.dtype == torch.bool and route.shape == (num_layers,) for route in chain)
    for smaller, larger in zip(chain, chain[1:], strict=False):
        assert not (smaller & ~larger).any()
    assert routes.is_nested(torch.stack(chain[::-1]))
    assert torch.equal(chain[-1], routes.full(num_layers))


@pytest.mark.parametrize("num_layers", DEPTHS)
def test_uniform_even_for_every_budget(num_layers):
    for budget in range(1, num_layers + 1):
        if num_layers % budget:
            with pytest.raises(ValueError, match=f"budget: got {budget}, expected a divisor"):
                routes.uniform_even(num_layers, budget)
        else:
            step = num_layers // budget
            expected = [layer for layer in range(num_layers) if layer % step == 0]
            assert ran(routes.uniform_even(num_layers, budget)) == expected


def test_uniform_even_is_the_published_pattern():
    assert ran(routes.uniform_even(24, 12)) == list(range(0, 23, 2))


@pytest.mark.parametrize("num_layers", [1, 2, 12, 24])
def test_early_exit(num_layers):
    for exit_layer in range(num_layers):
        route = routes.early_exit(num_layers, exit_layer)
        assert ran(route) == list(range(exit_layer + 1))
    for exit_layer in (-1, num_layers):
        with pytest.raises(ValueError, match=f"^early_exit layer: got {exit_layer}, expected 0 to"):
            routes.early_exit(num_layers, exit_layer)


@pytest.mark.parametrize("build", [routes.uniform, routes.uniform_even])
@pytest.mark.parametrize("budget", [0, -1, 13, 10**12])
def test_budgets_out_of_range(build, budget):
    with pytest.raises(ValueError, match=f"got {budget}, expected 1 to 12 layers$"):
        build(12, budget)


def test_check_choice_names_what_is_allowed():
    routes.check_choice("kv_fill", "copy", routes.KV_FILLS)
    with pytest.raises(ValueError) as error:
        routes.check_choice("kv_fill", "paint", routes.KV_FILLS)
    expected = "kv_fill: got 'paint', expected one of project, copy, deferred, mask"
    assert str(error.value) == expected


# -- copy_source -------------------------------------------------------------------------------


def brute_force_source(keep: list[bool], alive: bool, layer: int) -> int:
    if keep[layer] or not alive:
        return -1
    for below in range(layer - 1, -1, -1):
        if keep[below]:
            return below
    for above in range(layer + 1, len(keep)):
        if keep[above]:
            return above
    return -1


@settings(max_examples=200, deadline=None)
@given(st.data(), st.integers(1, 12), st.integers(1, 6))
def test_copy_source(data, num_layers, rows):
    bits = st.lists(st.booleans(), min_size=num_layers, max_size=num_layers)
    columns = data.draw(st.lists(bits, min_size=rows, max_size=rows))
    alive = data.draw(st.lists(st.booleans(), min_size=rows, max_size=rows))
    source = routes.copy_source(torch.tensor(columns).T, torch.tensor(alive))
    assert source.dtype == torch.int32 and source.shape == (num_layers, rows)
    for row in range(rows):
        expected = [brute_force_source(columns[row], alive[row], i) for i in range(num_layers)]
        assert source[:, row].tolist() == expected


def test_copy_source_prefers_below_even_where_above_is_nearer():
    keep = torch.tensor([[0, 1, 0, 0, 0, 1, 0]], dtype=torch.bool).T
    source = routes.copy_source(keep, torch.tensor([True]))
    assert source.flatten().tolist() == [1, -1, 1, 1, 1, -1, 5]


# -- smallest_subset ---------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.data(), st.integers(1, 9), st.booleans())
def test_smallest_subset_by_sorting(data, num_layers, force_first):
    # few distinct values, so that ties are common
    values = st.lists(st.integers(0, 3), min_size=num_layers, max_size=num_layers)
    columns = data.draw(st.lists(values, min_size=1, max_size=4))
    budget = data.draw(st.integers(1, num_layers))
    scores = torch.tensor(columns, dtype=torch.float32).T / 4
    before = scores.clone()
    keep = routes.smallest_subset(scores, budget, force_first)
    assert torch.equal(scores, before)
    for row, column in enumerate(columns):
        ranked = sorted(range(num_layers), key=lambda i, c=column: (c[i], i))
        if force_first:
            ranked = [0, *(layer for layer in ranked if layer)]
        assert ran(keep[:, row]) == sorted(ranked[:budget])


def test_subsets_are_uniform():
    draws = 12_000
    scores = rng.layer_uniforms(4, torch.arange(draws), 0, 6, rng.STREAM_PLAN)
    keep = routes.smallest_subset(scores, 3)
    counts = Counter(tuple(ran(column)) for column in keep.T)
    subsets = list(combinations(range(6), 3))
    expected = draws / len(subsets)
    chi_square = sum((counts[s] - expected) ** 2 / expected for s in subsets)
    assert sum(counts[s] for s in subsets) == draws
    # 19 degrees of freedom: 56 is exceeded once in 60,000
    assert chi_square < 56


def test_forced_subsets_are_uniform_over_the_rest():
    draws = 6_000
    scores = rng.layer_uniforms(4, torch.arange(draws), 0, 5, rng.STREAM_PLAN)
    keep = routes.smallest_subset(scores, 3, force_first=True)
    assert keep[0].all() and (keep.sum(dim=0) == 3).all()
    counts = Counter(tuple(ran(column)) for column in keep[1:].T)
    expected = draws / 6
    assert set(counts) == set(combinations(range(4), 2))
    # 5 degrees of freedom: 30 is exceeded once in 68,000
    assert sum((n - expected) ** 2 / expected for n in counts.values()) < 30


# -- is_nested, check_routes -------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=5))
def test_is_nested(table):
    sets = [{i for i, bit in enumerate(row) if bit} for row in table]
    expected = all(a <= b or b <= a for a, b in combinations(sets, 2))
    assert routes.is_nested(torch.tensor(table)) == expected


@pytest.mark.parametrize(
    "given",
    [
        torch.tensor([[True, False], [True, True]]),
        [[True, False], [True, True]],
        [torch.tensor([True, False]), torch.tensor([True, True])],
        (numpy.array([True, False]), [True, True]),
        numpy.array([[True, False], [True, True]]),
    ],
)
def test_check_routes_takes_what_can_be_booleans(given):
    table = routes.check_routes("policy p", given, 2, 2)
    assert table.dtype == torch.bool
    assert table.tolist() == [[True, False], [True, True]]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, "got routes .*, which are not 2 rows of 3 booleans"),
        (7, "got routes .*, which are not 2 rows of 3 booleans"),
        ([], "got routes .*, which are not 2 rows of 3 booleans"),
        ([[True] * 3, [True] * 2], "got routes .*, which are not 2 rows of 3 booleans"),
        ([["a"] * 3] * 2, "got routes .*, which are not 2 rows of 3 booleans"),
        ([object(), object()], "got routes .*, which are not 2 rows of 3 booleans"),
        ([[True] * 3], r"got routes of shape \(1, 3\), expected \(2, 3\)"),
        ([[True] * 4] * 2, r"got routes of shape \(2, 4\), expected \(2, 3\)"),
        ([[[True] * 3]] * 2, r"got routes of shape \(2, 1, 3\), expected \(2, 3\)"),
        ([[1, 0, 1]] * 2, r"got routes of dtype torch.int64, expected torch.bool"),
        ([[1.0, 0.0, 1.0]] * 2, r"got routes of dtype torch.float32, expected torch.bool"),
        ([[True] * 3, [False] * 3], "row 1 runs no layer, expected at least one"),
    ],
)
def test_check_routes_errors(given, expected):
    with one_line_error(ValueError, f"^policy mine: {expected}"):
        routes.check_routes("policy mine", given, 2, 3)


# -- TokenProgram ------------------------------------------------------------------------------


def test_a_confidence_program_cannot_be_drawn():
    program = TokenProgram("confidence", exit_layers=(1,))
    rows = torch.arange(2)
    with pytest.raises(ValueError, match="^program kind: got 'confidence'"):
        program.draw(0, rows, rows, 4)


def test_draws_of_a_program_depend_on_the_step():
    program = TokenProgram("subset", budget=4)
    request = torch.arange(32)
    first = program.draw(0, request, torch.full((32,), 1), 8)
    second = program.draw(0, request, torch.full((32,), 2), 8)
    assert (first != second).any(dim=0).sum() > 24
    assert torch.equal(first, program.draw(0, request, torch.full((32,), 1), 8))
