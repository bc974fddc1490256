"""Quality against mean layers: the oracle, its honest estimates, and one route for everybody."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dynkern.allocation.bootstrap import RESAMPLES, interval, weights
from dynkern.allocation.knapsack import Frontier, Solution
from dynkern.allocation.table import Table

Floats = NDArray[np.float64]

# of a layer, between points of the curve
STEP = 0.25


@dataclass(frozen=True)
class Curve:
    """Mean quality at each mean number of layers, [G], with its 95 % interval, [2, G]."""

    quality: Floats
    ci: Floats


@dataclass(frozen=True)
class EqualQuality:
    """The least mean layers at which a curve reaches full depth's quality; None where it never
    does. ci: 95 % interval (of the resamples that reach it), None alike.
    """

    mean_layers: float | None
    ci: tuple[float, float] | None


@dataclass(frozen=True)
class Allocation:
    """What a table says about giving each sequence its own route.

    mean_layers: [G]. oracle: chosen by the very scores it is judged by, an upper bound. gap: [G],
    how far the oracle's choice can lie below the best one. held_out: chosen on half of the samples,
    judged on the other, mean of both ways; None with one sample. histogram: the oracle's budgets
    dealt out at random. one_route: the same route for everybody, between routes a mix at random.
    routes: [R] mean quality of each route, with its interval.
    solution: the oracle's choice at equal quality, or at the most that there is.
    """

    full_quality: float
    full_ci: tuple[float, float]
    mean_layers: Floats
    oracle: Curve
    gap: Floats
    held_out: Curve | None
    histogram: Curve
    one_route: Curve
    routes: Curve
    equal: dict[str, EqualQuality]
    solution: Solution
    frontier: Frontier


def allocate(table: Table, resamples: int = RESAMPLES, seed: int = 0) -> Allocation:
    """The whole analysis; all resampling is over sequences, and the oracle chooses anew in each."""
    quality, costs = table.mean_quality, table.costs
    frontier = Frontier(quality, costs)
    ways = [_Way(frontier, quality)]
    samples = table.quality.shape[2]
    if samples > 1:
        halves = [table.quality[:, :, part::2].mean(axis=2) for part in (0, 1)]
        ways += [_Way(Frontier(chosen, costs), scored) for chosen, scored in (halves, halves[::-1])]
    grid = np.arange(np.ceil(costs.min() / STEP), np.floor(costs.max() / STEP) + 1) * STEP
    found = [frontier.at(budget) for budget in grid]
    shares = np.stack([np.bincount(f.choice, minlength=len(costs)) for f in found])
    shares = shares / len(quality)
    draws = _Draws(ways, grid, shares, costs, quality)
    point = draws.of(np.full((1, len(quality)), 1.0 / len(quality)))
    resampled = [draws.of(w) for w in weights(len(quality), resamples, seed)]
    names = list(point)
    spread = {name: interval(np.concatenate([part[name] for part in resampled])) for name in names}

    def curve(name: str) -> Curve:
        return Curve(point[name][0], spread[name])

    equal = {
        name: _equal(point[f"equal {name}"][0], spread[f"equal {name}"])
        for name in ("oracle", "held_out", "one_route", "histogram")
        if f"equal {name}" in point
    }
    full = float(point["full"][0])
    low, high = spread["full"]
    solution = frontier.cheapest(full) or frontier.at(float(costs.max()))
    return Allocation(
        full_quality=full,
        full_ci=(float(low), float(high)),
        mean_layers=grid,
        oracle=curve("oracle"),
        gap=np.array([f.gap for f in found]),
        held_out=curve("held_out") if samples > 1 else None,
        histogram=curve("histogram"),
        one_route=curve("one_route"),
        routes=curve("routes"),
        equal=equal,
        solution=solution,
        frontier=frontier,
    )


class _Way:
    """A frontier, and what its increments are worth by the scores that judge it."""

    def __init__(self, frontier: Frontier, scores: Floats) -> None:
        self.frontier = frontier
        self.base, self.gain = frontier.scored(scores)
        self.base_cost = frontier.costs[np.arange(frontier.count), frontier.start]

    def curve(self, weight: Floats, grid: Floats) -> tuple[Floats, Floats, Floats]:
        """Cost and value after each increment, [M + 1], and the value within each budget [G]."""
        drawn = weight[self.frontier.sequence]
        cost = _sums(weight @ self.base_cost, drawn * self.frontier.price)
        value = _sums(weight @ self.base, drawn * self.gain)
        at = np.searchsorted(cost, grid + 1e-9, side="right") - 1
        return cost, value, value[np.maximum(at, 0)]


def _sums(first: float, steps: Floats) -> Floats:
    return np.concatenate([[first], first + np.cumsum(steps)])


class _Draws:
    """Every number of the analysis for given weights of the sequences."""

    def __init__(
        self, ways: list[_Way], grid: Floats, shares: Floats, costs: Floats, quality: Floats
    ) -> None:
        self.ways, self.grid, self.shares = ways, grid, shares
        self.costs, self.quality = costs, quality

    def of(self, weight: Floats) -> dict[str, Floats]:
        """weight: [b, N]. Curves [b, G], and numbers [b]."""
        routes = weight @ self.quality
        full = routes[:, -1]
        found = {"full": full, "routes": routes, "histogram": routes @ self.shares.T}
        best = [one_route(self.costs, row, self.grid) for row in routes]
        found["one_route"] = np.stack(best)
        oracle, equal, held_out = [], [], []
        for row, wanted in zip(weight, full, strict=True):
            cost, value, at_grid = self.ways[0].curve(row, self.grid)
            oracle.append(at_grid)
            reached = value >= wanted - 1e-12
            equal.append(cost[reached.argmax()] if reached.any() else np.nan)
            if self.ways[1:]:
                parts = [way.curve(row, self.grid)[2] for way in self.ways[1:]]
                held_out.append(np.mean(parts, axis=0))
        found |= {"oracle": np.stack(oracle), "equal oracle": np.array(equal)}
        if held_out:
            found["held_out"] = np.stack(held_out)
        for name in ("held_out", "one_route", "histogram"):
            if name in found:
                crossed = zip(found[name], full, strict=True)
                found[f"equal {name}"] = np.array([_crossing(self.grid, c, f) for c, f in crossed])
        return found


def one_route(costs: Floats, means: Floats, grid: Floats) -> Floats:
    """Mean quality [G] when all sequences share one of the routes, or a random mix of two routes of
    neighbouring costs. costs, means: [R].
    """
    levels = np.unique(costs)
    best = np.array([means[costs == level].max() for level in levels])
    return np.interp(grid, levels, best)


def _crossing(grid: Floats, values: Floats, wanted: float) -> float:
    """Where a curve first reaches a value, between points along the line that joins them."""
    reached = np.flatnonzero(values >= wanted - 1e-12)
    if not reached.size:
        return np.nan
    at = int(reached[0])
    if at == 0:
        return float(grid[0])
    low, high = values[at - 1], values[at]
    return float(grid[at - 1] + (grid[at] - grid[at - 1]) * (wanted - low) / (high - low))


def _equal(mean_layers: float, ci: Floats) -> EqualQuality:
    if np.isnan(mean_layers):
        return EqualQuality(None, None)
    return EqualQuality(float(mean_layers), (float(ci[0]), float(ci[1])))
