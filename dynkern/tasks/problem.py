"""What a family draws, the dice it draws with, and the split that a problem belongs to."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")

SPLITS = ("train", "validation", "test")
LEVELS = (1, 2, 3, 4)


class Dice:
    """Draws from a seed, equal on every platform and version of Python.

    Everything comes from random.Random.random(), the one method whose sequence Python promises to
    keep; choice, sample and shuffle are written here for that reason.
    """

    def __init__(self, *seed: object) -> None:
        self._random = random.Random("/".join(map(str, seed))).random

    def below(self, n: int) -> int:
        """A whole number in 0..n-1."""
        return int(self._random() * n)

    def between(self, low: int, high: int) -> int:
        """A whole number in low..high, both included."""
        return low + int(self._random() * (high - low + 1))

    def pick(self, items: Sequence[T]) -> T:
        return items[int(self._random() * len(items))]

    def sample(self, items: Sequence[T], k: int) -> list[T]:
        """k of the items, at different places, in random order; k is small beside their number or
        their number is small."""
        if 3 * k > len(items):
            return self.shuffled(items)[:k]
        places: dict[int, None] = {}
        while len(places) < k:
            places[self.below(len(items))] = None
        return [items[i] for i in places]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        items = list(items)
        for i in range(len(items) - 1, 0, -1):
            j = self.below(i + 1)
            items[i], items[j] = items[j], items[i]
        return items


@dataclass(frozen=True)
class Problem:
    """One problem, before it is put into words.

    key: the content that decides the split: whatever the wording, two problems with the same
    question have the same key. text: what the question is about, which goes into the input, or into
    the instruction where a wording has a place for it. references: the right answers, the first of
    them the output. wordings: instructions that ask this question, with {text} and the names of
    `slots` in braces.
    """

    key: str
    text: str
    references: tuple[str, ...]
    wordings: Sequence[str]
    slots: Mapping[str, str] = field(default_factory=dict)

    def written(self, dice: Dice) -> tuple[str, str]:
        """(instruction, input) in one of the wordings."""
        wording = dice.pick(self.wordings)
        instruction = wording.format(text=self.text, **self.slots)
        return instruction, "" if "{text}" in wording else self.text


@dataclass(frozen=True)
class Family:
    """draw(dice, level) gives a problem; level 1 to 4, each deeper than the one before.
    wordings: all of them, for all kinds of problem in the family.
    """

    name: str
    draw: Callable[[Dice, int], Problem]
    wordings: tuple[str, ...]


def split_of(family: str, key: str) -> str:
    """The split of a problem by a digest of its content: 80 % train, 10 % validation, 10 % test."""
    digest = hashlib.sha256(f"{family}\n{key}".encode()).digest()
    tenth = int.from_bytes(digest[:8], "big") % 10
    return "test" if tenth == 0 else "validation" if tenth == 1 else "train"
