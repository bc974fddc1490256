"""Families over letters, numbers, dates and measures: spell, number, calendar, units."""

from __future__ import annotations

from dynkern.tasks.problem import Dice, Family, Problem
from dynkern.tasks.words import MONTH_DAYS, MONTHS, TENS, UNDER_TWENTY, WEEKDAYS

SPELL = (
    "Spell the word.",
    "Write the word letter by letter.",
    "Give the letters one by one.",
    "Spell it out.",
    "Which letters make up this word?",
    "Say each letter of the word.",
    "Put a space between the letters.",
    "Take the word apart into letters.",
    "List the letters in order.",
    "Split the word into its letters.",
    "Spell {text}.",
    "How do you spell {text}?",
    "Spell the name {text} for me.",
    "What are the letters of {text}?",
)
SPELL_BACKWARDS = (
    "Spell the word backwards.",
    "Write the letters of the word from last to first.",
    "Give the letters backwards.",
    "Say each letter, last letter first.",
    "List the letters in reverse order.",
    "Spell {text} backwards.",
    "How do you spell {text} from the end?",
    "What are the letters of {text} in reverse?",
)

NUMBER = (
    "Write the number in words.",
    "Say the number in words.",
    "How is this number read aloud?",
    "Spell out the number.",
    "Turn the digits into words.",
    "Give the number in words.",
    "Put this number into words.",
    "Write {text} in words.",
    "What is {text} in words?",
    "How do you say {text}?",
    "Read {text} aloud.",
    "Write out {text} as words.",
)

WEEKDAY = (
    "What day is {n} {days} {after} {start}?",
    "Which day comes {n} {days} {after} {start}?",
    "Name the day {n} {days} {after} {start}.",
    "Tell me the day that is {n} {days} {after} {start}.",
    "Give the weekday {n} {days} {after} {start}.",
    "Take {start} and find the day {n} {days} {after} it.",
    "The shop opens {n} {days} {after} {start}. On which day?",
    "Which weekday do we have {n} {days} {after} {start}?",
    "We meet {n} {days} {after} {start}. What day is that?",
    "I need the day {n} {days} {after} {start}.",
)
MONTH = (
    "What month is {n} {months} {after} {start}?",
    "Which month comes {n} {months} {after} {start}?",
    "Name the month {n} {months} {after} {start}.",
    "Tell me the month that is {n} {months} {after} {start}.",
    "The course ends {n} {months} {after} {start}. In which month?",
    "I need the month {n} {months} {after} {start}.",
)
DATE = (
    "What date is {n} {days} {after} {start}?",
    "Which date comes {n} {days} {after} {start}?",
    "Name the date {n} {days} {after} {start}.",
    "Tell me the date that is {n} {days} {after} {start}.",
    "In a common year, what date is {n} {days} {after} {start}?",
    "Give the date {n} {days} {after} {start}.",
    "The fair is {n} {days} {after} {start}. On which date?",
    "Take {start} and find the date {n} {days} {after} it.",
)

UNITS = (
    "Convert {text} to {unit}.",
    "How many {unit} are {text}?",
    "Change {text} into {unit}.",
    "What is {text} in {unit}?",
    "Express {text} in {unit}.",
    "Write {text} as {unit}.",
    "Give {text} in {unit}.",
    "Turn {text} into {unit}.",
    "Say {text} in {unit}.",
    "I have {text}. How much is that in {unit}?",
    "Convert to {unit}.",
    "How much is this in {unit}?",
    "Express this in {unit}.",
)

_ONSETS = tuple("b d f g h k l m n p r s t v w z br dr fl gr kl pl st tr".split())
_VOWELS = tuple("a e i o u".split())
_CODAS = tuple("b d g k l m n p r s t x".split())


def _made_up(dice: Dice, letters: int) -> str:
    """A name that nobody has: syllables up to exactly `letters` letters."""
    name = ""
    while len(name) < letters:
        name += dice.pick(_ONSETS) + dice.pick(_VOWELS)
        if dice.below(2):
            name += dice.pick(_CODAS)
    return name[:letters]


def _spell(dice: Dice, level: int) -> Problem:
    # a word of one's own: the letters of a held-out common word could not be known
    name = _made_up(dice, dice.between(*((3, 4), (5, 6), (7, 8), (4, 7))[level - 1]))
    letters = reversed(name) if level == 4 else name
    wordings = SPELL_BACKWARDS if level == 4 else SPELL
    return Problem(name, name, (" ".join(letters),), wordings)


def number_words(n: int, link: str = "and ") -> str:
    """n of 0..99,999 in English words; `link` stands before the last two digits ("and " or "")."""
    if n >= 1000:
        rest = n % 1000
        tail = "" if not rest else " " + (link if rest < 100 else "") + number_words(rest, link)
        return f"{number_words(n // 1000, link)} thousand{tail}"
    if n >= 100:
        tail = f" {link}{number_words(n % 100)}" if n % 100 else ""
        return f"{UNDER_TWENTY[n // 100]} hundred{tail}"
    if n >= 20:
        return TENS[n // 10] + (f"-{UNDER_TWENTY[n % 10]}" if n % 10 else "")
    return UNDER_TWENTY[n]


def _number(dice: Dice, level: int) -> Problem:
    n = dice.between(*((0, 99), (100, 999), (1000, 9999), (10_000, 99_999))[level - 1])
    references = dict.fromkeys((number_words(n), number_words(n, "")))
    return Problem(str(n), str(n), tuple(references), NUMBER)


def _calendar(dice: Dice, level: int) -> Problem:
    sign = dice.pick((1, -1))
    if level > 2:
        return _date(dice, sign, level)
    if dice.below(2):
        n = dice.between(*((1, 3), (4, 13))[level - 1])
        start, cycle, wordings = dice.below(7), WEEKDAYS, WEEKDAY
    else:
        n = dice.between(*((1, 3), (4, 11))[level - 1])
        start, cycle, wordings = dice.below(12), MONTHS, MONTH
    answer = cycle[(start + sign * n) % len(cycle)]
    slots = _span(n, sign, cycle[start])
    return Problem(f"{cycle[start]} {sign * n}", "", (answer,), wordings, slots)


def _date(dice: Dice, sign: int, level: int) -> Problem:
    """Level 3 stays in a month, level 4 crosses into the next one or the one before."""
    month = dice.below(12)
    length = MONTH_DAYS[month]
    n = dice.between(2, 9)
    if (level == 3) == (sign > 0):
        day = dice.between(1, length - n) if level == 3 else dice.between(1, n)
    else:
        day = dice.between(n + 1, length) if level == 3 else dice.between(length - n + 1, length)
    end = day + sign * n
    if end > length:
        answer = end - length, (month + 1) % 12
    elif end < 1:
        answer = end + MONTH_DAYS[month - 1], (month - 1) % 12
    else:
        answer = end, month
    day_first, month_first = (
        f"{answer[0]} {MONTHS[answer[1]]}",
        f"{MONTHS[answer[1]]} {answer[0]}",
    )
    start = f"{day} {MONTHS[month]}"
    slots = _span(n, sign, start)
    return Problem(f"{start} {sign * n}", "", (day_first, month_first), DATE, slots)


def _span(n: int, sign: int, start: str) -> dict[str, str]:
    plural = "" if n == 1 else "s"
    after = "after" if sign > 0 else "before"
    return {
        "n": str(n),
        "days": f"day{plural}",
        "months": f"month{plural}",
        "after": after,
        "start": start,
    }


# how many of the second unit make one of the first
DECIMAL = (
    ("metre", "centimetre", 100),
    ("kilometre", "metre", 1000),
    ("centimetre", "millimetre", 10),
    ("kilogram", "gram", 1000),
    ("litre", "millilitre", 1000),
    ("euro", "cent", 100),
)
OTHER = (
    ("hour", "minute", 60),
    ("minute", "second", 60),
    ("day", "hour", 24),
    ("week", "day", 7),
    ("year", "month", 12),
    ("yard", "foot", 3),
)
MIXED = (
    ("hour", "minute", 60),
    ("metre", "centimetre", 100),
    ("week", "day", 7),
    ("year", "month", 12),
    ("euro", "cent", 100),
)


def amount(n: int, unit: str) -> str:
    """n with its unit in the right number: "1 metre", "5 feet"."""
    return f"{n} {unit if n == 1 else _plural(unit)}"


def _plural(unit: str) -> str:
    return "feet" if unit == "foot" else unit + "s"


def _units(dice: Dice, level: int) -> Problem:
    """Level 1 multiplies by a power of ten, level 2 divides by one, level 3 multiplies by another
    factor, level 4 also adds.
    """
    large, small, factor = dice.pick((DECIMAL, DECIMAL, OTHER, MIXED)[level - 1])
    n = dice.between(2, (99, 99, 20, 12)[level - 1])
    given, result, unit = amount(n, large), n * factor, small
    if level == 2:
        given, result, unit = amount(n * factor, small), n, large
    elif level == 4:
        more = dice.between(1, factor - 1)
        given, result = f"{given} and {amount(more, small)}", result + more
    answer = amount(result, unit)
    slots = {"unit": _plural(unit)}
    return Problem(f"{given} = {unit}", given, (answer, str(result)), UNITS, slots)


FAMILIES = (
    Family("spell", _spell, SPELL + SPELL_BACKWARDS),
    Family("number", _number, NUMBER),
    Family("calendar", _calendar, WEEKDAY + MONTH + DATE),
    Family("units", _units, UNITS),
)
