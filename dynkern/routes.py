"""Route arithmetic: which layers a row runs, as plain data that every room understands.

A route is a boolean per layer, True = run. Rows of a batch are columns: keep[l, i]. Counting and
orders follow arXiv 2410.20022 and its published configurations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from dynkern import rng
from dynkern.arguments import check_flag, check_integer, check_number, shown

KV_FILLS = ("project", "copy", "deferred", "mask")
PREFILLS = ("full", "routed")


def check_choice(argument: str, given: object, allowed: Sequence[str]) -> None:
    """Raise a one-line ValueError unless `given` is one of `allowed`."""
    if not isinstance(given, str) or given not in allowed:
        raise ValueError(f"{argument}: got {shown(given)}, expected one of {', '.join(allowed)}")


def check_budget(argument: str, budget: int, num_layers: int) -> None:
    """Raise a one-line ValueError unless 1 <= budget <= num_layers."""
    check_integer("num_layers", num_layers, 1)
    check_integer(argument, budget, 1, num_layers, f"1 to {num_layers} layers")


def uniform_order(num_layers: int) -> list[int]:
    """Layers in the order in which growing budgets add them: 0, L-1, midpoints of the widest gap.

    The midpoint is rounded down and the lowest gap wins a tie, so the first K entries are evenly
    spread and the set for K is contained in the set for K + 1.
    """
    check_integer("num_layers", num_layers, 1)
    order = [0] if num_layers == 1 else [0, num_layers - 1]
    while len(order) < num_layers:
        present = sorted(order)
        gaps = [(right - left, left) for left, right in zip(present, present[1:], strict=False)]
        width, left = max(gaps, key=lambda gap: (gap[0], -gap[1]))
        order.append(left + width // 2)
    return order


def from_layers(layers: Sequence[int], num_layers: int) -> Tensor:
    """Route [num_layers] that runs exactly `layers`; ValueError for none, or one out of range."""
    check_integer("num_layers", num_layers, 1)
    layers = [check_integer("layers", layer, 0, num_layers - 1) for layer in layers]
    if not layers:
        raise ValueError("layers: got none, expected at least one")
    route = torch.zeros(num_layers, dtype=torch.bool)
    route[layers] = True
    return route


def full(num_layers: int) -> Tensor:
    """Route that runs every layer."""
    check_integer("num_layers", num_layers, 1)
    return torch.ones(num_layers, dtype=torch.bool)


def uniform(num_layers: int, budget: int) -> Tensor:
    """Nested, evenly spread route of `budget` layers (see uniform_order)."""
    check_budget("uniform budget", budget, num_layers)
    return from_layers(uniform_order(num_layers)[:budget], num_layers)


def uniform_even(num_layers: int, budget: int) -> Tensor:
    """Every (L / budget)-th layer from 0: the published 12-of-24 pattern (the last layer goes)."""
    check_budget("uniform-even budget", budget, num_layers)
    if num_layers % budget:
        raise ValueError(
            f"uniform-even budget: got {budget}, expected a divisor of the {num_layers} layers"
        )
    return from_layers(range(0, num_layers, num_layers // budget), num_layers)


def early_exit(num_layers: int, exit_layer: int) -> Tensor:
    """Layers 0..exit_layer, then the final norm and the LM head."""
    check_integer("num_layers", num_layers, 1)
    check_integer("early_exit layer", exit_layer, 0, num_layers - 1)
    return from_layers(range(exit_layer + 1), num_layers)


def smallest_subset(scores: Tensor, budget: int, force_first: bool = False) -> Tensor:
    """Keep bits of the `budget` smallest scores of each column; the lower layer wins a tie.

    scores: [L, B]. With force_first, layer 0 is always among them.
    """
    if force_first:
        scores = scores.clone()
        scores[0].fill_(-1.0)
    chosen = scores.argsort(dim=0, stable=True)[:budget]
    keep = torch.zeros_like(scores, dtype=torch.bool)
    return keep.scatter_(0, chosen, torch.ones_like(chosen, dtype=torch.bool))


def copy_source(keep: Tensor, alive: Tensor) -> Tensor:
    """Source layer of copy-forward for every layer and row: int32 [L, B], -1 for no copy.

    keep: bool [L, B]; alive: bool [B]. The source is the nearest layer below that ran, above for
    leading skips. Layers that ran and rows that are not alive copy nothing.
    """
    num_layers = keep.shape[0]
    layer = torch.arange(num_layers, device=keep.device)[:, None]
    below = torch.where(keep, layer, -1).cummax(dim=0).values
    above = torch.where(keep, layer, num_layers).amin(dim=0, keepdim=True)
    source = torch.where(below >= 0, below, above)
    copies = ~keep & alive[None, :] & (source < num_layers)
    return torch.where(copies, source, -1).to(torch.int32)


def is_nested(routes: Tensor) -> bool:
    """Whether the rows of routes [B, L] form a chain under inclusion."""
    ordered = routes[routes.sum(dim=1).argsort()]
    return bool((ordered[:-1] <= ordered[1:]).all())


def check_routes(name: str, routes: object, rows: int, num_layers: int) -> Tensor:
    """Planned routes as a bool tensor [rows, num_layers]; a ValueError, one line, names `name`."""
    try:
        table = torch.stack([torch.as_tensor(route) for route in routes])  # type: ignore[union-attr]
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{name}: got routes {shown(routes)}, which are not {rows} rows of {num_layers} "
            f"booleans, as expected ({reason})"
        ) from None
    if table.shape != (rows, num_layers):
        raise ValueError(
            f"{name}: got routes of shape {tuple(table.shape)}, expected ({rows}, {num_layers})"
        )
    if table.dtype != torch.bool:
        raise ValueError(f"{name}: got routes of dtype {table.dtype}, expected torch.bool")
    if table.layout != torch.strided or table.device.type not in ("cpu", "cuda"):
        raise ValueError(
            f"{name}: got routes of layout {table.layout} on device {table.device}, expected "
            "torch.strided on cpu or cuda"
        )
    empty = (~table.any(dim=1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"{name}: row {empty[0]} runs no layer, expected at least one")
    return table.cpu()


@lru_cache(maxsize=64)
def _column(numbers: tuple[float, ...], device: torch.device) -> Tensor:
    # copied to a device once: in a captured pass there can be no copy from the host
    return torch.tensor(numbers)[:, None].to(device)


@dataclass(frozen=True)
class TokenProgram:
    """What a token policy asks of an executor: declarative data that each executor lowers.

    kind "bernoulli": layer l of every row runs with probability[l], drawn afresh in every pass.
    kind "subset": `budget` uniformly random layers, redrawn in every pass for every row.
    kind "confidence": after each layer of `exit_layers` a row whose `measure` reaches `threshold`
    leaves; measure is "top_prob", "margin" (top-2 difference of probabilities) or "cosine"
    (similarity of the hidden states before and after that layer). CALM, arXiv 2207.07061, sec. 3.
    kind "controller": `gates`, a controller_file.GateStack, decide ahead of each layer.
    """

    kind: Literal["bernoulli", "subset", "confidence", "controller"]
    probability: tuple[float, ...] = ()
    budget: int = 0
    force_first: bool = False
    measure: Literal["top_prob", "margin", "cosine"] = "top_prob"
    threshold: float = 1.0
    exit_layers: tuple[int, ...] = field(default=())
    gates: Any = None

    def check(self, name: str, num_layers: int) -> None:
        """Raise a one-line ValueError, which names `name`, unless a model of num_layers runs it."""
        check_choice(f"{name} kind", self.kind, ("bernoulli", "subset", "confidence", "controller"))
        check_flag(f"{name} force_first", self.force_first)
        if self.kind == "subset":
            check_budget(f"{name} budget", self.budget, num_layers)
        elif self.kind == "bernoulli":
            if len(self.probability) != num_layers:
                raise ValueError(
                    f"{name} probability: got {len(self.probability)} numbers, expected "
                    f"{num_layers}, one a layer"
                )
            for chance in self.probability:
                check_number(
                    f"{name} probability", chance, lambda p: 0 <= p <= 1, "numbers from 0 to 1"
                )
            if not any(self.probability):
                raise ValueError(f"{name} probability: got 0 for every layer, expected one above")
        elif self.kind == "confidence":
            check_choice(f"{name} measure", self.measure, ("top_prob", "margin", "cosine"))
            check_number(f"{name} threshold", self.threshold, lambda x: True, "a finite number")
            for layer in self.exit_layers:
                check_integer(f"{name} exit_layers", layer, 0, num_layers - 2)

    def draw(self, seed: int, request: Tensor, token: Tensor, num_layers: int) -> Tensor:
        """Keep bits [num_layers, B] of one pass; only for kinds that look at no hidden state."""
        scores = rng.layer_uniforms(seed, request, token, num_layers, rng.STREAM_STEP)
        if self.kind == "subset":
            return smallest_subset(scores, self.budget, self.force_first)
        if self.kind == "bernoulli":
            return scores < _column(self.probability, scores.device)
        raise ValueError(f"program kind: got {self.kind!r}, expected bernoulli or subset")
