"""Multiple-choice knapsack: one option for each sequence, most quality within a sum of layers.

`exact` solves small inputs. `Frontier` gives the whole curve of quality against cost at scale: it
takes the increments of every sequence's upper hull in order of quality per layer, which is the
Lagrangian relaxation, and says how far below its upper bound a choice can lie. Sinha and Zoltners,
"The multiple-choice knapsack problem", Operations Research 27 (1979).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

# cells of the dynamic program's table of choices; 2 bytes each
MOST_CELLS = 200_000_000


def exact(
    values: Sequence[ArrayLike], costs: Sequence[ArrayLike], capacity: int
) -> tuple[Integers, float]:
    """The best choice and its value: one option of each group, at most `capacity` in all.

    values[i], costs[i]: [K_i], of each option of group i; groups may differ in size, costs are
    whole numbers from 0 on. Returns the options taken, int64 [N], the lowest of equal ones, and the
    sum of their values. Time and memory grow with N x capacity. ValueError for no groups, an empty
    one, costs that are not whole numbers, or a capacity that not even the cheapest options fit.
    """
    groups = _groups(values, costs)
    capacity = min(int(capacity), sum(int(c.max()) for _, c in groups))
    cheapest = sum(int(c.min()) for _, c in groups)
    if capacity < cheapest:
        raise ValueError(f"capacity: got {capacity}, expected {cheapest} or more, the cheapest sum")
    if len(groups) * (capacity + 1) > MOST_CELLS:
        raise ValueError(
            f"capacity: got {capacity} for {len(groups)} groups, too large to be solved exactly; "
            "use Frontier"
        )
    # best[c]: most value of the groups so far at a cost of exactly c
    best = np.full(capacity + 1, -np.inf)
    best[0] = 0.0
    taken = np.zeros((len(groups), capacity + 1), dtype=np.int16)
    for place, (value, cost) in enumerate(groups):
        after = np.full(capacity + 1, -np.inf)
        for option in range(len(value)):
            step = int(cost[option])
            if step > capacity:
                continue
            candidate = best[: capacity + 1 - step] + value[option]
            reached = after[step:]
            better = candidate > reached
            reached[better] = candidate[better]
            taken[place, step:][better] = option
        best = after
    at = int(np.argmax(best))
    value, choice = float(best[at]), np.zeros(len(groups), dtype=np.int64)
    for place in reversed(range(len(groups))):
        choice[place] = taken[place, at]
        at -= int(groups[place][1][choice[place]])
    return choice, value


def _groups(
    values: Sequence[ArrayLike], costs: Sequence[ArrayLike]
) -> list[tuple[Floats, Integers]]:
    if not len(values) or len(values) != len(costs):
        raise ValueError(
            f"groups: got {len(values)} of values and {len(costs)} of costs, expected as many, "
            "at least one"
        )
    groups = []
    for place, pair in enumerate(zip(values, costs, strict=True)):
        value, cost = (np.asarray(part, dtype=np.float64) for part in pair)
        if value.ndim != 1 or value.shape != cost.shape or not value.size:
            raise ValueError(
                f"group {place}: got shapes {value.shape} and {cost.shape}, expected equal ones of "
                "at least one option"
            )
        if not np.isfinite(value).all() or (cost < 0).any() or (cost != np.floor(cost)).any():
            raise ValueError(
                f"group {place}: expected finite values and whole costs from 0 on, got otherwise"
            )
        groups.append((value, cost.astype(np.int64)))
    return groups


@dataclass(frozen=True)
class Solution:
    """A choice of options. choice: int64 [N]. value, cost: means over sequences. bound: a mean
    value that no choice within the capacity exceeds; gap: bound - value, at most one increment.
    """

    choice: Integers
    value: float
    cost: float
    bound: float

    @property
    def gap(self) -> float:
        """How far below the best the value can lie."""
        return max(0.0, self.bound - self.value)


class Frontier:
    """All optimal trade-offs between mean quality and mean cost of N sequences with K options.

    quality: [N, K], what the choice goes by. costs: [K], or [N, K] where they differ between
    sequences. Everything is vectorised over sequences: 50,000 x 24 take about a second.
    ValueError for other shapes or numbers that are not finite.

    sequence, option: of each increment in the order in which a growing capacity takes them.
    gain, price: what it adds in quality and in cost; gain / price never grows along the order.
    start: int64 [N], each sequence's cheapest option, the best of equally cheap ones.
    """

    def __init__(self, quality: ArrayLike, costs: ArrayLike) -> None:
        self.quality, self.costs = _tables(quality, costs)
        count = len(self.quality)
        self.start, steps = _hulls(self.quality, self.costs)
        self.sequence, before, self.option = steps
        rows = self.sequence
        self.gain = self.quality[rows, self.option] - self.quality[rows, before]
        self.price = self.costs[rows, self.option] - self.costs[rows, before]
        # slopes of one sequence fall strictly, and the sort is stable: nothing overtakes within it
        order = np.argsort(-(self.gain / self.price), kind="stable")
        self.sequence, self.option, self._before = rows[order], self.option[order], before[order]
        self.gain, self.price = self.gain[order], self.price[order]
        every = np.arange(count)
        self.least_cost = float(self.costs[every, self.start].mean())
        self.least_value = float(self.quality[every, self.start].mean())
        self._cost = self.least_cost + np.concatenate([[0.0], np.cumsum(self.price)]) / count
        self._value = self.least_value + np.concatenate([[0.0], np.cumsum(self.gain)]) / count

    @property
    def count(self) -> int:
        """Sequences."""
        return len(self.quality)

    @property
    def mean_costs(self) -> Floats:
        """Mean cost after each increment, [M + 1], from the cheapest choice on."""
        return self._cost

    @property
    def mean_values(self) -> Floats:
        """Mean value after each increment, [M + 1]."""
        return self._value

    def steps_within(self, mean_cost: float) -> int:
        """How many increments fit into a mean cost. ValueError below the cheapest choice."""
        # sums of a hundred thousand increments round: a budget that is met to 1e-9 is met
        if mean_cost < self.least_cost - 1e-9:
            raise ValueError(
                f"budget: got {mean_cost:g} layers on average, expected {self.least_cost:g} or more"
            )
        return int(np.searchsorted(self._cost, mean_cost + 1e-9, side="right")) - 1

    def choice_after(self, steps: int) -> Integers:
        """Each sequence's option, int64 [N], once the first `steps` increments are taken."""
        choice = self.start.copy()
        # of several increments of a sequence the last assignment stays, which is the latest
        choice[self.sequence[:steps]] = self.option[:steps]
        return choice

    def at(self, mean_cost: float) -> Solution:
        """The choice within a mean cost, and how far it can lie from the best one."""
        steps = self.steps_within(mean_cost)
        value, cost = float(self._value[steps]), float(self._cost[steps])
        bound = value
        if steps < len(self.gain):
            slope = self.gain[steps] / self.price[steps]
            bound += max(0.0, mean_cost - cost) * float(slope)
        return Solution(self.choice_after(steps), value, cost, bound)

    def cheapest(self, mean_value: float) -> Solution | None:
        """The least mean cost along the frontier that reaches a mean value; None where none does.

        Its `cost` is at most one increment above the least of all choices.
        """
        reached = np.flatnonzero(self._value >= mean_value - 1e-12)
        if not reached.size:
            return None
        steps = int(reached[0])
        value = float(self._value[steps])
        return Solution(self.choice_after(steps), value, float(self._cost[steps]), value)

    def scored(self, scores: ArrayLike) -> tuple[Floats, Floats]:
        """What the frontier's choices are worth by other scores: the base [N] (each sequence's
        cheapest option) and the gain of each increment [M], both in units of `scores` [N, K].
        """
        table = np.asarray(scores, dtype=np.float64)
        if table.shape != self.quality.shape:
            raise ValueError(f"scores: got shape {table.shape}, expected {self.quality.shape}")
        base = table[np.arange(self.count), self.start]
        gain = table[self.sequence, self.option] - table[self.sequence, self._before]
        return base, gain


def _tables(quality: ArrayLike, costs: ArrayLike) -> tuple[Floats, Floats]:
    table = np.asarray(quality, dtype=np.float64)
    if table.ndim != 2 or not table.size:
        raise ValueError(f"quality: got shape {table.shape}, expected [sequences, options]")
    price = np.asarray(costs, dtype=np.float64)
    if price.shape not in (table.shape, table.shape[1:]):
        raise ValueError(
            f"costs: got shape {price.shape}, expected {table.shape[1:]} or {table.shape}"
        )
    if not np.isfinite(table).all() or not np.isfinite(price).all():
        raise ValueError("quality and costs: got a number that is not finite")
    return table, np.broadcast_to(price, table.shape)


def _hulls(quality: Floats, costs: Floats) -> tuple[Integers, tuple[Integers, Integers, Integers]]:
    """Cheapest options [N], and every sequence's rising hull as (sequence, from, to), [M] each.

    Gift wrapping for all sequences at once: at most K rounds over [N, K].
    """
    count = len(quality)
    least = costs.min(axis=1, keepdims=True)
    start = np.where(costs == least, quality, -np.inf).argmax(axis=1)
    at, live = start.copy(), np.arange(count)
    steps: list[tuple[Integers, Integers, Integers]] = []
    while live.size:
        here = at[live]
        rise = quality[live] - quality[live, here][:, None]
        run = costs[live] - costs[live, here][:, None]
        ahead = (run > 0) & (rise > 0)
        slope = np.where(ahead, rise / np.where(ahead, run, 1.0), -np.inf)
        steepest = slope.max(axis=1, keepdims=True)
        # of points on one line the farthest: slopes along the hull then fall strictly
        level = ahead & (slope >= steepest * (1.0 - 1e-12))
        target = np.where(level, run, -np.inf).argmax(axis=1)
        climbs = ahead.any(axis=1)
        live, here, target = live[climbs], here[climbs], target[climbs]
        steps.append((live, here, target))
        at[live] = target
    joined = [np.concatenate(parts) for parts in zip(*steps, strict=True)]
    return start, (joined[0], joined[1], joined[2])
