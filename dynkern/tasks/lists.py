"""Families over a list of words: copy, reverse, sort, dedupe, nth, count."""

from __future__ import annotations

from collections.abc import Sequence

from dynkern.tasks.problem import Dice, Family, Problem
from dynkern.tasks.words import DIGITS, ORDINALS, WORDS

COPY = (
    "Copy the words.",
    "Repeat these words in the same order.",
    "Write the list again.",
    "Say exactly what is written.",
    "Give the words back as they are.",
    "Echo the words.",
    "Copy this list word for word.",
    "Type the same words again.",
    "Repeat after me.",
    "Write down what I say.",
    "Copy these words: {text}",
    "Please repeat: {text}",
    "Write the following once more: {text}",
)

REVERSE = (
    "Reverse the words.",
    "Write the list backwards.",
    "Turn the order around.",
    "Give the words from last to first.",
    "List the words in reverse order.",
    "Put the words back to front.",
    "Start with the last word and end with the first.",
    "Read the list from the end.",
    "Flip the order of the words.",
    "Say the words the other way round.",
    "Reverse this list: {text}",
    "Please write these words backwards: {text}",
    "What is this list in reverse order? {text}",
)

SORT_WORDS = (
    "Sort the words alphabetically.",
    "Put the words in alphabetical order.",
    "Arrange the words from A to Z.",
    "Order the words as in a dictionary.",
    "List the words by the alphabet.",
    "Sort the list from A to Z.",
    "Write the words in the order of a dictionary.",
    "Bring the words into alphabetical order.",
    "Sort these words from A to Z: {text}",
    "Please order alphabetically: {text}",
    "What is the alphabetical order of these words? {text}",
)
SORT_WORDS_DOWN = (
    "Sort the words from Z to A.",
    "Put the words in alphabetical order, but from Z to A.",
    "Order the words as in a dictionary read from the end, Z to A.",
    "List the words from Z to A.",
    "Arrange these words from Z to A: {text}",
    "Please sort from Z to A: {text}",
)
SORT_NUMBERS = (
    "Sort the numbers from small to large.",
    "Order the numbers by size, smallest first.",
    "Put the numbers in rising order.",
    "Arrange the numbers, smallest first.",
    "List these numbers from small to large: {text}",
    "Please put in rising order: {text}",
)
SORT_NUMBERS_DOWN = (
    "Sort the numbers from large to small.",
    "Order the numbers by size, largest first.",
    "Put the numbers in falling order.",
    "Arrange the numbers, largest first.",
    "List these numbers from large to small: {text}",
    "Please put in falling order: {text}",
)

DEDUPE = (
    "Remove the repeated words.",
    "Keep each word once.",
    "Drop the duplicates.",
    "Delete every word that came before.",
    "List the different words in the order they appear.",
    "Write each word only the first time it appears.",
    "Clean the list of repeats.",
    "Leave out words that were already there.",
    "Give the list without duplicates.",
    "Say every word just once, in the same order.",
    "Remove the duplicates: {text}",
    "Please keep each word once: {text}",
    "Which different words are here? {text}",
)

NTH = (
    "What is the {nth} word?",
    "Give the {nth} word.",
    "Write the {nth} word of the list.",
    "Which word is the {nth} one?",
    "Pick the {nth} word.",
    "Tell me the {nth} word.",
    "Find the {nth} word.",
    "Say the {nth} word only.",
    "Take the {nth} word from the list.",
    "I need the {nth} word.",
    "What is the {nth} word here? {text}",
    "Give the {nth} word of: {text}",
    "Which word comes {nth}? {text}",
)

COUNT = (
    "How many times does {word} appear?",
    "Count the word {word}.",
    "How often is {word} in the list?",
    "How many times is {word} written?",
    "Count how often {word} appears.",
    "Tell me how many times you see {word}.",
    "What is the count of {word}?",
    "Find how often the list says {word}.",
    "How often do you read {word}?",
    "Give the number of times {word} appears.",
    "How many times is {word} in this list? {text}",
    "Count {word} in: {text}",
    "How often does {word} come up here? {text}",
)


def _copy(dice: Dice, level: int) -> Problem:
    low, high = ((3, 4), (5, 6), (7, 9), (10, 13))[level - 1]
    text = " ".join(dice.sample(WORDS, dice.between(low, high)))
    return Problem(text, text, (text,), COPY)


def _reverse(dice: Dice, level: int) -> Problem:
    low, high = ((3, 3), (4, 5), (6, 8), (9, 11))[level - 1]
    words = dice.sample(WORDS, dice.between(low, high))
    text = " ".join(words)
    return Problem(text, text, (" ".join(reversed(words)),), REVERSE)


def _sort(dice: Dice, level: int) -> Problem:
    low, high = ((3, 3), (4, 4), (5, 6), (7, 8))[level - 1]
    n = dice.between(low, high)
    down = level > 2 and dice.below(2) == 1
    if dice.below(4):
        words = dice.sample(WORDS, n)
        ordered = sorted(words, reverse=down)
        wordings = SORT_WORDS_DOWN if down else SORT_WORDS
    else:
        words = [str(i) for i in dice.sample(range(1, 100), n)]
        ordered = sorted(words, key=int, reverse=down)
        wordings = SORT_NUMBERS_DOWN if down else SORT_NUMBERS
    answer = " ".join(ordered)
    # the set decides, not the order that it was given in
    return Problem(" ".join(sorted(words)), " ".join(words), (answer,), wordings)


def with_repeats(dice: Dice, different: int, repeats: int) -> list[str]:
    """A list of `different` words, `repeats` of its places taken by words said before."""
    words = dice.sample(WORDS, different)
    for _ in range(repeats):
        at = dice.between(1, len(words))
        words.insert(at, words[dice.below(at)])
    return words


def _dedupe(dice: Dice, level: int) -> Problem:
    different, repeats = ((3, 1), (4, 2), (6, 3), (8, 4))[level - 1]
    words = with_repeats(dice, different - (level > 1 and dice.below(2)), repeats)
    text = " ".join(words)
    return Problem(text, text, (" ".join(dict.fromkeys(words)),), DEDUPE)


def _nth(dice: Dice, level: int) -> Problem:
    low, high = ((3, 4), (5, 6), (7, 9), (10, 12))[level - 1]
    words = dice.sample(WORDS, dice.between(low, high))
    # from level 2 on also from the end, which needs the length
    n = dice.between(1, level) if level > 1 and dice.below(3) == 0 else 0
    if n:
        nth, place = ("last" if n == 1 else f"{ORDINALS[n - 1]} to last"), len(words) - n
    else:
        place = dice.below(len(words))
        nth = ORDINALS[place]
    text = " ".join(words)
    return Problem(f"{place} {text}", text, (words[place],), NTH, {"nth": nth})


def count_question(words: Sequence[str], word: str) -> Problem:
    """How often a list says a word, up to nine times."""
    times = words.count(word)
    key = f"{word}: {' '.join(sorted(words))}"
    return Problem(key, " ".join(words), (DIGITS[times], str(times)), COUNT, {"word": word})


def _count(dice: Dice, level: int) -> Problem:
    low, high = ((3, 4), (5, 7), (8, 10), (11, 14))[level - 1]
    n = dice.between(low, high)
    times = dice.between(0 if level > 1 else 1, 1 + level)
    word, *others = dice.sample(WORDS, 1 + max(2, (n - times) // 2))
    words = dice.shuffled([word] * times + [dice.pick(others) for _ in range(n - times)])
    return count_question(words, word)


FAMILIES = (
    Family("copy", _copy, COPY),
    Family("reverse", _reverse, REVERSE),
    Family("sort", _sort, SORT_WORDS + SORT_WORDS_DOWN + SORT_NUMBERS + SORT_NUMBERS_DOWN),
    Family("dedupe", _dedupe, DEDUPE),
    Family("nth", _nth, NTH),
    Family("count", _count, COUNT),
)
