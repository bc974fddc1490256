"""Families that write a sentence: sentence (from slots), slip (without the slip of the tongue)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dynkern.tasks.problem import Dice, Family, Problem
from dynkern.tasks.words import (
    CITIES,
    COLOURS,
    DIGITS,
    EVENTS,
    FOODS,
    JOBS,
    NAMES,
    NOUNS,
    PETS,
    PLACES,
    QUALITIES,
    SPORTS,
    VEHICLES,
    WEEKDAYS,
)

SENTENCE = (
    "Write a sentence with these facts.",
    "Put the facts into one sentence.",
    "Say this in a sentence.",
    "Turn the notes into a sentence.",
    "Make one sentence of it.",
    "Describe this in a sentence.",
    "Write one sentence that says all of this.",
    "Tell somebody about it in one sentence.",
    "Write this out as a full sentence.",
    "Form a sentence from the data.",
    "Use every fact in one sentence.",
    "Say in one sentence: {text}",
    "Write a sentence from these notes: {text}",
)

SLIP = (
    "Remove the slip of the tongue.",
    "Write the sentence without the slip.",
    "Clean up the sentence.",
    "What did the speaker mean to say?",
    "Correct the sentence as the speaker does.",
    "Write what was meant.",
    "Take out the mistake that the speaker corrects.",
    "Give the clean sentence.",
    "Say it without the correction.",
    "Rewrite this without the slip of the tongue.",
    "Leave out what the speaker takes back.",
    "Clean this up: {text}",
    "What was meant? {text}",
)


@dataclass(frozen=True)
class Domain:
    """slots: name and values, the first two always there. frames: each a way to say the slots, one
    piece a slot, in the order of the sentence; a slot that is absent leaves its piece out.
    """

    slots: tuple[tuple[str, Sequence[str]], ...]
    frames: tuple[tuple[tuple[str, str], ...], ...]


DOMAINS = (
    Domain(
        (("name", NAMES), ("job", JOBS), ("city", CITIES), ("pet", PETS), ("sport", SPORTS)),
        (
            (
                ("name", "{}"),
                ("job", "is a {}"),
                ("city", "from {}"),
                ("pet", "with a {}"),
                ("sport", "who likes {}"),
            ),
            (
                ("name", "{}"),
                ("job", "works as a {}"),
                ("city", "in {}"),
                ("sport", "and likes {}"),
                ("pet", "and has a {}"),
            ),
            (
                ("city", "In {}"),
                ("name", "{}"),
                ("job", "is a {}"),
                ("pet", "who has a {}"),
                ("sport", "and likes {}"),
            ),
        ),
    ),
    Domain(
        (
            ("name", NOUNS),
            ("type", PLACES),
            ("city", CITIES),
            ("quality", QUALITIES),
            ("food", FOODS),
        ),
        (
            (
                ("name", "The {}"),
                ("type", "is a {}"),
                ("city", "in {}"),
                ("food", "that serves {}"),
                ("quality", "and is {}"),
            ),
            (
                ("city", "In {}"),
                ("type", "there is a {}"),
                ("name", "called the {}"),
                ("food", "serving {}"),
                ("quality", "and known as {}"),
            ),
        ),
    ),
    Domain(
        (
            ("name", NAMES),
            ("to", CITIES),
            ("day", WEEKDAYS),
            ("by", VEHICLES),
            ("with", NAMES),
        ),
        (
            (
                ("name", "{}"),
                ("to", "travels to {}"),
                ("with", "with {}"),
                ("by", "by {}"),
                ("day", "on {}"),
            ),
            (
                ("name", "{}"),
                ("to", "goes to {}"),
                ("day", "on {}"),
                ("by", "by {}"),
                ("with", "together with {}"),
            ),
            (
                ("day", "On {}"),
                ("name", "{}"),
                ("to", "travels to {}"),
                ("by", "by {}"),
                ("with", "with {}"),
            ),
        ),
    ),
    Domain(
        (
            ("event", EVENTS),
            ("city", CITIES),
            ("day", WEEKDAYS),
            ("time", DIGITS[1:]),
            ("host", NAMES),
        ),
        (
            (
                ("event", "The {}"),
                ("city", "is in {}"),
                ("day", "on {}"),
                ("time", "at {}"),
                ("host", "with {}"),
            ),
            (
                ("day", "On {}"),
                ("time", "at {}"),
                ("event", "there is a {}"),
                ("host", "with {}"),
                ("city", "in {}"),
            ),
        ),
    ),
)


def _sentence(dice: Dice, level: int) -> Problem:
    """Two slots at level 1, one more at each level."""
    domain = dice.pick(DOMAINS)
    optional = dice.sample(domain.slots[2:], level - 1)
    facts: dict[str, str] = {}
    for slot, values in domain.slots:
        if slot in dict(domain.slots[:2]) or slot in dict(optional):
            facts[slot] = dice.pick([v for v in values if v not in facts.values()])
    references = dict.fromkeys(_say(frame, facts) for frame in domain.frames)
    text = "; ".join(f"{slot}: {value}" for slot, value in facts.items())
    return Problem(text, text, tuple(dice.shuffled(list(references))), SENTENCE)


def _say(frame: tuple[tuple[str, str], ...], facts: dict[str, str]) -> str:
    said = " ".join(piece.format(facts[slot]) for slot, piece in frame if slot in facts)
    return said[0].upper() + said[1:] + "."


# parts of a sentence: a piece and what may stand in it
_WHO = ("{}", NAMES)
_CLAUSES = (
    ("lives in {}", CITIES),
    ("works in {}", CITIES),
    ("has a {}", PETS),
    ("wants a {}", PETS),
    ("plays {}", SPORTS),
    ("cooks {}", FOODS),
    ("likes {}", COLOURS),
    ("met {}", NAMES),
    ("called {}", NAMES),
    ("sold the {}", NOUNS),
    ("found the {}", NOUNS),
    ("broke the {}", NOUNS),
)
_TAILS = (("on {}", WEEKDAYS), ("at {}", DIGITS[1:]), ("with {}", NAMES))
REPAIRS = ("no sorry", "I mean", "wait no", "no rather", "or rather", "sorry I mean")
FILLERS = ("um", "uh", "er", "hm")


def _slip(dice: Dice, level: int) -> Problem:
    """Level 1: one word taken back; level 2: in a longer sentence with a filler; level 3: two words
    taken back; level 4: two, one of them with the words before it said again, and fillers.
    """
    tails = [] if level == 1 else dice.sample(_TAILS, 1 if level == 2 else 2)
    parts = [_WHO, dice.pick(_CLAUSES), *tails]
    meant: list[str] = []
    for _, values in parts:
        meant.append(dice.pick([v for v in values if v not in meant]))
    wrong = dice.sample(range(1, len(parts)), 1 if level < 3 else 2)
    again = max(wrong) if level == 4 else -1
    spoken: list[str] = []
    for i, ((piece, values), word) in enumerate(zip(parts, meant, strict=True)):
        if i not in wrong:
            spoken.append(piece.format(word))
            continue
        said = piece.format(dice.pick([v for v in values if v not in meant]))
        right = word
        if i == again:
            right = piece.format(word).split(" ", piece.count(" ") - 1)[-1]
        spoken.append(f"{said} {dice.pick(REPAIRS)} {right}")
    for _ in range((0, 1, 1, 2)[level - 1]):
        spoken.insert(dice.below(len(spoken)), dice.pick(FILLERS))
    said = " ".join(spoken)
    clean = " ".join(p.format(w) for (p, _), w in zip(parts, meant, strict=True)) + "."
    return Problem(clean, said[0].upper() + said[1:] + ".", (clean,), SLIP)


FAMILIES = (Family("sentence", _sentence, SENTENCE), Family("slip", _slip, SLIP))
