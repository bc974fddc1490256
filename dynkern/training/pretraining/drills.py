"""Drills: records for training alone that ask many questions of one text.

A record of the task suite that looks something up is answered in a word: one labelled token in
thirty, and from that alone small models stayed at chance for ten million tokens. A drill asks a
dozen times. Two of three questions are short, a key right before its answer ("Nina job" and then
"carpenter"), which two layers can learn; the others are worded as the suite words them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from typing import Any

from dynkern.tasks.lists import SORT_WORDS, SORT_WORDS_DOWN, count_question, with_repeats
from dynkern.tasks.lookups import (
    COLUMNS,
    chain_text,
    hops_question,
    key_text,
    substitute_question,
    table_question,
    table_text,
)
from dynkern.tasks.numbers import FAMILIES as NUMBER_FAMILIES
from dynkern.tasks.problem import Dice, Problem, split_of
from dynkern.tasks.words import NAMES, WORDS

INSTRUCTIONS = (
    "Answer one after the other.",
    "Answer the questions.",
    "Say what is asked.",
    "Give each answer.",
)
# what stands behind a worded question in the `plain` template
ASKED = "\n### Response:\n"
SHORT_TIMES = ("", "once", "twice", "three times", "four times")

Turn = tuple[str, str]
# a question in short, and the problem that it asks
Asked = tuple[str, Problem]
Drill = tuple[str, list[Turn]]

_CALENDAR = next(family for family in NUMBER_FAMILIES if family.name == "calendar")


def drill_records(seed: int, start: int = 0, kinds: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """Records `start`, `start` + 1, … of the endless stream of a seed, of these kinds, all but
    "drill_recall" by default. ValueError for an unknown kind.

    Fields: instruction, input, family (the kind of drill), turns: (question, answer) in order,
    output: all of them as text. Training hears the answers alone. No question is one of the suite's
    validation or test split.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(f"kinds: got {kind!r}, expected one of {', '.join(KINDS)}")
    names = [kind.removeprefix("drill_") for kind in kinds] or _WEIGHTED
    for place in count(start):
        dice = Dice(seed, "drill", place)
        kind = dice.pick(names)
        text, turns = _KINDS[kind](dice)
        while not turns:
            text, turns = _KINDS[kind](dice)
        yield {
            "instruction": dice.pick(INSTRUCTIONS),
            "input": text,
            "output": " ".join(f"{question} {answer}" for question, answer in turns),
            "turns": turns,
            "family": f"drill_{kind}",
        }


def _turns(dice: Dice, family: str, asked: Iterable[Asked]) -> list[Turn]:
    """Short or worded, as the dice say; each once, or later ones could be read off the earlier, and
    without what validation and test ask.
    """
    turns = []
    once = {problem.key: (short, problem) for short, problem in asked}
    for short, problem in _of_training(family, once.values()):
        wording = dice.pick([w for w in problem.wordings if "{text}" not in w])
        if dice.below(3):
            question = short
        else:
            question = wording.format(**problem.slots) + ASKED
        turns.append((question, problem.references[0]))
    return turns


def _table(dice: Dice) -> Drill:
    rows, width = dice.between(2, 6), 2 - (dice.below(3) == 0)
    columns = dice.sample(tuple(COLUMNS), width)
    names = dice.sample(NAMES, rows)
    cells = [dice.sample(COLUMNS[column], rows) for column in columns]
    asked = []
    for _ in range(dice.between(8, 16)):
        kind = dice.pick(("cell", "cell", "who", "across") if width == 2 else ("cell", "who"))
        at, column = dice.below(rows), dice.below(width)
        problem = table_question(names, columns, cells, kind, at, column)
        form = {"cell": "{name} {column}", "who": "{column} {value}"}.get(
            kind, "{other} {value} {column}"
        )
        asked.append((form.format(**problem.slots), problem))
    return table_text(names, columns, cells), _turns(dice, "table", asked)


def _hops(dice: Dice) -> Drill:
    names = dice.sample(NAMES, dice.between(4, 9))
    # two chains of the suite's kind
    cut = dice.between(2, len(names) - 2)
    chains = names[:cut], names[cut:]
    edges = [edge for chain in chains for edge in zip(chain, chain[1:], strict=False)]
    text = chain_text(dice, edges)
    asked = []
    for _ in range(dice.between(6, 14)):
        chain = dice.pick(chains)
        at = dice.below(len(chain) - 1)
        longest = min(4, len(chain) - 1 - at)
        # one step is what the others are made of
        steps = 1 if dice.below(2) else dice.between(1, longest)
        problem = hops_question(chain[at:], edges, text, steps)
        asked.append((f"{chain[at]} {SHORT_TIMES[steps]}", problem))
    return text, _turns(dice, "hops", asked)


def _recall(dice: Dice) -> Drill:
    """Bare keys, each in the token before its answer: the least of all look-ups."""
    n, form = dice.between(3, 9), dice.below(4)
    if form == 0:
        words = dice.sample(WORDS, 2 * n)
        key = dict(zip(words[:n], words[n:], strict=True))
        return key_text(dice, key, dice.sample(words[:n], 2)), dice.shuffled(list(key.items()))
    if form == 1:
        names = dice.sample(NAMES, 2 * n)
        edges = list(zip(names[:n], names[n:], strict=True))
        problems = [(edge[0], hops_question(edge, edges, "", 1)) for edge in edges]
        return chain_text(dice, edges), _answered("hops", dice.shuffled(problems))
    column = dice.pick(tuple(COLUMNS))
    cells = dice.sample(COLUMNS[column], n)
    names = dice.sample(NAMES, n)
    kind, shown = ("cell", names) if form == 2 else ("who", cells)
    problems = [
        (shown[at], table_question(names, [column], [cells], kind, at, 0)) for at in range(n)
    ]
    return table_text(names, [column], [cells]), _answered("table", dice.shuffled(problems))


def _answered(family: str, asked: Iterable[Asked]) -> list[Turn]:
    """All short."""
    return [(short, problem.references[0]) for short, problem in _of_training(family, asked)]


def _of_training(family: str, asked: Iterable[Asked]) -> list[Asked]:
    """Without what validation and test ask."""
    return [pair for pair in asked if split_of(family, pair[1].key) == "train"]


def _key(dice: Dice) -> Drill:
    n = dice.between(1, 6)
    words = dice.sample(WORDS, 2 * n + 4)
    key = dict(zip(words[:n], words[n : 2 * n], strict=True))
    others = words[2 * n :]
    turns: list[Turn] = [(word, key.get(word, word)) for word in (*key, *others[:2])]
    for _ in range(dice.between(1, 3)):
        line = dice.shuffled([*key, *others])[: dice.between(2, 7)]
        problem = substitute_question(key, line, "", twice=False)
        if split_of("substitute", problem.key) == "train":
            turns.append((f"Words: {' '.join(line)}{ASKED}", problem.references[0]))
    turns = dice.shuffled(list(dict(turns).items()))
    return key_text(dice, key, dice.sample(others, 2)), turns


def _count(dice: Dice) -> Drill:
    words = with_repeats(dice, dice.between(2, 7), dice.between(1, 8))
    absent = [word for word in dice.sample(WORDS, 9) if word not in words][:2]
    asked = dice.shuffled([*dict.fromkeys(words), *absent])
    problems = [(word, count_question(words, word)) for word in asked if words.count(word) < 10]
    return " ".join(words), _turns(dice, "count", problems)


def _calendar(dice: Dice) -> Drill:
    asked = []
    for _ in range(dice.between(8, 16)):
        problem = _CALENDAR.draw(dice, dice.between(1, 4))
        slots = problem.slots
        unit = "months" if "{months}" in problem.wordings[0] else "days"
        asked.append((f"{slots['n']} {slots[unit]} {slots['after']} {slots['start']}", problem))
    return "", _turns(dice, "calendar", asked)


def _sort(dice: Dice) -> Drill:
    turns: list[Turn] = []
    for _ in range(dice.between(3, 6)):
        words, down = dice.sample(WORDS, dice.between(3, 9)), dice.below(3) == 0
        if split_of("sort", " ".join(sorted(words))) != "train":
            continue
        wordings = SORT_WORDS_DOWN if down else SORT_WORDS
        wording = dice.pick([w for w in wordings if "{text}" in w])
        ordered = " ".join(sorted(words, reverse=down))
        turns.append((wording.format(text=" ".join(words)) + ASKED, ordered))
    return "", turns


_KINDS = {
    "table": _table,
    "hops": _hops,
    "key": _key,
    "count": _count,
    "calendar": _calendar,
    "sort": _sort,
    "recall": _recall,
}
# as often as they are drawn where a phase names none
_WEIGHTED = ("table", "table", "hops", "key", "key", "count", "calendar", "sort")
KINDS = tuple(f"drill_{kind}" for kind in _KINDS)
