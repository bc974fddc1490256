"""Families of routes: what the table tries on every prompt, cheapest first."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dynkern import rng, routes
from dynkern.arguments import shown
from dynkern.files import check_readable

FAMILIES = ("uniform", "even", "early-exit", "random", "greedy")
FILE = "file:"

# more digits than an int is read from are no number of layers
_RANGE = re.compile(r"(\d{1,18})(?:\.\.(\d{1,18}|L)(?::(\d{1,18}))?)?|(L)", re.ASCII)


@dataclass(frozen=True)
class RouteSet:
    """Distinct routes of one family. names: of each; keep: which layers it runs. Sorted by layers
    run; the last one is the full route.
    """

    family: str
    names: tuple[str, ...]
    keep: tuple[tuple[bool, ...], ...]

    @property
    def budgets(self) -> list[int]:
        """Layers that each route runs."""
        return [sum(route) for route in self.keep]

    @property
    def num_layers(self) -> int:
        """Layers of the model."""
        return len(self.keep[0])


def check_family(family: str) -> None:
    """Raise a one-line ValueError unless `family` is one of FAMILIES or file:PATH."""
    if family.startswith(FILE) and family != FILE:
        return
    if family not in FAMILIES:
        raise ValueError(
            f"family: got {family!r}, expected one of {', '.join(FAMILIES)} or file:PATH"
        )


def parse_budgets(text: str, num_layers: int) -> list[int]:
    """Budgets from "1..12", "1,3,6", "2..24:2" or a list of these; L is the number of layers.

    Ascending, each once. ValueError where the text is malformed or a budget not 1 to num_layers.
    """
    found: set[int] = set()
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        if match is None:
            raise ValueError(
                f"budgets: got {shown(text)}, expected e.g. 1..{num_layers}, 1,3,6 or 2..L"
            )
        low, high, step, alone = match.groups()
        first = num_layers if alone else int(low)
        last = first if high is None else num_layers if high == "L" else int(high)
        stride = int(step or 1)
        if last < first or stride < 1:
            raise ValueError(f"budgets: got {part!r}, expected a rising range")
        for budget in (first, last):
            routes.check_budget("budgets", budget, num_layers)
        found.update(range(first, last + 1, stride))
    return sorted(found)


def make_routes(
    family: str,
    num_layers: int,
    budgets: str | None = None,
    seed: int = 0,
    order: Sequence[int] | None = None,
) -> RouteSet:
    """The routes of a family; the full route always comes on top, for comparison.

    family: "uniform" (nested, evenly spread), "even" (every L/K-th layer, K dividing L),
    "early-exit" (the first K), "random" (nested along one random order of the layers, drawn by
    `seed`), "greedy" (nested along `order`, all layers from the one kept longest to the first
    dropped) or "file:PATH" (see read_routes; budgets pick among its routes). budgets: as
    parse_budgets, by default all that the family has. ValueError, one line, on anything else.
    """
    check_family(family)
    if family.startswith(FILE):
        named = read_routes(Path(family[len(FILE) :]), num_layers)
        if budgets is not None:
            wanted = set(parse_budgets(budgets, num_layers))
            named = [(name, keep) for name, keep in named if sum(keep) in wanted]
            if not named:
                raise ValueError(f"budgets: got {budgets}, which no route of {family} has")
        return _route_set(family, named, num_layers)
    if budgets is not None:
        chosen = parse_budgets(budgets, num_layers)
    elif family == "even":
        chosen = [k for k in range(1, num_layers + 1) if num_layers % k == 0]
    else:
        chosen = list(range(1, num_layers + 1))
    named = [(str(k), _route(family, num_layers, k, seed, order)) for k in chosen]
    return _route_set(family, named, num_layers)


def random_order(num_layers: int, seed: int) -> list[int]:
    """All layers in an order drawn by `seed`; the family "random" keeps its first K."""
    scores = rng.layer_uniforms(seed, torch.zeros(1).long(), 0, num_layers, rng.STREAM_PLAN)
    return scores[:, 0].argsort(stable=True).tolist()


def _route(
    family: str, num_layers: int, budget: int, seed: int, order: Sequence[int] | None
) -> tuple[bool, ...]:
    if family == "uniform":
        route = routes.uniform(num_layers, budget)
    elif family == "even":
        route = routes.uniform_even(num_layers, budget)
    elif family == "early-exit":
        route = routes.early_exit(num_layers, budget - 1)
    else:
        layers = random_order(num_layers, seed) if family == "random" else order
        if layers is None or sorted(layers) != list(range(num_layers)):
            raise ValueError(f"order: got {layers}, expected all {num_layers} layers once")
        route = routes.from_layers(layers[:budget], num_layers)
    return tuple(route.tolist())


def _route_set(
    family: str, named: Sequence[tuple[str, tuple[bool, ...]]], num_layers: int
) -> RouteSet:
    by_route = {keep: name for name, keep in reversed(named)}
    full = (True,) * num_layers
    by_route.setdefault(full, str(num_layers))
    names = list(by_route.values())
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"routes: the name {twice!r} stands for two routes, expected one")
    # the full route last, whatever else runs as many layers (nothing can)
    order = sorted(by_route, key=lambda keep: (sum(keep), [not bit for bit in keep]))
    return RouteSet(family, tuple(by_route[keep] for keep in order), tuple(order))


def read_routes(path: Path, num_layers: int) -> list[tuple[str, tuple[bool, ...]]]:
    """Named routes from a file: .json, a list of routes or an object of name: route; .csv, a line
    each, "name,route". A route is a text of 0 and 1 for each layer, or (.json) a list of the layers
    that run. ValueError, one line, names the file and the route that is wrong.
    """
    if not path.is_file():
        raise FileNotFoundError(f"family: no file {path}, expected routes in .json or .csv")
    check_readable(path, "family")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise ValueError(f"family: {path} has byte 0x{byte:02x}, expected UTF-8") from None
    if path.suffix.lower() == ".json":
        try:
            value = json.loads(text, object_pairs_hook=_named_once)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"family: {path} is broken JSON ({error})") from None
        if isinstance(value, list):
            value = {f"r{place}": route for place, route in enumerate(value)}
        if not isinstance(value, dict):
            raise ValueError(f"family: {path} holds no list or object of routes")
        pairs = list(value.items())
    elif path.suffix.lower() == ".csv":
        try:
            rows = [row for row in csv.reader(text.splitlines(), strict=True) if row]
        except csv.Error as error:
            raise ValueError(f"family: {path} is broken CSV ({error})") from None
        rows = rows[1:] if rows and rows[0] == ["name", "route"] else rows
        if any(len(row) != 2 for row in rows):
            raise ValueError(f"family: {path} has a line that is not name,route")
        pairs = [(name.strip(), route.strip()) for name, route in rows]
    else:
        raise ValueError(f"family: {path} has extension {path.suffix!r}, expected .json or .csv")
    if not pairs:
        raise ValueError(f"family: {path} holds no route, expected at least one")
    names = [name for name, _ in pairs]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"family: {path} names {shown(twice)} twice, expected each route once")
    return [(name, _parse_route(path, name, route, num_layers)) for name, route in pairs]


def _named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Python's own keeps the last of equal names and says nothing
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a name occurs twice")
    return dict(pairs)


def _parse_route(path: Path, name: str, route: Any, num_layers: int) -> tuple[bool, ...]:
    place = f"family: {path}, route {shown(name)}"
    if isinstance(route, str):
        if len(route) != num_layers or set(route) - {"0", "1"}:
            raise ValueError(f"{place}: got {shown(route)}, expected {num_layers} of 0 and 1")
        keep = tuple(bit == "1" for bit in route)
    else:
        if not isinstance(route, list) or not all(
            type(layer) is int and 0 <= layer < num_layers for layer in route
        ):
            raise ValueError(f"{place}: expected layers from 0 to {num_layers - 1}")
        keep = tuple(layer in route for layer in range(num_layers))
    if not any(keep):
        raise ValueError(f"{place}: runs no layer, expected at least one")
    return keep
