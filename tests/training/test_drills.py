"""Drills: answers found once more in another way, several in each, and their share of a phase."""

from __future__ import annotations

import re
from itertools import islice

import pytest

from dynkern.tasks import FAMILIES
from dynkern.tasks.lookups import LINKS, PAIRS
from dynkern.tasks.numbers import number_words
from dynkern.training.pretraining.drills import drill_records
from dynkern.training.pretraining.recipe import Phase
from dynkern.training.pretraining.stream import POOL, TaskStream
from dynkern.training.pretraining.tokenizer import train_task_tokenizer
from support.errors import one_line_error

NUMBERS = {number_words(n): n for n in range(20)}


def _split_by(part: str, forms: tuple[str, ...]) -> tuple[str, str]:
    for form in forms:
        if match := re.fullmatch(form.replace("{}", r"(\w+)"), part):
            return match.groups()
    raise AssertionError(part)


def _pairs(record: dict) -> None:
    key, words = re.fullmatch(r"Key: (.*)\. Words: (.*)", record["input"]).groups()
    table = dict(_split_by(part, PAIRS) for part in key.split(", "))
    assert record["output"].split() == [table[word] for word in words.split()]


def _cells(record: dict) -> None:
    table = {}
    for line in record["input"].split("; "):
        name, cells = line.split(": ")
        for cell in cells.split(", "):
            column, value = cell.split(" ", 1)
            table[column, name], table[column, value] = value, name
    column = re.search(r"\b(city|job|pet|sport|colour|food)\b", record["instruction"]).group()
    known = [word for at, word in table if at == column]
    # in the order in which the instruction names them
    found = re.findall("|".join(rf"\b{re.escape(word)}\b" for word in known), record["instruction"])
    assert record["output"] == " ".join(table[column, word] for word in found)


def _followers(record: dict) -> None:
    table = dict(_split_by(part, LINKS) for part in record["input"].split(", "))
    asked = [w for w in re.findall(r"\w+", record["instruction"]) if w in table]
    assert record["output"].split() == [table[word] for word in asked]


def _tallies(record: dict) -> None:
    asked = re.findall(r"\w+(?=,)|(?<=, )\w+", record["instruction"])
    words = record["input"].split()
    assert [NUMBERS[word] for word in record["output"].split()] == [words.count(w) for w in asked]


SOLVERS = {"pairs": _pairs, "cells": _cells, "followers": _followers, "tallies": _tallies}


def test_answers_are_right_and_several():
    kinds = dict.fromkeys(SOLVERS, 0)
    for record in islice(drill_records(7), 1000):
        SOLVERS[record["family"]](record)
        assert len(record["output"].split()) > 1
        kinds[record["family"]] += 1
    assert min(kinds.values()) > 150
    # what batches tell apart by name
    assert not {*kinds} & {*FAMILIES}


def test_the_stream_goes_on_anywhere():
    whole = list(islice(drill_records(3), 40))
    assert list(islice(drill_records(3, 25), 15)) == whole[25:]
    assert list(islice(drill_records(4), 40)) != whole


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_phase_has_its_share(share):
    tokenizer = train_task_tokenizer(400, 100)
    stream = TaskStream(tokenizer, Phase(1000, 2, drills=share), 5, 2000, 512)
    families, pool = [], stream.pool
    for batch in stream:
        if stream.pool != pool:
            break
        families += batch.families.tolist()
    assert families.count(-1) == round(share * POOL)
    assert len(families) == POOL


def test_a_share_beyond_all_is_refused():
    with one_line_error(ValueError, "drills: got 1.5, expected 0 to 1"):
        Phase(1000, 2, drills=1.5).check()
