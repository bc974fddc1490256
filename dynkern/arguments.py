"""Checks of plain arguments, for every room: a line with argument, given and expected."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from numbers import Real
from typing import Any


def shown(given: object) -> str:
    """An argument as a message shows it: its repr on one line, cut where it is long."""
    text = " ".join(repr(given).split())
    return text if len(text) <= 60 else text[:57] + "..."


def check_integer(
    argument: str, given: Any, low: int, high: int | None = None, expected: str | None = None
) -> int:
    """`given` as an int from low to high. ValueError for anything else, booleans included;
    expected: how the message states the range.
    """
    wanted = expected or (f"{low} or more" if high is None else f"{low} to {high}")
    try:
        if isinstance(given, bool):
            raise TypeError
        value = operator.index(given)
    except (TypeError, ValueError):
        wanted = wanted if "integer" in wanted else f"an integer, {wanted}"
        raise ValueError(f"{argument}: got {shown(given)}, expected {wanted}") from None
    if value < low or (high is not None and value > high):
        raise ValueError(f"{argument}: got {shown(value)}, expected {wanted}")
    return value


def check_number(argument: str, given: Any, fits: Callable[[float], bool], expected: str) -> float:
    """`given` as a finite float that fits; ValueError for anything else, booleans included."""
    number = isinstance(given, Real) and not isinstance(given, bool) and math.isfinite(given)
    if not number or not fits(given):
        raise ValueError(f"{argument}: got {shown(given)}, expected {expected}")
    return float(given)


def check_sampling(temperature: Any, top_k: Any, top_p: Any, repetition_penalty: Any) -> None:
    """Raise ValueError for what op `sample` does not take.

    Beyond 1e-9 and 1e9 a logit over the temperature, or times the penalty, may leave float32's
    range, where all that is infinite ties; below 2^-126 a top_p is none of its normal numbers, and
    one that becomes 0 would keep no token.
    """
    in_range = "1e-9 to 1e9"
    check_number(
        "temperature",
        temperature,
        lambda x: x == 0 or 1e-9 <= x <= 1e9,
        f"a finite number, 0 (greedy) or {in_range}",
    )
    check_integer("top_k", top_k, 0, (1 << 63) - 1, "0 (off) or more, an integer")
    check_number("top_p", top_p, lambda x: 2.0**-126 <= x <= 1, "above 0 and up to 1, as float32")
    check_number(
        "repetition_penalty",
        repetition_penalty,
        lambda x: 1e-9 <= x <= 1e9,
        f"above 0: {in_range}",
    )


def check_flag(argument: str, given: object) -> None:
    """Raise ValueError unless `given` is True or False."""
    if not isinstance(given, bool):
        raise ValueError(f"{argument}: got {shown(given)}, expected True or False")


def check_callable(argument: str, given: object, signature: str) -> None:
    """Raise ValueError unless `given` can be called, or is None."""
    if given is not None and not callable(given):
        raise ValueError(f"{argument}: got {shown(given)}, expected {signature} or None")
