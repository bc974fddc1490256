"""Training a predictor on a table's train split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from dynkern.allocation.knapsack import Frontier
from dynkern.allocation.predictor import Floats, Predictor, Price, choose, features
from dynkern.allocation.table import Table
from dynkern.arguments import shown

HEADS = ("ridge", "mlp")
FOLDS = 5
LEAST_PROMPTS = 10
# of the variance that a feature has; the last one predicts means only
PENALTIES = (*np.logspace(-3, 3, 13), np.inf)
HIDDEN, EPOCHS, RATE, DECAY = 64, 300, 1e-3, 1e-2

Fit = Callable[[Floats, Floats], list[tuple[Floats, Floats]]]


def split(digests: Sequence[str], train_share: float) -> NDArray[np.bool_]:
    """Which prompts are trained on: those whose digest's first 8 hex digits, as a fraction of
    2**32, lie below `train_share`. Equal prompts always fall on one side.
    """
    if not 0.0 < train_share < 1.0:
        raise ValueError(f"train_share: got {train_share}, expected a number between 0 and 1")
    return np.array([int(digest[:8], 16) / 2**32 < train_share for digest in digests])


def parse_budget(text: str, num_layers: int) -> float | None:
    """Mean layers from "6", from a fraction of all layers below 1 ("0.5"), or None for "equal".

    ValueError, one line, on anything else.
    """
    if text == "equal":
        return None
    try:
        number = float(text)
    except ValueError:
        number = np.nan
    wanted = number * num_layers if number < 1.0 else number
    if not 0.0 < wanted <= num_layers:
        raise ValueError(
            f"budget: got {shown(text)}, expected mean layers from 1 to {num_layers}, a fraction "
            "below 1, or equal"
        )
    return wanted


def train(table: Table, head: str, budget: str, train_share: float, seed: int = 0) -> Predictor:
    """A predictor from the prompts of the table's train split.

    head: "ridge" (linear, penalty by cross-validation) or "mlp" (one hidden layer, epochs by
    cross-validation). budget: as parse_budget; "equal" takes the least mean layers at which the
    train split comes out as good as at full depth. What sets prices and histogram are predictions
    for prompts that a fold's own fit has not seen. ValueError, one line, for too few prompts.
    """
    if head not in HEADS:
        raise ValueError(f"head: got {head!r}, expected one of {', '.join(HEADS)}")
    wanted = parse_budget(budget, table.num_layers)
    mine = split(table.digests, train_share)
    if min(mine.sum(), (~mine).sum()) < LEAST_PROMPTS:
        raise ValueError(
            f"table: {table.path} leaves {mine.sum()} prompts to train and {(~mine).sum()} to test "
            f"on, expected {LEAST_PROMPTS} or more of each; fill it with more prompts"
        )
    states = None if table.states is None else table.states[mine]
    x = features(table.prompt_tokens[mine].tolist(), states)
    mean, scale = x.mean(axis=0), x.std(axis=0)
    x = (x - mean) / np.where(scale > 1e-12, scale, 1.0)
    quality, costs = table.mean_quality[mine], table.costs
    gain = quality - quality.mean(axis=1, keepdims=True)
    # equal prompts in one fold, or one would tell on the other; digits that `split` does not use
    kept = [digest for digest, here in zip(table.digests, mine, strict=True) if here]
    folds = np.array([int(digest[8:16], 16) % FOLDS for digest in kept])
    unseen, layers, chosen = (_ridge if head == "ridge" else _mlp)(x, gain, folds, seed)
    for fold in np.unique(folds):
        # folds differ in their level, which a price would take for a difference between prompts
        unseen[folds == fold] += gain.mean(axis=0) - unseen[folds == fold].mean(axis=0)
    prices = _prices(unseen, costs)
    made = Predictor(
        mean,
        np.where(scale > 1e-12, scale, 1.0),
        layers,
        costs,
        table.routes.keep,
        Price(0.0, 0.0, 0.0),
        prices,
        np.zeros(len(costs)),
    )
    if wanted is None:
        price, reached = _equal_price(unseen, quality, costs, prices)
    else:
        price, reached = made.price_at(wanted), True
    taken = made.choose(unseen, kept, price)
    return replace(
        made,
        price=price,
        histogram=np.bincount(taken, minlength=len(costs)) / len(taken),
        about={
            "head": head,
            "chosen_by_cross_validation": chosen,
            "budget": budget,
            "reaches_full_depth_on_train": reached,
            "mean_layers_on_train": float(costs[taken].mean()),
            "train_share": train_share,
            "train_prompts": int(mine.sum()),
            "split": "first 8 hex digits of the prompt's SHA-256 / 2**32 < train_share",
            "reads_state": states is not None,
            "seed": seed,
            "table": table.manifest,
        },
    )


def _prices(predicted: Floats, costs: Floats) -> list[tuple[float, float]]:
    """(mean layers, price) along the frontier of predicted quality, rising in layers."""
    frontier = Frontier(predicted, costs)
    slopes = frontier.gain / frontier.price
    prices = [(frontier.least_cost, float(slopes[0]) * 2.0 if len(slopes) else 1.0)]
    if len(slopes):
        # where the slope falls, a price in between takes all steps before and none behind
        falls = np.flatnonzero(slopes[:-1] > slopes[1:] * (1.0 + 1e-9)) + 1
        middle = (slopes[falls - 1] + slopes[falls]) / 2.0
        prices += zip(frontier.mean_costs[falls].tolist(), middle.tolist(), strict=True)
        prices.append((float(frontier.mean_costs[-1]), float(slopes[-1]) / 2.0))
    return prices


def _equal_price(
    predicted: Floats, quality: Floats, costs: Floats, prices: list[tuple[float, float]]
) -> tuple[Price, bool]:
    """The price of the fewest layers that are as good as full depth, and whether any are; else the
    price that comes out best.
    """
    every, full = np.arange(len(quality)), quality[:, -1].mean()
    best = (-np.inf, prices[-1][1])
    for _, price in prices:
        reached = float(quality[every, choose(predicted, costs, price)].mean())
        if reached >= full - 1e-12:
            return Price(price, price, 0.0), True
        best = max(best, (reached, price))
    return Price(best[1], best[1], 0.0), False


def _ridge(
    x: Floats, y: Floats, folds: NDArray[np.int64], seed: int
) -> tuple[Floats, list[tuple[Floats, Floats]], float]:
    """Predictions [N, R] for unseen folds, the fit on all, and its penalty."""
    unseen = np.zeros((len(PENALTIES), *y.shape))
    for fold in np.unique(folds):
        out = folds == fold
        for place, (weight, bias) in enumerate(_ridge_fits(x[~out], y[~out])):
            unseen[place, out] = x[out] @ weight.T + bias
    errors = ((unseen - y) ** 2).mean(axis=(1, 2))
    best = int(errors.argmin())
    return unseen[best], [_ridge_fits(x, y)[best]], float(PENALTIES[best])


def _ridge_fits(x: Floats, y: Floats) -> list[tuple[Floats, Floats]]:
    """One linear map for each of PENALTIES, all from one decomposition."""
    middle, level = x.mean(axis=0), y.mean(axis=0)
    u, s, vt = np.linalg.svd(x - middle, full_matrices=False)
    turned = u.T @ (y - level)
    fits = []
    for penalty in PENALTIES:
        shrunk = np.where(s > 1e-9, s / (s**2 + penalty * len(x) + 1e-12), 0.0)
        weight = ((vt.T * shrunk) @ turned).T
        fits.append((weight, level - weight @ middle))
    return fits


def _mlp(
    x: Floats, y: Floats, folds: NDArray[np.int64], seed: int
) -> tuple[Floats, list[tuple[Floats, Floats]], int]:
    """Predictions [N, R] for unseen folds, the fit on all, and its epochs."""
    unseen = np.zeros((EPOCHS, *y.shape))
    for fold in np.unique(folds):
        out = folds == fold
        _train_mlp(x[~out], y[~out], EPOCHS, seed, (x[out], unseen, out))
    epochs = int(((unseen - y) ** 2).mean(axis=(1, 2)).argmin()) + 1
    layers = _train_mlp(x, y, epochs, seed, None)
    return unseen[epochs - 1], layers, epochs


def _train_mlp(
    x: Floats,
    y: Floats,
    epochs: int,
    seed: int,
    watch: tuple[Floats, Floats, NDArray[np.bool_]] | None,
) -> list[tuple[Floats, Floats]]:
    """Full-batch AdamW. watch: inputs, and the table [epochs, N, R] and rows to predict into."""
    generator = torch.Generator().manual_seed(seed)
    sizes = (x.shape[1], HIDDEN, y.shape[1])
    layers = []
    for fan_in, fan_out in zip(sizes, sizes[1:], strict=False):
        weight = torch.randn(fan_out, fan_in, generator=generator, dtype=torch.float64)
        layers.append([weight * fan_in**-0.5, torch.zeros(fan_out, dtype=torch.float64)])
    layers[-1][0] *= 0.0
    layers[-1][1] = torch.from_numpy(y.mean(axis=0)).clone()
    flat = [tensor.requires_grad_() for layer in layers for tensor in layer]
    optimizer = torch.optim.AdamW(flat, lr=RATE, weight_decay=DECAY)
    inputs, wanted = torch.from_numpy(x), torch.from_numpy(y)
    seen = None if watch is None else torch.from_numpy(watch[0])
    for epoch in range(epochs):
        with torch.enable_grad():
            loss = ((_forward(layers, inputs) - wanted) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
        optimizer.step()
        if watch is not None and seen is not None:
            with torch.no_grad():
                watch[1][epoch, watch[2]] = _forward(layers, seen).numpy()
    return [(weight.detach().numpy(), bias.detach().numpy()) for weight, bias in layers]


def _forward(layers: Sequence[Sequence[torch.Tensor]], x: torch.Tensor) -> torch.Tensor:
    hidden = torch.relu(x @ layers[0][0].T + layers[0][1])
    return hidden @ layers[1][0].T + layers[1][1]
