"""A second opinion on the task suite: what a prompt asks and what is right, from its text alone.

Written without the suite: no table, wording or helper of dynkern.tasks is used. The kind of task is
found from the words of the instruction, the data in the input or at the end of the instruction.
"""

from __future__ import annotations

import bisect
import datetime
import re
from collections.abc import Hashable
from dataclasses import dataclass

ORDINALS = (
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth".split()
)
COUNTS = {"once": 1, "one": 1, "twice": 2, "two": 2, "three": 3, "four": 4}
EDGE = r"([A-Z]\w*) (?:passes to|sends to|to|then|->) ([A-Z]\w*)"
# base units of a unit, by kind; a month and a year have no fixed length in days
SIZES = {
    **{"millimetre": 1, "centimetre": 10, "metre": 1000, "kilometre": 10**6},
    **{"second": 1, "minute": 60, "hour": 3600, "day": 86400, "week": 604800},
    **{"gram": 1, "kilogram": 1000, "millilitre": 1, "litre": 1000, "cent": 1, "euro": 100},
    **{"month": 1, "year": 12, "foot": 1, "yard": 3},
}
AMOUNT = rf"\d+ (?:{'|'.join(SIZES)}|feet)s?"
# where the data begins when the input is empty
INLINE = (
    r"(Key: .*)$",
    r"^Table: (.*?)\. (?=Give)",
    r"\? ([A-Z]\w*: .*)$",
    r": ((?:name|event): .*)$",
    rf"[?:] ({EDGE}(?:, {EDGE})*)$",
    r"^(?:Clean this up:|What was meant\?) (.*)$",
    r"[:?] ([a-z0-9]+(?: [a-z0-9]+)+)$",
)
# the word that is counted
COUNTED = (
    r"(?:times|often) (?:does|is) (\w+)|the word (\w+)|how often (\w+) appears|you see (\w+)|"
    r"count of (\w+)|list says (\w+)|you read (\w+)|number of times (\w+)|^count (\w+) in"
)
RECIPE_STEPS = (
    ("reverse", r"reverse the words|turn the order around|put the list back to front"),
    ("sort", r"sort from a to z|words in alphabetical order|sort alphabetically"),
    ("unique", r"remove the duplicates|keep each word once|drop the repeats"),
    ("tail", r"(?:drop|leave out|remove) the first word"),
    ("init", r"(?:drop|leave out|remove) the last word"),
    ("swap", r"(?:swap|exchange) the first and the last word"),
    ("0", r"(?:give|take|write only) the first word"),
    ("1", r"(?:give|take|write only) the second word"),
    ("2", r"(?:give|take|write only) the third word"),
)


@dataclass(frozen=True)
class Solved:
    """kind: family; content: what is asked, wording aside; answers: all that are right."""

    kind: str
    content: Hashable
    answers: frozenset[str]


def solve(instruction: str, text: str) -> Solved:
    question, data = _parts(instruction, text)
    low = question.lower()
    if data.startswith("Key:"):
        kind, content, answers = "substitute", *_substitute(low, data)
    elif re.match(r"(name|event): ", data):
        kind, content, answers = "sentence", *_sentence(data)
    elif re.search(rf"^{EDGE}(, {EDGE})*$", data):
        kind, content, answers = "hops", *_hops(question, data)
    elif re.match(r"[A-Z]\w*: ", data):
        kind, content, answers = "table", *_table(question, data)
    elif re.match(r"[A-Z].*\.$", data):
        kind, content, answers = "slip", *_slip(data)
    elif found := re.search(r"(\d+) (day|month)s? (before|after) (it|\d* ?[A-Z]\w+)", question):
        start = re.search(r"Take (.*) and find", question)
        asked = (*found.groups()[:3], start[1] if start else found[4])
        kind, content, answers = "calendar", *_calendar(*asked)
    elif found := re.search(rf"{AMOUNT}( and {AMOUNT})?", data or question):
        kind, content, answers = "units", *_units(found[0], question.replace(found[0], ""))
    elif " " not in data and re.search("letter|spell", low) and not re.search(r"\d", low + data):
        kind, content, answers = "spell", *_spell(question, data)
    elif " " not in data:
        kind, content, answers = "number", *_number(int(re.search(r"\d+", data or question)[0]))
    else:
        kind, content, answers = _list(low, data.split())
    return Solved(kind, content, frozenset(answers))


def _parts(instruction: str, text: str) -> tuple[str, str]:
    if text:
        return instruction, text
    for pattern in INLINE:
        if found := re.search(pattern, instruction):
            return instruction.replace(found[1], "", 1), found[1]
    return instruction, ""


def _list(low: str, words: list[str]) -> tuple[str, Hashable, list[str]]:
    steps = sorted(
        (found.start(), name)
        for name, pattern in RECIPE_STEPS
        for found in re.finditer(pattern, low)
    )
    if len(steps) > 1:
        names = [name for _, name in steps]
        return "recipe", (*names, *words), [" ".join(follow(names, words))]
    if re.search(r"how many times|how often|count|number of times", low):
        asked = next(filter(None, re.search(COUNTED, low).groups()))
        times = sum(word == asked for word in words)
        said = "zero one two three four five six seven".split()[times]
        return "count", (asked, *sorted(words)), [said, str(times)]
    if re.search(r"alphabet|a to z|z to a|dictionary|numbers|rising|falling", low):
        ordered: list = []
        for word in words:
            bisect.insort(ordered, int(word) if word.isdigit() else word)
        if re.search(r"z to a|large to small|largest|falling", low):
            ordered = ordered[::-1]
        return "sort", frozenset(words), [" ".join(map(str, ordered))]
    if re.search(
        r"revers|backwards|order around|back to front|last to first|end with|from the end"
        r"|flip|other way",
        low,
    ):
        return "reverse", tuple(words), [" ".join(words[-i] for i in range(1, len(words) + 1))]
    if re.search(
        r"repeated|of repeats|duplicates|came before|different|first time|already there"
        r"|(each|every) word (just )?once",
        low,
    ):
        return "dedupe", tuple(words), [" ".join(_unique(words))]
    ordinal = "|".join(ORDINALS)
    if found := re.search(
        rf"\b({ordinal}|last)( to last)? (?:word|one)|comes (\w+)( to last)?", low
    ):
        place, back = (found[1] or found[3]), (found[2] or found[4])
        at = 0 if place == "last" else ORDINALS.index(place)
        at = len(words) - 1 - at if back or place == "last" else at
        return "nth", (at, *words), [words[at]]
    assert re.search(r"copy|repeat|again|exactly|as they are|echo|what i say|once more", low), low
    return "copy", tuple(words), [" ".join(words)]


def _unique(words: list[str]) -> list[str]:
    return [word for i, word in enumerate(words) if word not in words[:i]]


def follow(names: list[str], words: list[str]) -> list[str]:
    """What the steps of a recipe, by their names in RECIPE_STEPS, make of the words."""
    for name in names:
        if name.isdigit():
            words = words[int(name) : int(name) + 1]
        elif name == "swap":
            words = words[-1:] + words[1:-1] + words[:1] if words[1:] else words
        else:
            change = {
                "reverse": lambda w: list(reversed(w)),
                "sort": sorted,
                "unique": _unique,
                "tail": lambda w: w[1:],
                "init": lambda w: w[: len(w) - 1],
            }
            words = change[name](words)
    return words


def _substitute(low: str, data: str) -> tuple[Hashable, list[str]]:
    told, listed = re.fullmatch(r"Key: (.*)\. Words: (.*)", data).groups()
    key = dict(re.findall(r"(\w+) (?:=|is|means|->) (\w+)", told))
    words, twice = listed.split(), bool(re.search(r"twice|two times|again", low))
    result = words
    for _ in range(1 + twice):
        result = [key[word] if word in key else word for word in result]
    return (twice, frozenset(key.items()), *words), [" ".join(result)]


def _hops(question: str, data: str) -> tuple[Hashable, list[str]]:
    edges = re.findall(EDGE, data)
    (here,) = {a for a, _ in edges} & set(re.findall(r"[A-Z]\w+", question))
    count = COUNTS[re.search(r"\b(once|twice|one|two|three|four)\b", question)[1]]
    content = (here, count, frozenset(edges))
    for _ in range(count):
        (here,) = [b for a, b in edges if a == here]
    return content, [here]


def _table(question: str, data: str) -> tuple[Hashable, list[str]]:
    cells = {}
    for row in data.split("; "):
        name, told = row.split(": ")
        cells |= {(name, cell.split(" ")[0]): cell.split(" ")[1] for cell in told.split(", ")}
    words = re.findall(r"\w+", question)
    columns = [word for word in words if word in {column for _, column in cells}]
    if named := [word for word in words if word in {name for name, _ in cells}]:
        asked = (columns[0], named[0])
        answer = cells[named[0], columns[0]]
    else:
        # the column before a value is the one that it stands in
        ((other, value),) = re.findall(
            rf"({'|'.join(columns)}) (?:is )?({'|'.join(cells.values())})\b", question
        )
        ((name, _),) = [place for place, cell in cells.items() if cell == value]
        wanted = [column for column in columns if column != other]
        asked = (*wanted, other, value)
        answer = cells[name, wanted[0]] if wanted else name
    return (asked, frozenset((*place, cell) for place, cell in cells.items())), [answer]


def _sentence(data: str) -> tuple[Hashable, list[str]]:
    facts = dict(item.split(": ") for item in data.split("; "))

    def may(before: str, name: str) -> str:
        return f"{before}{facts[name]}" if name in facts else ""

    city, day, time = may(" in ", "city"), may(" on ", "day"), may(" at ", "time")
    if "job" in facts:
        name, job, sport = facts["name"], facts["job"], may(" and likes ", "sport")
        said = [
            f"{name} is a {job}{may(' from ', 'city')}{may(' with a ', 'pet')}"
            + may(" who likes ", "sport"),
            f"{name} works as a {job}{city}{sport}{may(' and has a ', 'pet')}",
            f"{city} {name} is a {job}{may(' who has a ', 'pet')}{sport}",
        ]
    elif "type" in facts:
        name, kind = facts["name"], facts["type"]
        said = [
            f"the {name} is a {kind}{city}{may(' that serves ', 'food')}"
            + may(" and is ", "quality"),
            f"{city} there is a {kind} called the {name}{may(' serving ', 'food')}"
            + may(" and known as ", "quality"),
        ]
    elif "to" in facts:
        name, to, by, friend = facts["name"], facts["to"], may(" by ", "by"), may("with ", "with")
        said = [
            f"{name} travels to {to} {friend}{by}{day}",
            f"{name} goes to {to}{day}{by}{' together' if friend else ''} {friend}",
            f"{day} {name} travels to {to}{by} {friend}",
        ]
    else:
        event, host = facts["event"], may(" with ", "host")
        said = [
            f"the {event} is{city}{day}{time}{host}",
            f"{day}{time} there is a {event}{host}{city}",
        ]
    tidy = [" ".join(text.split()) for text in said]
    return frozenset(facts.items()), [text[0].upper() + text[1:] + "." for text in tidy]


def _slip(data: str) -> tuple[Hashable, list[str]]:
    data = data[0].lower() + data[1:-1]
    words = [word for word in data.split() if word not in ("um", "uh", "er", "hm")]
    text = " ".join(words)
    while found := re.search(
        r" (sorry I mean|no sorry|I mean|wait no|no rather|or rather) (\S+)", text
    ):
        before = text[: found.start()].split()
        # what is said again goes back to where it was said first
        back = 2 if before[-2].lower() == found[2] else 1
        text = " ".join(before[:-back]) + f" {found[2]}" + text[found.end() :]
    clean = text[0].upper() + text[1:] + "."
    return clean, [clean]


def _calendar(n: str, unit: str, direction: str, start: str) -> tuple[Hashable, list[str]]:
    steps = int(n) if direction == "after" else -int(n)
    content = (start, steps, unit)
    if unit == "month":
        months = [datetime.date(2023, m, 1).strftime("%B") for m in range(1, 13)]
        return content, [months[(months.index(start) + steps) % 12]]
    # a Monday, or the date in a common year with another on both sides
    shape = "%Y %B %d" if " " in start else ""
    if shape:
        day, month = start.split()
        then = datetime.datetime.strptime(f"2022 {month} {day}", shape)
        then += datetime.timedelta(days=steps)
        return content, [f"{then.day} {then:%B}", f"{then:%B} {then.day}"]
    then = datetime.date(2024, 1, 1)
    while f"{then:%A}" != start:
        then += datetime.timedelta(days=1)
    return content, [f"{then + datetime.timedelta(days=steps):%A}"]


def _units(given: str, rest: str) -> tuple[Hashable, list[str]]:
    def single(unit: str) -> str:
        return unit.replace("feet", "foot").rstrip("s")

    (target,) = {single(w) for w in re.findall(r"[a-z]+", rest)} & set(SIZES)
    base = sum(int(n) * SIZES[single(unit)] for n, unit in re.findall(r"(\d+) ([a-z]+)", given))
    n, left = divmod(base, SIZES[target])
    assert not left
    unit = "feet" if target == "foot" else f"{target}s"
    return (given, target), [f"{n} {target if n == 1 else unit}", str(n)]


def _spell(question: str, data: str) -> tuple[Hashable, list[str]]:
    inline = re.search(r"the name ([a-z]+)|letters of ([a-z]+)|[Ss]pell (?!the )([a-z]+)", question)
    word = data or next(filter(None, inline.groups()))
    back = re.search(r"backwards|last to first|last letter first|reverse|from the end", question)
    return word, [" ".join(word[::-1] if back else word)]


def _number(n: int) -> tuple[Hashable, list[str]]:
    small = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    names = [*small.split(), *"fifteen sixteen seventeen eighteen nineteen".split()]
    tens = "twenty thirty forty fifty sixty seventy eighty ninety".split()

    def under_hundred(k: int) -> str:
        if k < 20:
            return names[k]
        return tens[k // 10 - 2] + ("" if k % 10 == 0 else "-" + names[k % 10])

    thousands, hundreds, rest = n // 1000, n // 100 % 10, n % 100
    said = [f"{under_hundred(thousands)} thousand"] if thousands else []
    said += [f"{names[hundreds]} hundred"] if hundreds else []
    if not rest:
        return n, [" ".join(said) or "zero"]
    last = under_hundred(rest)
    return n, [" ".join([*said, last]), " ".join([*said, *(["and"] if said else []), last])]
