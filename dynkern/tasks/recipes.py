"""recipe: two to four steps on a list of words, each of them a step of the list families."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dynkern.tasks.lists import with_repeats
from dynkern.tasks.problem import Dice, Family, Problem
from dynkern.tasks.words import ORDINALS


@dataclass(frozen=True)
class Step:
    """says: ways to ask for it, in the imperative. last: it ends a recipe, the answer is a word."""

    says: tuple[str, ...]
    apply: Callable[[list[str]], list[str]]
    last: bool = False


def _nth(n: int) -> Step:
    word = ORDINALS[n]
    says = (f"give the {word} word", f"take the {word} word", f"write only the {word} word")
    return Step(says, lambda words: words[n : n + 1], last=True)


STEPS = {
    "reverse": Step(
        ("reverse the words", "turn the order around", "put the list back to front"),
        lambda words: words[::-1],
    ),
    "sort": Step(
        ("sort from A to Z", "put the words in alphabetical order", "sort alphabetically"),
        sorted,
    ),
    "dedupe": Step(
        ("remove the duplicates", "keep each word once", "drop the repeats"),
        lambda words: list(dict.fromkeys(words)),
    ),
    "behead": Step(
        ("drop the first word", "leave out the first word", "remove the first word"),
        lambda words: words[1:],
    ),
    "curtail": Step(
        ("drop the last word", "leave out the last word", "remove the last word"),
        lambda words: words[:-1],
    ),
    "swap": Step(
        ("swap the first and the last word", "exchange the first and the last word"),
        lambda words: [words[-1], *words[1:-1], words[0]] if len(words) > 1 else words,
    ),
    "first": _nth(0),
    "second": _nth(1),
    "third": _nth(2),
}
_MIDDLE = tuple(name for name, step in STEPS.items() if not step.last)
_LAST = tuple(name for name, step in STEPS.items() if step.last)

# before the steps, between two of them, before the last one, after it
FRAMES = (
    ("", ", then ", ", then ", "."),
    ("First ", ", then ", ", and finally ", "."),
    ("Do this in order: ", "; ", "; ", "."),
    ("Please ", ", ", " and then ", "."),
    ("Step by step: ", ", ", ", ", "."),
    ("Take the list, ", ", ", " and ", "."),
    ("", "; after that ", "; after that ", "."),
    ("With these words: ", ", next ", ", next ", "."),
    ("Start like this: ", ", go on: ", ", end: ", "."),
    ("I want you to ", ", then ", " and at the end ", "."),
    ("Work through the steps. ", ". ", ". ", ": {text}"),
    ("", ", then ", ", then ", ": {text}"),
)


def _recipe(dice: Dice, level: int) -> Problem:
    count, low, high = ((2, 3, 3), (2, 4, 5), (3, 4, 6), (4, 5, 7))[level - 1]
    while True:
        names = _names(dice, count)
        repeats = 1 + dice.below(2) if "dedupe" in names else 0
        words = with_repeats(dice, dice.between(low, high) - repeats, repeats)
        done = _run(names, words)
        if done:
            break
    frame = dice.pick(FRAMES)
    instruction = _told(dice, frame, [STEPS[name] for name in names])
    text = " ".join(words)
    return Problem(f"{'+'.join(names)} {text}", text, (" ".join(done),), (instruction,))


def _names(dice: Dice, count: int) -> list[str]:
    names: list[str] = []
    while len(names) < count:
        pool = _LAST if len(names) == count - 1 and dice.below(3) == 0 else _MIDDLE
        names.append(dice.pick([name for name in pool if name not in names]))
    return names


def _run(names: Sequence[str], words: list[str]) -> list[str] | None:
    """The result, or None where it is empty or the same without one of the steps."""
    done = _result(names, words)
    shorter = ([*names[:i], *names[i + 1 :]] for i in range(len(names)))
    return None if not done or any(_result(fewer, words) == done for fewer in shorter) else done


def _result(names: Sequence[str], words: list[str]) -> list[str]:
    for name in names:
        words = STEPS[name].apply(words)
    return words


def _told(dice: Dice, frame: tuple[str, str, str, str], steps: Sequence[Step]) -> str:
    before, between, last, after = frame
    said = [dice.pick(step.says) for step in steps]
    if between == ". ":
        said = [text[0].upper() + text[1:] for text in said]
    told = before + between.join(said[:-1]) + last + said[-1] + after
    return told[0].upper() + told[1:]


FAMILIES = (Family("recipe", _recipe, tuple("".join(frame) for frame in FRAMES)),)
