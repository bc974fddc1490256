"""Planned policies: a route per sequence, known before it decodes (arXiv 2410.20022, sec. 3)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dynkern import rng, routes
from dynkern.runtime.request import PlanRequest


class FixedRoute(ABC):
    """A planned policy whose route depends on the model's depth alone."""

    sees_prompt_state = False

    @abstractmethod
    def route(self, num_layers: int) -> Tensor:
        """The route, bool [num_layers]; ValueError where the policy does not fit the model."""

    def check(self, num_layers: int) -> None:
        """Raise a one-line ValueError unless the policy fits a model of num_layers."""
        self.route(num_layers)

    def plan(self, requests: Sequence[PlanRequest]) -> list[Tensor]:
        """The same route for every request."""
        return [self.route(requests[0].num_layers)] * len(requests) if requests else []


@dataclass(frozen=True)
class Full(FixedRoute):
    """Every layer."""

    @property
    def spec(self) -> str:
        """Canonical spec string."""
        return "full"

    def route(self, num_layers: int) -> Tensor:
        return routes.full(num_layers)


@dataclass(frozen=True)
class Uniform(FixedRoute):
    """`budget` evenly spread layers, nested over budgets."""

    budget: int

    @property
    def spec(self) -> str:
        """Canonical spec string."""
        return f"uniform:{self.budget}"

    def route(self, num_layers: int) -> Tensor:
        return routes.uniform(num_layers, self.budget)


@dataclass(frozen=True)
class UniformEven(FixedRoute):
    """Every (L / budget)-th layer from 0: the published 12-of-24 pattern."""

    budget: int

    @property
    def spec(self) -> str:
        """Canonical spec string."""
        return f"uniform-even:{self.budget}"

    def route(self, num_layers: int) -> Tensor:
        return routes.uniform_even(num_layers, self.budget)


@dataclass(frozen=True)
class EarlyExit(FixedRoute):
    """Layers 0..exit_layer."""

    exit_layer: int

    @property
    def spec(self) -> str:
        """Canonical spec string."""
        return f"early_exit:{self.exit_layer}"

    def route(self, num_layers: int) -> Tensor:
        return routes.early_exit(num_layers, self.exit_layer)


@dataclass(frozen=True)
class Random:
    """A uniformly random subset of `budget` layers for each sequence, layer 0 optionally forced.

    The subset depends on the seed and the request's id only.
    """

    budget: int
    force_first: bool = False
    sees_prompt_state: ClassVar[bool] = False

    @property
    def spec(self) -> str:
        """Canonical spec string."""
        return f"random:{self.budget}" + (",force_first=1" if self.force_first else "")

    def check(self, num_layers: int) -> None:
        """Raise a one-line ValueError unless the budget fits a model of num_layers."""
        routes.check_budget("random budget", self.budget, num_layers)

    def plan(self, requests: Sequence[PlanRequest]) -> list[Tensor]:
        """One subset a request."""
        first = requests[0]
        self.check(first.num_layers)
        ids = torch.tensor([request.id for request in requests])
        scores = rng.layer_uniforms(first.seed, ids, 0, first.num_layers, rng.STREAM_PLAN)
        return list(routes.smallest_subset(scores, self.budget, self.force_first).T)
