"""Planned policies made of a table: the oracle, the predictor, and the same budgets at random."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dynkern import rng
from dynkern.allocation.knapsack import Frontier
from dynkern.allocation.predictor import Predictor, Price, load_predictor
from dynkern.allocation.schema import digest_ids
from dynkern.allocation.table import Table, load_table
from dynkern.allocation.training import parse_budget
from dynkern.assets import DEFAULT_MODEL, PREDICTOR_FOLDER, bundle_path
from dynkern.runtime.request import PlanRequest


class _FromRoutes:
    """Routes of one family, which a policy chooses among."""

    def __init__(self, spec: str, keep: Sequence[Sequence[bool]]) -> None:
        self.spec = spec
        self.routes = [torch.tensor(route) for route in keep]

    def check(self, num_layers: int) -> None:
        """Raise a one-line ValueError unless it was made for a model of num_layers."""
        own = len(self.routes[0])
        if own != num_layers:
            raise ValueError(
                f"policy {self.spec}: made for {own} layers, but the model has {num_layers}"
            )


class Oracle(_FromRoutes):
    """Each prompt of a table gets the route that the allocation gives it; prompts go by their ids.

    budget: mean layers over the table's prompts, or None for the least that equal full depth.
    """

    sees_prompt_state = False

    def __init__(self, table: Table, budget: float | None, spec: str) -> None:
        super().__init__(spec, table.routes.keep)
        digests, choice = allocated(table, budget)
        self.choice = dict(zip(digests, choice.tolist(), strict=True))

    def plan(self, requests: Sequence[PlanRequest]) -> list[Tensor]:
        """The route of each request's prompt. ValueError, one line, for an unknown prompt."""
        return [self.routes[self._place(request)] for request in requests]

    def _place(self, request: PlanRequest) -> int:
        place = self.choice.get(digest_ids(request.prompt_ids))
        if place is None:
            raise ValueError(
                f"policy {self.spec}: the prompt of request {request.id} is not in the table; fill "
                "one with the same data, template and room for new tokens, or use predictor:PATH"
            )
        return place


class Predicted(_FromRoutes):
    """Each prompt gets the route that a predictor chooses from its length and prefill state."""

    def __init__(self, predictor: Predictor, price: Price, spec: str) -> None:
        super().__init__(spec, predictor.keep)
        self.predictor, self.price = predictor, price

    def plan(self, requests: Sequence[PlanRequest]) -> list[Tensor]:
        """A route for each request. ValueError, one line, where the prompt's state is missing."""
        lengths = [len(request.prompt_ids) for request in requests]
        predicted = self.predictor.predict(lengths, self._states(requests))
        digests = [digest_ids(request.prompt_ids) for request in requests]
        places = self.predictor.choose(predicted, digests, self.price)
        return [self.routes[place] for place in places]

    def _states(self, requests: Sequence[PlanRequest]) -> NDArray[np.float64] | None:
        wanted = self.predictor.state_size
        if not wanted:
            return None
        states = [request.prompt_state for request in requests]
        if any(state is None for state in states):
            raise ValueError(
                f"policy {self.spec}: reads the state of a full prefill, got none; use "
                "prefill='full'"
            )
        # rows of a batch must come out as they would alone: in double, no rounding decides
        table = torch.stack([s for s in states if s is not None]).double().cpu().numpy()
        if table.shape[1] != wanted:
            raise ValueError(
                f"policy {self.spec}: made for states of {wanted} numbers, got {table.shape[1]}"
            )
        return table


class Histogram(_FromRoutes):
    """Routes drawn with given shares, [R], by seed and request id: the control of the others."""

    sees_prompt_state = False

    def __init__(
        self, keep: Sequence[Sequence[bool]], shares: NDArray[np.float64], spec: str
    ) -> None:
        super().__init__(spec, keep)
        self.edges = np.cumsum(shares) / np.sum(shares)

    def plan(self, requests: Sequence[PlanRequest]) -> list[Tensor]:
        """A route for each request."""
        ids = torch.tensor([request.id for request in requests])
        draws = rng.uniform(requests[0].seed, ids, 0, 0, rng.STREAM_PLAN).numpy()
        # a share of zero is never drawn: draws lie in [0, 1)
        places = np.searchsorted(self.edges, draws.astype(np.float64), side="right")
        return [self.routes[min(int(place), len(self.routes) - 1)] for place in places]


def allocated(table: Table, budget: float | None) -> tuple[list[str], NDArray[np.int64]]:
    """Digests of a table's prompts and the route of each: the best within mean layers `budget`, or
    the cheapest as good as full depth (None). ValueError for a budget below the cheapest route.
    """
    digests, quality = table.merged()
    frontier = Frontier(quality, table.costs)
    if budget is not None:
        return digests, frontier.at(budget).choice
    found = frontier.cheapest(float(quality[:, -1].mean()))
    assert found is not None  # the full route is among the options
    return digests, found.choice


def build(name: str, argument: str) -> Oracle | Predicted | Histogram | None:
    """The policy of a spec `name:argument`; None where the argument is malformed."""
    if not argument:
        return None
    spec = f"{name}:{argument}"
    budget, at, path = argument.partition("@")
    # a path may hold the sign too
    budgeted = bool(at and path) and _is_budget(budget)
    if name == "predictor":
        predictor = _predictor(path if budgeted else argument)
        price = predictor.price
        if budgeted and (wanted := parse_budget(budget, predictor.num_layers)) is not None:
            price = predictor.price_at(wanted)
        return Predicted(predictor, price, spec)
    if name == "histogram" and not budgeted:
        predictor = _predictor(argument)
        return Histogram(predictor.keep, predictor.histogram, spec)
    if not at or not path:
        return None
    table = load_table(path)
    wanted = parse_budget(budget, table.num_layers)
    if name == "oracle":
        return Oracle(table, wanted, spec)
    _, choice = allocated(table, wanted)
    shares = np.bincount(choice, minlength=len(table.routes.keep)) / len(choice)
    return Histogram(table.routes.keep, shares, spec)


def _predictor(path: str) -> Predictor:
    """Of a folder, or the bundled model's."""
    return load_predictor(bundle_path() / PREDICTOR_FOLDER if path == DEFAULT_MODEL else path)


def _is_budget(text: str) -> bool:
    try:
        return text == "equal" or float(text) == float(text)
    except ValueError:
        return False
