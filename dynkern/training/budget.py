"""A requested budget: alpha that settles where the gates run that many layers, and their bias."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from dynkern.training.gates import Gates

# of alpha's control, in nats for each unit of the executed share: proportional, and per step
GAIN = 8.0
RATE = 0.1
# layers by which a calibrated controller may miss on the sequences it is calibrated on
NEAR = 0.05
MOST_PASSES = 12


def check_budget(budget: float, num_layers: int) -> None:
    """Raise a one-line ValueError unless gates can reach it: first and last layer always run."""
    if not 2 <= budget <= num_layers:
        raise ValueError(f"budget: got {budget:g}, expected 2 to the model's {num_layers} layers")


class Multiplier(nn.Module):
    """The weight of the cost under a budget: a proportional-integral control of the executed share.

    In the Lagrangian of "least cross entropy at this share" alpha is the multiplier: it rises while
    more runs than was asked for, and falls while less does. Its state goes with the model's into
    checkpoints. alpha: where it starts.
    """

    def __init__(self, budget: float, num_layers: int, alpha: float) -> None:
        super().__init__()
        check_budget(budget, num_layers)
        self.share = budget / num_layers
        self.register_buffer("integral", torch.tensor(alpha, dtype=torch.float64))
        self.register_buffer("error", torch.tensor(0.0, dtype=torch.float64))

    @property
    def alpha(self) -> float:
        """For the next step; never below 0."""
        return max(0.0, float(self.integral + GAIN * self.error))

    def update(self, share: float) -> None:
        """Take note of what ran in a step."""
        error = share - self.share
        self.error.fill_(error)
        self.integral.fill_(max(0.0, float(self.integral) + RATE * error))


def calibrate(gates: Gates, budget: float, measure: Callable[[], float]) -> float:
    """Shift all gates alike until arg-max gates run `budget` layers; by how much.

    measure: mean layers with the gates as they are. Gates on a fixed input close one by one: they
    are shifted between two of them, measured or not. Others by regula falsi between shifts that
    run too little and too much; the nearest of at most MOST_PASSES is kept.
    """
    if gates.input == "fixed":
        shift = _between(gates, budget)
        gates.shift(shift)
        return shift
    at = 0.0
    tried: dict[float, float] = {}

    def layers(shift: float) -> float:
        nonlocal at
        gates.shift(shift - at)
        at = shift
        tried[shift] = measure()
        return tried[shift]

    found = layers(0.0)
    step = 1.0 if found < budget else -1.0
    while abs(found - budget) > NEAR and len(tried) < MOST_PASSES:
        below = [shift for shift, n in tried.items() if n < budget]
        above = [shift for shift, n in tried.items() if n > budget]
        if below and above:
            low, high = max(below), min(above)
            share = (budget - tried[low]) / (tried[high] - tried[low])
            # never an end itself, which a flat curve would ask for again and again
            found = layers(low + (high - low) * min(0.9, max(0.1, share)))
        else:
            found = layers(at + step)
            step *= 2
    best = min(tried, key=lambda shift: (abs(tried[shift] - budget), abs(shift)))
    gates.shift(best - at)
    return best


def _between(gates: Gates, budget: float) -> float:
    """The shift that leaves the nearest number of fixed-input gates open."""
    nothing = torch.empty(0, device=next(gates.parameters()).device)
    with torch.no_grad():
        logits = torch.stack([gates.logits(int(layer), nothing) for layer in gates.layers])
    order = (logits[:, 1] - logits[:, 0]).double().sort(descending=True).values.tolist()
    # first and last layer have no gate; half a layer rounds up
    open_gates = min(len(order), int(budget - 2 + 0.5))
    ends = [order[0] + 2.0, *order, order[-1] - 2.0]
    return -(ends[open_gates] + ends[open_gates + 1]) / 2
