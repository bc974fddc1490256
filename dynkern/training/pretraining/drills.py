"""Drills: records for training alone that ask several questions of one text.

A record of the task suite that looks something up is answered in a word, so it says once in thirty
tokens whether the look-up was right; a drill says it in each word of its answer. No gain of them
has been seen: of six million tokens, 15 to 60 % of the records, look-ups stayed at chance.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

from dynkern.tasks.lists import with_repeats
from dynkern.tasks.lookups import COLUMNS, SUBSTITUTE, chain_text, key_text, table_text
from dynkern.tasks.numbers import number_words
from dynkern.tasks.problem import Dice
from dynkern.tasks.words import NAMES, WORDS

CELLS = (
    "Look up the {column} of {asked}.",
    "What is the {column} of {asked}?",
    "Give the {column} of {asked}.",
    "Which {column} do {asked} have?",
    "Read the {column} of {asked} from the table.",
)
OWNERS = (
    "Who has the {column} {asked}?",
    "Whose {column} is {asked}?",
    "Find those whose {column} is {asked}.",
)
FOLLOWERS = (
    "Who comes one step after {asked}?",
    "Take one step along the chain, starting from {asked}.",
    "Go one step from {asked}. Who do you reach?",
    "Start at {asked} and follow the list once. Where do you end?",
)
TALLIES = (
    "How often does each of {asked} appear?",
    "How many times do you read {asked}?",
    "Count how often {asked} appear.",
)


def drill_records(seed: int, start: int = 0) -> Iterator[dict[str, Any]]:
    """Records `start`, `start` + 1, … of the endless stream of a seed: instruction, input, output
    and the kind of drill as `family`. Several questions each, so none is a record of the suite.
    """
    for place in count(start):
        dice = Dice(seed, "drill", place)
        kind = dice.pick(tuple(_KINDS))
        instruction, text, answers = _KINDS[kind](dice)
        yield {
            "instruction": instruction,
            "input": text,
            "output": " ".join(answers),
            "family": kind,
        }


Drill = tuple[str, str, list[str]]


def _pairs(dice: Dice) -> Drill:
    n = dice.between(2, 6)
    words = dice.sample(WORDS, 2 * n)
    key = dict(zip(words[:n], words[n:], strict=True))
    asked = [dice.pick(words[:n]) for _ in range(dice.between(n, 2 * n))]
    wordings = [wording for wording in SUBSTITUTE if "{text}" not in wording]
    return (
        dice.pick(wordings),
        key_text(dice, key, asked),
        [key[word] for word in asked],
    )


def _cells(dice: Dice) -> Drill:
    rows, width = dice.between(2, 5), dice.between(1, 2)
    columns = dice.sample(tuple(COLUMNS), width)
    names = dice.sample(NAMES, rows)
    cells = [dice.sample(COLUMNS[column], rows) for column in columns]
    places = dice.shuffled(range(rows))[: dice.between(2, rows)]
    at = dice.below(width)
    wordings, left, right = CELLS, names, cells[at]
    if dice.below(2):
        wordings, left, right = OWNERS, cells[at], names
    asked = ", ".join(left[place] for place in places)
    instruction = dice.pick(wordings).format(column=columns[at], asked=asked)
    return instruction, table_text(names, columns, cells), [right[place] for place in places]


def _followers(dice: Dice) -> Drill:
    names = dice.sample(NAMES, dice.between(4, 7))
    # two chains of the suite's kind, or one
    cut = dice.below(len(names) - 1)
    edges = [
        edge
        for part in (names[: cut + 1], names[cut + 1 :])
        for edge in zip(part, part[1:], strict=False)
    ]
    text = chain_text(dice, edges)
    chosen = dice.shuffled(edges)[: dice.between(2, len(edges))]
    asked = ", ".join(edge[0] for edge in chosen)
    return dice.pick(FOLLOWERS).format(asked=asked), text, [edge[1] for edge in chosen]


def _tallies(dice: Dice) -> Drill:
    different = dice.between(2, 4)
    words = with_repeats(dice, different, dice.between(1, 5))
    asked = dice.shuffled(sorted(set(words)))
    asked.append(dice.pick([word for word in dice.sample(WORDS, 9) if word not in words]))
    asked = dice.shuffled(asked)
    instruction = dice.pick(TALLIES).format(asked=", ".join(asked))
    return instruction, " ".join(words), [number_words(words.count(word)) for word in asked]


_KINDS = {"pairs": _pairs, "cells": _cells, "followers": _followers, "tallies": _tallies}
