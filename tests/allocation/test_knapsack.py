"""Allocation against brute force, bounds that hold, and inputs that make no sense."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from dynkern.allocation.knapsack import Frontier, exact


def brute_force(values, costs, capacity):
    """The most value of any choice, and every choice that has it."""
    best, which = -np.inf, []
    for choice in itertools.product(*(range(len(group)) for group in values)):
        if sum(costs[i][k] for i, k in enumerate(choice)) > capacity:
            continue
        value = sum(values[i][k] for i, k in enumerate(choice))
        if value > best + 1e-12:
            best, which = value, []
        if value >= best - 1e-12:
            which.append(choice)
    return best, which


def random_case(generator, integral: bool):
    """Groups of differing sizes with costs that repeat, and values of either sign."""
    sizes = generator.integers(1, 6, size=generator.integers(1, 6))
    costs = [generator.integers(0, 9, size=size).tolist() for size in sizes]
    draw = generator.integers if integral else generator.uniform
    values = [draw(-3, 8, size=size).tolist() for size in sizes]
    least = sum(min(group) for group in costs)
    most = sum(max(group) for group in costs)
    return values, costs, int(generator.integers(least, most + 3))


@pytest.mark.parametrize("seed", range(8))
def test_exact_equals_brute_force(seed):
    generator = np.random.default_rng(seed)
    for case in range(60):
        values, costs, capacity = random_case(generator, integral=case % 2 == 0)
        best, which = brute_force(values, costs, capacity)
        choice, value = exact(values, costs, capacity)
        assert value == pytest.approx(best, abs=1e-9)
        assert tuple(choice.tolist()) in which


def test_the_capacity_holds_for_the_first_group_too():
    # the first group's best option alone exceeds the capacity
    choice, value = exact([[0.1, 0.9], [0.2, 0.8]], [[1, 9], [1, 3]], 4)
    assert (choice.tolist(), value) == ([0, 1], pytest.approx(0.9))
    generator = np.random.default_rng(7)
    for _ in range(200):
        values, costs, _ = random_case(generator, integral=False)
        values[0], costs[0] = [1.0, 50.0], [1, 30]
        capacity = sum(min(group) for group in costs) + int(generator.integers(0, 12))
        choice, value = exact(values, costs, capacity)
        assert choice[0] == 0
        assert sum(group[k] for group, k in zip(costs, choice, strict=True)) <= capacity
        assert value == pytest.approx(brute_force(values, costs, capacity)[0], abs=1e-9)


@pytest.mark.parametrize("shared_costs", [True, False])
def test_the_frontier_is_within_its_bound_of_the_best(shared_costs):
    generator = np.random.default_rng(3)
    tight = 0
    for _ in range(150):
        count, options = generator.integers(1, 9), generator.integers(1, 7)
        quality = np.round(generator.uniform(0, 1, (count, options)), 2)
        shape = options if shared_costs else (count, options)
        costs = generator.integers(1, 13, size=shape)
        spread = np.broadcast_to(costs, quality.shape)
        frontier = Frontier(quality, costs)
        low, high = spread.min(axis=1).sum(), spread.max(axis=1).sum()
        for capacity in generator.integers(low, high + 1, size=4):
            found = frontier.at(capacity / count)
            assert spread[np.arange(count), found.choice].sum() <= capacity
            scored = quality[np.arange(count), found.choice].mean()
            assert found.value == pytest.approx(scored, abs=1e-9)
            _, best = exact(list(quality), list(spread), int(capacity))
            assert found.value <= best / count + 1e-9 <= found.bound + 2e-9
            most = frontier.gain.max() if frontier.gain.size else 0.0
            assert found.gap <= most / count + 1e-9
            tight += found.value >= best / count - 1e-9
    assert tight > 200  # the hull alone is the best choice more often than not


def test_every_corner_of_the_frontier_is_optimal_for_its_cost():
    generator = np.random.default_rng(5)
    for _ in range(40):
        quality = generator.uniform(0, 1, (6, 5))
        costs = np.arange(1, 6)
        frontier = Frontier(quality, costs)
        for steps in range(len(frontier.gain) + 1):
            choice = frontier.choice_after(steps)
            _, best = exact(list(quality), [costs] * 6, int(costs[choice].sum()))
            assert quality[np.arange(6), choice].sum() == pytest.approx(best, abs=1e-9)
            assert frontier.mean_values[steps] == pytest.approx(best / 6, abs=1e-9)
            assert frontier.mean_costs[steps] == pytest.approx(costs[choice].mean(), abs=1e-9)


def test_cheapest_is_the_least_cost_that_reaches_a_value():
    generator = np.random.default_rng(9)
    for _ in range(60):
        quality = generator.uniform(0, 1, (5, 6))
        costs = np.arange(1, 7)
        wanted = quality[:, -1].mean()
        found = Frontier(quality, costs).cheapest(wanted)
        assert found.value >= wanted - 1e-12
        least = next(
            total
            for total in range(5, 31)
            if exact(list(quality), [costs] * 5, total)[1] / 5 >= wanted - 1e-12
        )
        widest = 5  # one increment
        assert least <= found.cost * 5 + 1e-9 <= least + widest
    assert Frontier([[0.1, 0.2]], [1, 2]).cheapest(0.3) is None


def test_equal_options_take_the_fewest_layers():
    frontier = Frontier([[0.5, 0.5, 0.5], [0.2, 0.2, 0.9]], [1, 2, 3])
    assert frontier.at(3.0).choice.tolist() == [0, 2]
    assert frontier.at(3.0).cost == 2.0


def test_scored_by_another_table():
    generator = np.random.default_rng(11)
    chosen, other = generator.uniform(0, 1, (2, 30, 7))
    frontier = Frontier(chosen, np.arange(7))
    base, gain = frontier.scored(other)
    for steps in (0, 5, len(gain)):
        choice = frontier.choice_after(steps)
        expected = other[np.arange(30), choice].sum()
        assert base.sum() + gain[:steps].sum() == pytest.approx(expected, abs=1e-9)


def test_fifty_thousand_sequences():
    generator = np.random.default_rng(0)
    quality = generator.uniform(0, 1, (50_000, 24)) + np.linspace(0, 0.3, 24)
    frontier = Frontier(quality, np.arange(1, 25))
    for budget in (1.0, 5.6, 12.0, 24.0):
        found = frontier.at(budget)
        assert found.cost <= budget + 1e-9
        assert found.gap <= 1.3 / 50_000
    assert np.array_equal(frontier.at(24.0).choice, quality.argmax(axis=1))


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: exact([], [], 3), "groups: got 0"),
        (lambda: exact([[1.0]], [[1], [2]], 3), "groups: got 1 of values and 2"),
        (lambda: exact([[1.0, 2.0]], [[1]], 3), "group 0: got shapes"),
        (lambda: exact([[1.0]], [[1.5]], 3), "whole costs"),
        (lambda: exact([[1.0]], [[-1]], 3), "whole costs"),
        (lambda: exact([[float("nan")]], [[1]], 3), "finite values"),
        (lambda: exact([[1.0]], [[4]], 3), "capacity: got 3, expected 4 or more"),
        (lambda: Frontier([1.0], [1.0]), "quality: got shape"),
        (lambda: Frontier([[1.0, 2.0]], [1.0]), "costs: got shape"),
        (lambda: Frontier([[1.0, float("inf")]], [1, 2]), "not finite"),
        (lambda: Frontier([[1.0, 2.0]], [2, 3]).at(1.9), "budget: got 1.9"),
        (lambda: Frontier([[1.0, 2.0]], [2, 3]).scored([[1.0]]), "scores: got shape"),
    ],
)
def test_bad_input(call, named):
    with pytest.raises(ValueError, match=named) as caught:
        call()
    assert "\n" not in str(caught.value)
