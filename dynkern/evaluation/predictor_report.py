"""`dynkern train-predictor`: a predictor, and its distance from the oracle on unseen prompts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table as Grid

from dynkern.allocation.bootstrap import RESAMPLES, interval, weights
from dynkern.allocation.curve import one_route
from dynkern.allocation.groups import grouped
from dynkern.allocation.knapsack import Frontier
from dynkern.allocation.predictor import JSON_NAME, Predictor, choose
from dynkern.allocation.table import Table, load_table
from dynkern.allocation.training import HEADS, split, train
from dynkern.arguments import check_integer
from dynkern.evaluation.allocation_plot import LABELS, draw_allocation, draw_groups
from dynkern.evaluation.allocation_report import group_rows, save_csv, save_figure, save_json
from dynkern.evaluation.predictor_page import predictor_report
from dynkern.files import make_folder
from dynkern.report import write_report
from dynkern.routes import check_choice

Floats = NDArray[np.float64]

# held_out only where the table has several samples
WAYS = ("oracle", "held_out", "predictor", "histogram", "one_route")
GAPS = (
    ("oracle", "predictor"),
    ("held_out", "predictor"),
    ("predictor", "histogram"),
    ("predictor", "one_route"),
)


@dataclass(frozen=True)
class PredictorConfig:
    """The arguments of `dynkern train-predictor`."""

    table: Path
    output: Path
    budget: str = "equal"
    head: str = "ridge"
    train_share: float = 0.7
    resamples: int = RESAMPLES
    seed: int = 0


def run_training(config: PredictorConfig, console: Console) -> Path:
    """Train, save, and report on the test split: report.json, gap.csv, gap.png, groups.csv,
    groups.png and report.html beside the predictor. ValueError, one line, on bad input or an output
    in use.
    """
    check_choice("head", config.head, HEADS)
    check_integer("resamples", config.resamples, 1)
    check_integer("seed", config.seed, 0, 2**64 - 1)
    if (config.output / JSON_NAME).exists():
        raise ValueError(
            f"output: {config.output} already holds a predictor; take another --output"
        )
    table = load_table(config.table)
    predictor = train(table, config.head, config.budget, config.train_share, config.seed)
    make_folder(config.output)
    judged = judge(table, predictor, config.train_share, config.resamples, config.seed)
    predictor.save(config.output)
    save_json(
        config.output / "report.json",
        {
            "predictor": predictor.about,
            "test_prompts": len(judged.rows),
            "resamples": config.resamples,
            "at_budget": judged.at_budget,
            "mean_layers": judged.mean_layers,
        },
    )
    save_csv(config.output / "gap.csv", judged.curve_rows())
    title = (
        f"{len(judged.rows)} unseen prompts, {table.num_layers} layers, "
        f"family {table.routes.family}, {config.head}"
    )
    full = judged.at_budget["full"]
    figure = draw_allocation(
        judged.curves,
        (full["rougeL"], *full["ci"]),
        table.routes.budgets,
        judged.shares,
        title,
    )
    save_figure(config.output / "gap.png", figure)
    groups = grouped(table, judged.rows, judged.choices, config.resamples, config.seed)
    if groups:
        save_csv(config.output / "groups.csv", group_rows(groups))
        save_figure(config.output / "groups.png", draw_groups(groups, title))
    _print(console, judged, predictor)
    console.print(f"predictor in {config.output}", highlight=False, soft_wrap=True)
    details = {
        "Every way at each mean number of layers": judged.curve_rows(),
        "Budget and quality in groups": group_rows(groups),
    }
    page = write_report(config.output, predictor_report(table, predictor, judged, details, config))
    console.print(f"report in {page}", highlight=False, soft_wrap=True)
    return config.output


@dataclass(frozen=True)
class Judged:
    """What a predictor is worth on the prompts `rows`. quality: theirs, [T, R].

    curves: for each way of WAYS "mean_layers" and "quality" [G] and "ci" [2, G], all at the mean
    layers that the predictor came to at G prices; gaps: differences alike. at_budget: the same
    at the predictor's own price. choices, shares: routes [T] and their shares [R] there.
    """

    rows: NDArray[np.int64]
    quality: Floats
    mean_layers: float
    curves: dict[str, dict[str, Floats]]
    gaps: dict[str, dict[str, Floats]]
    at_budget: dict[str, dict[str, Any]]
    choices: dict[str, NDArray[np.int64]]
    shares: dict[str, list[float]]

    def curve_rows(self) -> list[dict[str, Any]]:
        """A row for each price."""
        layers = self.curves["predictor"]["mean_layers"]
        rows = []
        for place in range(len(layers)):
            row: dict[str, Any] = {"mean_layers": float(layers[place])}
            for name, curve in (self.curves | self.gaps).items():
                low, high = curve["ci"][:, place]
                row |= {name: curve["quality"][place], f"{name}_low": low, f"{name}_high": high}
            rows.append(row)
        return rows


def judge(
    table: Table, predictor: Predictor, train_share: float, resamples: int, seed: int
) -> Judged:
    """Oracle, predictor, its budgets at random, and one route for all, on the test split.

    All are compared at the mean layers that the predictor came to, in every resample anew.
    """
    rows = np.flatnonzero(~split(table.digests, train_share))
    quality, costs = table.mean_quality[rows], table.costs
    states = None if table.states is None else table.states[rows].astype(np.float64)
    predicted = predictor.predict(table.prompt_tokens[rows].tolist(), states)
    prices = [price for _, price in predictor.prices]
    picked = [*range(0, len(prices), max(1, len(prices) // 60))]
    # the predictor's own price last
    choices = [choose(predicted, costs, prices[at]) for at in picked]
    choices.append(predictor.choose(predicted, [table.digests[row] for row in rows]))
    oracle = Frontier(quality, costs)
    frontiers = {"oracle": [(oracle, quality)]}
    if table.quality.shape[2] > 1:
        first, second = (table.quality[rows, :, part::2].mean(axis=2) for part in (0, 1))
        pairs = ((first, second), (second, first))
        frontiers["held_out"] = [(Frontier(chosen, costs), scores) for chosen, scores in pairs]
    even = np.full((1, len(rows)), 1.0 / len(rows))
    at_point = _values(even, quality, costs, frontiers, choices)
    point = {name: values[0] for name, values in at_point.items()}
    draws = [
        _values(weight, quality, costs, frontiers, choices)
        for weight in weights(len(rows), resamples, seed)
    ]
    spread = {name: interval(np.concatenate([draw[name] for draw in draws])) for name in point}
    order = np.argsort(point["layers"][:-1], kind="stable")

    def curve(name: str) -> dict[str, Floats]:
        return {
            "mean_layers": point["layers"][:-1][order],
            "quality": point[name][:-1][order],
            "ci": spread[name][:, :-1][:, order],
        }

    mine = choices[-1]
    mean_layers = float(point["layers"][-1])
    ways = [name for name in WAYS if name in point]
    gaps = [_gap_name(pair) for pair in GAPS if pair[0] in point]
    at_budget = {
        name: {"rougeL": float(point[name][-1]), "ci": spread[name][:, -1].tolist()}
        for name in ("full", *ways, *gaps)
    }
    at_budget["predictor"]["mean_layers_ci"] = spread["layers"][:, -1].tolist()
    best = oracle.at(max(mean_layers, oracle.least_cost)).choice
    both = {"oracle": best, "predictor": mine}
    return Judged(
        rows,
        quality,
        mean_layers,
        {name: curve(name) for name in ways},
        {name: curve(name) for name in gaps},
        at_budget,
        both,
        {
            name: (np.bincount(choice, minlength=len(costs)) / len(choice)).tolist()
            for name, choice in both.items()
        },
    )


def _gap_name(pair: tuple[str, str]) -> str:
    return f"{pair[0]}_minus_{pair[1]}"


def _values(
    weight: Floats,
    quality: Floats,
    costs: Floats,
    frontiers: dict[str, list[tuple[Frontier, Floats]]],
    choices: list[NDArray[np.int64]],
) -> dict[str, Floats]:
    """Every way at the mean layers that each of G choices comes to, [b, G] each.

    weight: [b, T], of the sequences in each resample.
    """
    every, kinds = np.arange(len(quality)), np.arange(len(costs))
    means = weight @ quality
    scored = np.stack([quality[every, choice] for choice in choices])
    layers = weight @ np.stack([costs[choice] for choice in choices]).T
    dealt = [((weight @ (choice[:, None] == kinds)) * means).sum(axis=1) for choice in choices]
    found = {
        "layers": layers,
        "predictor": weight @ scored.T,
        "histogram": np.stack(dealt, axis=1),
        "full": np.repeat(means[:, -1:], len(choices), axis=1),
    }
    best = [one_route(costs, mean, at) for mean, at in zip(means, layers, strict=True)]
    found["one_route"] = np.stack(best)
    for name, ways in frontiers.items():
        found[name] = np.mean([_along(weight, *way, layers) for way in ways], axis=0)
    return found | {
        _gap_name(pair): found[pair[0]] - found[pair[1]] for pair in GAPS if pair[0] in found
    }


def _along(weight: Floats, frontier: Frontier, scores: Floats, layers: Floats) -> Floats:
    """What a frontier's choices are worth by `scores` [T, R] within mean layers [b, G], under
    weights [b, T].
    """
    base, gain = frontier.scored(scores)
    cheapest = frontier.costs[np.arange(frontier.count), frontier.start]
    reached = []
    for row, wanted in zip(weight, layers, strict=True):
        drawn = row[frontier.sequence]
        spent = np.concatenate([[0.0], np.cumsum(drawn * frontier.price)]) + row @ cheapest
        gained = np.concatenate([[0.0], np.cumsum(drawn * gain)]) + row @ base
        at = np.searchsorted(spent, wanted + 1e-9, side="right") - 1
        reached.append(gained[np.maximum(at, 0)])
    return np.stack(reached)


def _print(console: Console, judged: Judged, predictor: Predictor) -> None:
    grid = Grid(pad_edge=False)
    grid.add_column(f"{len(judged.rows)} unseen prompts, {judged.mean_layers:.2f} mean layers")
    grid.add_column("ROUGE-L", justify="right")
    grid.add_column("95 % interval", justify="right")
    for name, point in judged.at_budget.items():
        low, high = point["ci"]
        label = LABELS.get(name, name.replace("_minus_", " - ").replace("_", " "))
        grid.add_row(label, f"{point['rougeL']:.4f}", f"{low:.4f} to {high:.4f}")
    console.print(grid)
    if not predictor.about["reaches_full_depth_on_train"]:
        console.print(
            "note: no budget of the predictor came out as good as full depth on the train split; "
            "the best one was taken",
            highlight=False,
            soft_wrap=True,
        )
    if not predictor.about["reads_state"]:
        console.print("note: the table holds no prompt states; lengths are all that is read")
