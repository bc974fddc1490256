"""Axes: where ticks stand, and numbers as a reader wants them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


def finite(value: float | None) -> bool:
    """Whether there is a number to draw."""
    return value is not None and math.isfinite(value)


@dataclass(frozen=True)
class Scale:
    """A linear axis from `low` to `high` between the pixels `start` and `end`."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    places: int

    @classmethod
    def over(
        cls,
        values: Iterable[float | None],
        start: float,
        end: float,
        count: int = 5,
        from_zero: bool = False,
        whole: bool = False,
    ) -> Scale:
        """Round numbers around all finite `values`. whole: ticks at whole numbers only."""
        known = [float(value) for value in values if value is not None and math.isfinite(value)]
        low, high = (min(known), max(known)) if known else (0.0, 1.0)
        if from_zero:
            low = min(low, 0.0)
        if high - low < 1e-12:
            reach = abs(high) * 0.1 or 1.0
            low, high = (low if from_zero and low == 0 else low - reach), high + reach
        step = _step((high - low) / max(count - 1, 1))
        if whole:
            step = max(1.0, float(round(step)))
        low, high = (
            math.floor(low / step + 1e-9) * step,
            math.ceil(high / step - 1e-9) * step,
        )
        number = round((high - low) / step)
        ticks = tuple(low + place * step for place in range(number + 1))
        places = next(n for n in range(16) if abs(round(step, n) - step) < 1e-6 * step)
        return cls(low, high, start, end, ticks, places)

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def label(self, tick: float) -> str:
        """A tick in digits, "-0" never among them."""
        return number(tick + 0.0 if abs(tick) > 1e-12 else 0.0, self.places)


def _step(raw: float) -> float:
    power = 10.0 ** math.floor(math.log10(raw))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)


def number(value: float | None, places: int) -> str:
    """With a real minus sign; "n/a" where there is no number."""
    if not finite(value):
        return "n/a"
    return f"{value:.{places}f}".replace("-", "\N{MINUS SIGN}")


def percent(share: float | None, places: int = 0) -> str:
    """A share of one, "98 %" with a space that does not break."""
    return f"{number(share * 100, places)}\N{NO-BREAK SPACE}%" if finite(share) else "n/a"


def interval(limits: Iterable[float | None] | None, places: int) -> str:
    """ "0.25 to 0.44"; empty without one."""
    ends = list(limits or ())
    if len(ends) != 2 or not all(map(finite, ends)):
        return ""
    return f"{number(ends[0], places)} to {number(ends[1], places)}"


def short(text: str, most: int) -> str:
    """Cut in the middle, where names of one kind are alike."""
    if len(text) <= most:
        return text
    tail = (most - 1) // 2
    return text[: most - 1 - tail] + "\N{HORIZONTAL ELLIPSIS}" + text[len(text) - tail :]
