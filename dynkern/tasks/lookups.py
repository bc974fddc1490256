"""Families that look things up: table, hops, substitute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dynkern.tasks.problem import Dice, Family, Problem
from dynkern.tasks.words import CITIES, COLOURS, FOODS, JOBS, NAMES, PETS, SPORTS, WORDS

TABLE = (
    "What is the {column} of {name}?",
    "Look up the {column} of {name}.",
    "Find the {column} of {name} in the table.",
    "Which {column} does {name} have?",
    "Tell me the {column} of {name}.",
    "Give the {column} of {name}.",
    "Read the {column} of {name} from the table.",
    "What does the table say about the {column} of {name}?",
    "I need the {column} of {name}.",
    "Which {column} is noted for {name}?",
    "What is the {column} of {name}? {text}",
    "Table: {text}. Give the {column} of {name}.",
)
TABLE_WHO = (
    "Who has the {column} {value}?",
    "Whose {column} is {value}?",
    "Find the person with the {column} {value}.",
    "Name the one whose {column} is {value}.",
    "Look up who has the {column} {value}.",
    "Whose {column} is {value}? {text}",
)
TABLE_ACROSS = (
    "What is the {column} of the person whose {other} is {value}?",
    "Find the {column} of the one with the {other} {value}.",
    "Look up the {column} of whoever has the {other} {value}.",
    "Someone has the {other} {value}. Give the {column} of this person.",
    "Which {column} belongs to the {other} {value}?",
    "The {other} is {value}. What is the {column}? {text}",
)

HOPS = (
    "{name} has the ball. It is passed {times}. Who has it now?",
    "The letter starts with {name} and moves on {times}. Who gets it?",
    "Start at {name} and follow the list {times}. Where do you end?",
    "Begin with {name}. Take {steps}. Who is it?",
    "Go {steps} from {name}. Who do you reach?",
    "Follow the chain from {name} for {steps}.",
    "Who comes {steps} after {name}?",
    "The key is with {name}. It is handed on {times}. Who holds it?",
    "Take {steps} along the chain, starting from {name}.",
    "From {name}, move on {times}. Name the person.",
    "The news starts with {name} and is told {times}. Who hears it last?",
    "Go {steps} from {name}. Who is there? {text}",
    "Start at {name} and follow {times}: {text}",
)

SUBSTITUTE = (
    "Replace the words by the key.",
    "Use the key to change the words.",
    "Write the words in the code of the key.",
    "Translate the words with the key.",
    "Apply the key to the words.",
    "Swap each word that is in the key.",
    "Rewrite the words with the key.",
    "Change every word that the key names.",
    "Use the code on the words.",
    "Put the words through the key.",
    "Exchange the words as the key says.",
    "Use the key on the words. {text}",
    "Rewrite with the key. {text}",
)
SUBSTITUTE_TWICE = (
    "Apply the key twice.",
    "Use the key on the words two times.",
    "Put the words through the key twice.",
    "Translate the words with the key, then translate the result again.",
    "Rewrite the words with the key, and do it again.",
    "Apply the key twice. {text}",
)

COLUMNS = {
    "city": CITIES,
    "job": JOBS,
    "pet": PETS,
    "sport": SPORTS,
    "colour": COLOURS,
    "food": FOODS,
}
_NAMES_OF_COLUMNS = tuple(COLUMNS)

# how an input says that one person leads to the next
LINKS = ("{} to {}", "{} passes to {}", "{} -> {}", "{} sends to {}", "{} then {}")
TIMES = ("", "once", "twice", "three times", "four times")
STEPS = ("", "one step", "two steps", "three steps", "four steps")
PAIRS = ("{} = {}", "{} is {}", "{} means {}", "{} -> {}")


def table_text(names: Sequence[str], columns: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A table in a line. cells: of each column, a value for each name."""
    return "; ".join(
        f"{name}: " + ", ".join(f"{c} {v[i]}" for c, v in zip(columns, cells, strict=True))
        for i, name in enumerate(names)
    )


def chain_text(dice: Dice, edges: Sequence[tuple[str, str]]) -> str:
    """Who leads to whom, in random order."""
    link = dice.pick(LINKS)
    return ", ".join(link.format(*edge) for edge in dice.shuffled(edges))


def key_text(dice: Dice, key: Mapping[str, str], words: Sequence[str]) -> str:
    """A key, in random order, and the words that it is for."""
    pair = dice.pick(PAIRS)
    shown = ", ".join(pair.format(*item) for item in dice.shuffled(list(key.items())))
    return f"Key: {shown}. Words: {' '.join(words)}"


def table_question(
    names: Sequence[str],
    columns: Sequence[str],
    cells: Sequence[Sequence[str]],
    kind: str,
    at: int,
    asked: int,
) -> Problem:
    """A question of a table. kind: "cell" of a named row, "who" for the row of a cell, or "across"
    from another cell of row `at` to that of column `asked`.
    """
    other = 1 - asked if kind == "across" else asked
    slots = {
        "column": columns[asked],
        "name": names[at],
        "other": columns[other],
        "value": cells[other][at],
    }
    if kind == "who":
        question, answer, wordings = f"who {slots['value']}", names[at], TABLE_WHO
    elif kind == "across":
        question, wordings = f"{slots['column']} of {slots['value']}", TABLE_ACROSS
        answer = cells[asked][at]
    else:
        question, wordings = f"{slots['column']} of {slots['name']}", TABLE
        answer = cells[asked][at]
    facts = sorted(
        f"{name} {column} {v[i]}"
        for i, name in enumerate(names)
        for column, v in zip(columns, cells, strict=True)
    )
    key = f"{question}? {'; '.join(facts)}"
    return Problem(key, table_text(names, columns, cells), (answer,), wordings, slots)


def _table(dice: Dice, level: int) -> Problem:
    """Level 1 and 2: a cell of a named row; level 3: the row of a cell; level 4: a cell of the row
    that another cell names.
    """
    rows, width = ((2, 1), (3, 2), (4, 1), (4, 2))[level - 1]
    if level > 1:
        rows -= dice.below(2)
    columns = dice.sample(_NAMES_OF_COLUMNS, width)
    names = dice.sample(NAMES, rows)
    # values differ within a column, so that a cell names one row
    cells = [dice.sample(COLUMNS[column], rows) for column in columns]
    at, asked = dice.below(rows), dice.below(width)
    kind = ("cell", "cell", "who", "across")[level - 1]
    return table_question(names, columns, cells, kind, at, asked)


def hops_question(
    chain: Sequence[str], edges: Sequence[tuple[str, str]], text: str, steps: int
) -> Problem:
    """Who comes `steps` of 1 to 4 after the first of a chain. edges: of all chains in the text."""
    slots = {"name": chain[0], "times": TIMES[steps], "steps": STEPS[steps]}
    key = f"{steps} from {chain[0]}: {'; '.join(' '.join(edge) for edge in sorted(edges))}"
    return Problem(key, text, (chain[steps],), HOPS, slots)


def _hops(dice: Dice, level: int) -> Problem:
    """`level` steps along a chain, which may go on, beside another chain."""
    # where chains end must not give the answer away
    length, side = level + dice.between(0, 1), dice.between(1, 1 + (level > 1))
    names = dice.sample(NAMES, length + 1 + side + 1)
    chain, beside = names[: length + 1], names[length + 1 :]
    edges = [*zip(chain, chain[1:], strict=False), *zip(beside, beside[1:], strict=False)]
    return hops_question(chain, edges, chain_text(dice, edges), level)


def substitute_question(
    key: Mapping[str, str], words: Sequence[str], text: str, twice: bool
) -> Problem:
    """Words through a key, or twice."""
    answer = [key.get(word, word) for word in words]
    if twice:
        answer = [key.get(word, word) for word in answer]
    content = f"{twice} {sorted(key.items())} {' '.join(words)}"
    wordings = SUBSTITUTE_TWICE if twice else SUBSTITUTE
    return Problem(content, text, (" ".join(answer),), wordings)


def _substitute(dice: Dice, level: int) -> Problem:
    """Level 1 to 3: more words and a longer key; level 4: a key applied to its own result."""
    pairs, low, high = ((1, 3, 3), (2, 4, 5), (3, 5, 7), (4, 4, 5))[level - 1]
    twice = level == 4
    if twice:
        a, b, c, d, e, f = dice.sample(WORDS, 6)
        key = {a: b, b: c, d: e, e: f}
    else:
        words = dice.sample(WORDS, 2 * pairs)
        key = dict(zip(words[:pairs], words[pairs:], strict=True))
    targets = [a, d] if twice else list(key)
    n = dice.between(low, high)
    others = [w for w in dice.sample(WORDS, n + 8) if w not in key and w not in key.values()]
    words = dice.shuffled(targets + others[: n - len(targets)])
    return substitute_question(key, words, key_text(dice, key, words), twice)


FAMILIES = (
    Family("table", _table, TABLE + TABLE_WHO + TABLE_ACROSS),
    Family("hops", _hops, HOPS),
    Family("substitute", _substitute, SUBSTITUTE + SUBSTITUTE_TWICE),
)
