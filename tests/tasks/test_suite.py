"""The task suite: every answer is right, the splits share no content, and nothing drifts."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import islice

import pytest

from dynkern.tasks import FAMILIES, LEVELS, SPLITS, records
from dynkern.tasks.numbers import number_words
from dynkern.tasks.problem import Dice, split_of
from support.task_solver import RECIPE_STEPS, follow, solve

COUNTS = {"train": 40_000, "validation": 6_400, "test": 6_400}
# of the first 1,024 records, seed 0; it changes only where the suite is meant to change
GOLDEN = {
    "train": "8d3f8fc9b8428ca57d2942f139615ec79dacef62dfffa9edcca1df8806408368",
    "validation": "03689d55876ef8fe764d5dec8597c0c4f752c459a5dba5b6fa5969df9bd7e694",
    "test": "2ac6a14d4b059f032daf813f7a3fa96423d849c0a4fee8b7aaa655de31e12de8",
}


@pytest.fixture(scope="module")
def drawn() -> dict[str, list[dict]]:
    return {split: list(islice(records(split, seed=5), n)) for split, n in COUNTS.items()}


@pytest.fixture(scope="module")
def contents(drawn) -> dict[str, dict[str, set]]:
    """What is asked, read from the text of every prompt: split → family → contents. The answers
    are compared on the way."""
    found = {split: defaultdict(set) for split in SPLITS}
    for split, rows in drawn.items():
        for row in rows:
            solved = solve(row["instruction"], row["input"])
            assert solved.kind == row["family"], row
            assert solved.answers == set(row["references"]), row
            found[split][solved.kind].add(solved.content)
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_answers_are_right_in_every_wording_at_every_level(name):
    family = FAMILIES[name]
    asked = set()
    for level in LEVELS:
        for i in range(40):
            problem = family.draw(Dice("wordings", name, level, i), level)
            for wording in problem.wordings:
                one = replace(problem, wordings=(wording,))
                instruction, text = one.written(Dice(0))
                solved = solve(instruction, text)
                assert solved.kind == name, instruction
                assert solved.answers == set(problem.references), (instruction, text)
                asked.add(wording)
    # a recipe writes its own instruction: one frame, many ways to say a step
    assert asked == set(family.wordings) if name != "recipe" else len(asked) > 100


def test_splits_are_disjoint_by_content(contents):
    kinds = {kind for split in SPLITS for kind in contents[split]}
    assert kinds == set(FAMILIES)
    for kind in kinds:
        train, validation, test = (contents[split][kind] for split in SPLITS)
        assert train and validation and test
        assert not train & test, kind
        assert not train & validation, kind
        assert not validation & test, kind


def test_contents_can_meet(contents):
    """The comparison above is not vacuous: another seed of the same split meets the same contents
    where there are few of them."""
    rows = islice(records("train", seed=6, families=["number", "calendar"]), 2000)
    again = [solve(row["instruction"], row["input"]) for row in rows]
    met = sum(solved.content in contents["train"][solved.kind] for solved in again)
    assert met > 600


def test_small_contents_are_held_out_too(contents):
    numbers = {split: {n for n in contents[split]["number"] if n < 100} for split in SPLITS}
    # all of them are somewhere, and every split has some
    assert set.union(*numbers.values()) == set(range(100))
    assert {split: len(found) >= 5 for split, found in numbers.items()} == dict.fromkeys(
        SPLITS, True
    )
    for unit, few in (("day", 7 * 2 * 3), ("month", 12 * 2 * 3)):
        steps = {
            split: {c for c in contents[split]["calendar"] if c[2] == unit and abs(c[1]) < 4}
            - {c for c in contents[split]["calendar"] if " " in c[0]}
            for split in SPLITS
        }
        # no content in two of them, nearly all of them met
        assert 0.9 * few < sum(map(len, steps.values())) <= few
        assert all(steps.values())


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_level_has_several_contents_in_every_split(name, split):
    rows = list(islice(records(split, families=[name]), 160))
    by_level = defaultdict(set)
    for row in rows:
        by_level[row["difficulty"]].add(solve(row["instruction"], row["input"]).content)
    assert {level: len(found) >= 4 for level, found in by_level.items()} == dict.fromkeys(
        LEVELS, True
    )


def test_split_is_a_share_of_the_contents():
    shares = Counter(split_of("x", str(i)) for i in range(20_000))
    assert 0.79 < shares["train"] / 20_000 < 0.81
    assert 0.09 < shares["validation"] / 20_000 < 0.11
    assert split_of("x", "1") == split_of("x", "1")
    # the family counts: the same words may be copied in one split and sorted in another
    assert any(split_of("copy", str(i)) != split_of("sort", str(i)) for i in range(20))


def test_families_and_levels_are_balanced_in_any_beginning(drawn):
    cells = len(FAMILIES) * len(LEVELS)
    assert len(FAMILIES) >= 12
    for n in (cells, 10 * cells):
        counts = Counter((r["family"], r["difficulty"]) for r in drawn["train"][:n])
        assert len(counts) == cells and set(counts.values()) == {n // cells}


def test_wordings():
    for family in FAMILIES.values():
        assert len(set(family.wordings)) == len(family.wordings) >= 10, family.name
    used = defaultdict(set)
    for row in islice(records("test", families=["recipe"]), 400):
        used[row["family"]].add(row["instruction"])
    assert len(used["recipe"]) > 380


def test_lengths_and_fields(drawn):
    prompts, answers = [], defaultdict(list)
    for row in drawn["train"][:6400]:
        assert list(row) == [
            "id",
            "instruction",
            "input",
            "output",
            "references",
            "source",
            "family",
            "difficulty",
        ]
        assert "synthetic" in row["source"] and "Apache-2.0" in row["source"]
        assert row["references"][0] == row["output"] == row["output"].strip() != ""
        assert len(set(row["references"])) == len(row["references"])
        assert row["instruction"].isascii() and row["input"].isascii() and row["output"].isascii()
        assert "{" not in row["instruction"] + row["input"]
        prompts.append(len(f"{row['instruction']} {row['input']}".split()))
        answers[row["family"]].append(len(row["output"].split()))
    assert max(prompts) <= 60
    assert 10 < sum(prompts) / len(prompts) < 20
    assert {family: max(n) <= 20 for family, n in answers.items()} == dict.fromkeys(FAMILIES, True)
    assert sum(len(set(n)) > 1 for n in answers.values()) >= 10


@pytest.mark.parametrize(
    "name", ["copy", "reverse", "sort", "dedupe", "nth", "count", "hops", "substitute", "sentence"]
)
def test_a_level_is_longer_than_the_one_before(drawn, name):
    lengths = defaultdict(list)
    for row in drawn["train"][:6400]:
        if row["family"] == name:
            lengths[row["difficulty"]].append(len(f"{row['instruction']} {row['input']}".split()))
    means = [sum(lengths[level]) / len(lengths[level]) for level in LEVELS]
    assert means == sorted(means)


def test_several_references_where_several_answers_are_right(drawn):
    several = Counter(r["family"] for r in drawn["test"] if len(r["references"]) > 1)
    assert set(several) >= {"sentence", "number", "count", "calendar", "units"}
    # each is an output now and then, so that a model does not learn one of them only
    frames = Counter(
        sorted(r["references"]).index(r["output"])
        for r in drawn["train"]
        if r["family"] == "sentence" and len(r["references"]) == 3
    )
    assert min(frames.values()) > 0.2 * sum(frames.values())


def test_recipes_need_every_step(drawn):
    known = {name for name, _ in RECIPE_STEPS}
    for row in drawn["validation"]:
        if row["family"] != "recipe":
            continue
        content = list(solve(row["instruction"], row["input"]).content)
        names = [name for name in content if name in known]
        words = content[len(names) :]
        assert len(names) == (2, 2, 3, 4)[row["difficulty"] - 1]
        assert " ".join(follow(names, words)) == row["output"]
        for i in range(len(names)):
            assert " ".join(follow(names[:i] + names[i + 1 :], words)) != row["output"]


def test_a_record_depends_on_its_place_only():
    stream = list(islice(records("train", seed=3), 300))
    assert list(islice(records("train", seed=3, start=130), 100)) == stream[130:230]
    assert list(islice(records("train", seed=4), 300)) != stream
    part = list(islice(records("test", families=["sort", "hops"], difficulties=[2, 4]), 40))
    counts = Counter((r["family"], r["difficulty"]) for r in part)
    assert counts == {(f, d): 10 for f in ("sort", "hops") for d in (2, 4)}


def test_ids_are_unique(drawn):
    ids = [row["id"] for rows in drawn.values() for row in rows]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("split", SPLITS)
def test_the_suite_does_not_drift(split):
    lines = (json.dumps(r, ensure_ascii=False) + "\n" for r in islice(records(split), 1024))
    assert hashlib.sha256("".join(lines).encode()).hexdigest() == GOLDEN[split]


def test_number_words_at_the_edges():
    assert [number_words(n) for n in (0, 10, 20, 21, 100, 101, 1000, 1001, 1100, 20_000)] == [
        "zero",
        "ten",
        "twenty",
        "twenty-one",
        "one hundred",
        "one hundred and one",
        "one thousand",
        "one thousand and one",
        "one thousand one hundred",
        "twenty thousand",
    ]
    assert number_words(99_999, "") == "ninety-nine thousand nine hundred ninety-nine"


def test_dice():
    dice = Dice("a", 1)
    assert {dice.below(3) for _ in range(200)} == {0, 1, 2}
    assert {dice.between(4, 6) for _ in range(200)} == {4, 5, 6}
    for items, k in ((range(50), 5), (range(6), 4), (range(3), 3), (range(9), 0)):
        sample = dice.sample(items, k)
        assert len(set(sample)) == k and set(sample) <= set(items)
    first = Counter(dice.shuffled("abc")[0] for _ in range(3000))
    assert all(900 < n < 1100 for n in first.values()), first
    assert [Dice("s").below(1000) for _ in range(3)] == [Dice("s").below(1000)] * 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"split": "dev"}, "split: got 'dev', expected one of train, validation, test"),
        ({"families": ["sort", "sum"]}, "family: got 'sum', expected one of copy, "),
        ({"difficulties": [5]}, "difficulty: got 5, expected one of 1, 2, 3, 4"),
        ({"seed": -1}, "seed: got -1, expected 0 or more"),
        ({"start": -2}, "start: got -2, expected 0 or more"),
    ],
)
def test_bad_arguments(arguments, said):
    with pytest.raises(ValueError) as error:
        records(**{"split": "train", **arguments})
    assert said in str(error.value) and "\n" not in str(error.value)
