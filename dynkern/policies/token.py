"""Token policies: decided in every pass on the device, as data that executors lower."""

from __future__ import annotations

from dataclasses import dataclass

from dynkern.arguments import check_number, shown
from dynkern.routes import TokenProgram, check_budget, check_choice

# largest and smallest threshold of each confidence measure
MEASURES = {"top_prob": (0.0, 1.0), "margin": (0.0, 1.0), "cosine": (-1.0, 1.0)}


def _exact(number: float) -> str:
    # six digits are not enough to tell two thresholds apart, seventeen are ugly where six do
    short = f"{number:g}"
    return short if float(short) == number else repr(float(number))


@dataclass(frozen=True)
class RandomStep:
    """`budget` random layers, redrawn for every row in every pass; layer 0 optionally forced."""

    budget: int
    force_first: bool = False

    @property
    def spec(self) -> str:
        """Canonical spec string."""
        return f"random-step:{self.budget}" + (",force_first=1" if self.force_first else "")

    def check(self, num_layers: int) -> None:
        """Raise a one-line ValueError unless the budget fits a model of num_layers."""
        check_budget("random-step budget", self.budget, num_layers)

    def lower(self, num_layers: int) -> TokenProgram:
        """The program for a model of num_layers."""
        self.check(num_layers)
        return TokenProgram("subset", budget=self.budget, force_first=self.force_first)


@dataclass(frozen=True)
class Stochastic:
    """Each layer runs with `probability`, drawn for each layer, token and row; layer 0 always."""

    probability: float

    def __post_init__(self) -> None:
        check_number(
            "stochastic probability",
            self.probability,
            lambda p: 0.0 <= p <= 1.0,
            "a number from 0 to 1",
        )

    @property
    def spec(self) -> str:
        """Canonical spec string."""
        return f"stochastic:{_exact(self.probability)}"

    def check(self, num_layers: int) -> None:
        """Any depth fits."""

    def lower(self, num_layers: int) -> TokenProgram:
        """The program for a model of num_layers."""
        return TokenProgram("bernoulli", (1.0, *[self.probability] * (num_layers - 1)))


@dataclass(frozen=True)
class Confidence:
    """Leave at a declared exit layer once the measure reaches the threshold (CALM).

    measure: "top_prob", "margin" (difference of the two largest probabilities) or "cosine"
    (hidden states before and after the exit layer). exit_layers: 0-based layers after which a row
    may leave; by default the ends of the first, second and third quarter of the layers.
    """

    measure: str
    threshold: float
    exit_layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_choice("confidence measure", self.measure, tuple(MEASURES))
        low, high = MEASURES[self.measure]
        check_number(
            f"confidence {self.measure}",
            self.threshold,
            lambda x: low <= x <= high,
            f"{low:g} to {high:g}",
        )
        if not isinstance(self.exit_layers, tuple):
            raise ValueError(
                f"confidence exits: got {shown(self.exit_layers)}, expected a tuple of layers"
            )

    @property
    def spec(self) -> str:
        """Canonical spec string."""
        exits = ",exits=" + "+".join(map(str, self.exit_layers)) if self.exit_layers else ""
        return f"confidence:{self.measure}={_exact(self.threshold)}{exits}"

    def exits(self, num_layers: int) -> tuple[int, ...]:
        """The exit layers for a model of num_layers, ascending."""
        quarters = {num_layers * quarter // 4 - 1 for quarter in (1, 2, 3)}
        return tuple(sorted(set(self.exit_layers) or {layer for layer in quarters if layer >= 0}))

    def check(self, num_layers: int) -> None:
        """Raise a one-line ValueError unless every exit lies below the last layer."""
        for layer in self.exit_layers or self.exits(num_layers):
            whole = isinstance(layer, int) and not isinstance(layer, bool)
            if not whole or not 0 <= layer < num_layers - 1:
                raise ValueError(
                    f"confidence exits: got layer {shown(layer)}, expected 0 to {num_layers - 2}"
                )

    def lower(self, num_layers: int) -> TokenProgram:
        """The program for a model of num_layers."""
        self.check(num_layers)
        return TokenProgram(
            "confidence",
            measure=self.measure,
            threshold=self.threshold,
            exit_layers=self.exits(num_layers),
        )
