"""Drills: answers found once more in another way, asked once each, and their share of a phase."""

from __future__ import annotations

import re
from collections import Counter
from datetime import date, timedelta
from itertools import islice

import pytest

from dynkern.tasks import FAMILIES
from dynkern.tasks.lookups import LINKS, PAIRS
from dynkern.tasks.numbers import number_words
from dynkern.tasks.problem import split_of
from dynkern.training.data import IGNORED
from dynkern.training.pretraining import drills
from dynkern.training.pretraining.drills import ASKED, KINDS, drill_records
from dynkern.training.pretraining.recipe import Phase
from dynkern.training.pretraining.stream import FAMILY_NUMBER, POOL, TaskStream, encode
from dynkern.training.pretraining.tokenizer import train_task_tokenizer
from support.errors import one_line_error

NUMBERS = {number_words(n): n for n in range(20)}
STEPS = {"once": 1, "one": 1, "twice": 2, "two": 2, "three": 3, "four": 4}
COLUMNS = ("city", "job", "pet", "sport", "colour", "food")


def _split_by(part: str, forms: tuple[str, ...]) -> tuple[str, str]:
    for form in forms:
        if match := re.fullmatch(form.replace("{}", r"(\w+)"), part):
            return match.groups()
    raise AssertionError(part)


def _table(text: str, question: str) -> str:
    rows = {}
    for line in text.split("; "):
        name, cells = line.split(": ")
        rows[name] = dict(cell.split(" ", 1) for cell in cells.split(", "))
    words = re.findall(r"\w+", question)
    named = [name for name in rows if name in words]
    # the column asked for: the one without a value in the question
    if named:
        (name,) = named
        (column,) = [word for word in words if word in COLUMNS]
        return rows[name][column]
    (name,) = [name for name in rows if any(cell in words for cell in rows[name].values())]
    given = {column for column, cell in rows[name].items() if cell in words}
    others = [word for word in words if word in COLUMNS and word not in given]
    return rows[name][others[0]] if others else name


def _hops(text: str, question: str) -> str:
    following = dict(_split_by(part, LINKS) for part in text.split(", "))
    words = re.findall(r"\w+", question)
    (name,) = [word for word in words if word in following]
    (steps,) = [STEPS[word] for word in words if word in STEPS]
    for _ in range(steps):
        name = following[name]
    return name


def _key(text: str, question: str) -> str:
    key = dict(_split_by(p, PAIRS) for p in re.fullmatch(r"Key: (.*?)\..*", text)[1].split(", "))
    words = question.removeprefix("Words: ").split()
    return " ".join(key.get(word, word) for word in words)


def _count(text: str, question: str) -> str:
    said = text.split()
    wordings = [
        wording.replace("{word}", r"(\w+)").replace("?", r"\?")
        for wording in FAMILIES["count"].wordings
    ]
    (word,) = next(
        filter(None, (re.fullmatch(w, question) for w in ("(\\w+)", *wordings)))
    ).groups()
    return number_words(said.count(word))


def _calendar(_: str, question: str) -> str:
    days = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
    months = [date(2001, month, 1).strftime("%B") for month in range(1, 13)]
    n, unit, way = re.search(r"(\d+) (day|month)s? (after|before)", question).groups()
    n = int(n) if way == "after" else -int(n)
    (start,) = re.findall("|".join(days + months), question)
    if start in days:
        return days[(days.index(start) + n) % 7]
    if unit == "month":
        return months[(months.index(start) + n) % 12]
    day = re.search(rf"(\d+) {start}", question)[1]
    found = date(2001, months.index(start) + 1, int(day)) + timedelta(days=n)
    return f"{found.day} {months[found.month - 1]}"


def _sort(_: str, question: str) -> str:
    words = re.search(r"[:?] (.*)", question)[1].split()
    return " ".join(sorted(words, reverse="from Z to A" in question))


def _recall(text: str, question: str) -> str:
    if text.startswith("Key: "):
        return _key(text, question)
    if ": " not in text:
        return _hops(text, f"{question} once")
    column = re.match(r"\w+: (\w+)", text)[1]
    owner = any(line.startswith(f"{question}: ") for line in text.split("; "))
    return _table(text, f"{question} {column}" if owner else question)


SOLVERS = {
    "drill_recall": _recall,
    "drill_table": _table,
    "drill_hops": _hops,
    "drill_key": _key,
    "drill_count": _count,
    "drill_calendar": _calendar,
    "drill_sort": _sort,
}


def test_answers_are_right_and_asked_once():
    kinds, worded = Counter(), Counter()
    for record in [*islice(drill_records(7), 1000), *islice(drill_records(8, 0, KINDS), 1000)]:
        questions = [question for question, _ in record["turns"]]
        for question, answer in record["turns"]:
            assert (
                SOLVERS[record["family"]](record["input"], question.removesuffix(ASKED)) == answer
            )
            worded[question.endswith(ASKED)] += 1
        # else an answer could be read off an earlier one
        assert len(set(questions)) == len(questions) > 0
        assert record["output"] == " ".join(f"{q} {a}" for q, a in record["turns"])
        kinds[record["family"]] += 1
    assert set(kinds) == set(KINDS) == set(SOLVERS) and min(kinds.values()) > 80
    assert sum(kinds.values()) * 4 < sum(worded.values()) and min(worded.values()) > 1000
    # what batches tell apart by name
    assert not {*kinds} & {*FAMILIES}


def test_nothing_of_validation_and_test_is_asked(monkeypatch):
    asked = Counter()

    def watched(family: str, key: str) -> str:
        split = split_of(family, key)
        asked[family, split] += 1
        return split

    monkeypatch.setattr(drills, "split_of", watched)
    turns = Counter()
    for record in islice(drill_records(5), 400):
        turns[record["family"]] += len(record["turns"])
    for family in ("table", "hops", "count", "calendar", "sort"):
        # each question was looked at, and those of the other splits are gone
        assert turns[f"drill_{family}"] == asked[family, "train"] > 0
        assert asked[family, "test"] > 0


def test_training_hears_the_answers_alone():
    tokenizer = train_task_tokenizer(600, 100)
    rows = list(islice(drill_records(9), 60))
    for row, (ids, targets, family) in zip(rows, encode(tokenizer, rows, 4000), strict=True):
        assert family == FAMILY_NUMBER[row["family"]] and len(ids) == len(targets)
        heard = [token for token in targets if token != IGNORED]
        answers = " ".join(answer for _, answer in row["turns"])
        assert tokenizer.decode(heard).split() == answers.split()
        # each is what stands behind the place
        assert all(t in (IGNORED, i) for t, i in zip(targets, ids[1:], strict=False))
        whole = tokenizer.decode(ids[1:-1])
        assert whole.split()[-len(row["output"].split()) :] == row["output"].split()


def test_the_stream_goes_on_anywhere():
    kinds = ("drill_sort", "drill_recall")
    some = list(islice(drill_records(3, 0, kinds), 40))
    assert {record["family"] for record in some} == {*kinds}
    assert list(islice(drill_records(3, 25, kinds), 15)) == some[25:]
    whole = list(islice(drill_records(3), 40))
    assert list(islice(drill_records(3, 25), 15)) == whole[25:]
    assert list(islice(drill_records(4), 40)) != whole


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_phase_has_its_share(share):
    tokenizer = train_task_tokenizer(400, 100)
    stream = TaskStream(tokenizer, Phase(1000, 2, drills=share), 5, 2000, 4000)
    families, pool = [], stream.pool
    for batch in stream:
        if stream.pool != pool:
            break
        families += batch.families.tolist()
    least = min(FAMILY_NUMBER[kind] for kind in KINDS)
    assert sum(family >= least for family in families) == round(share * POOL)
    assert len(families) == POOL


def test_a_share_beyond_all_and_unknown_kinds_are_refused():
    with one_line_error(ValueError, "drills: got 1.5, expected 0 to 1"):
        Phase(1000, 2, drills=1.5).check()
    with one_line_error(ValueError, "kinds: got 'table', expected one of drill_table, "):
        Phase(1000, 2, drills=0.5, kinds=("table",)).check()
