"""The task suite: the table of families and the stream of records."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

from dynkern.tasks import lists, lookups, numbers, recipes, sentences
from dynkern.tasks.problem import LEVELS, SPLITS, Dice, Family, Problem, split_of

# every record says that it is made up; the licence is the project's
SOURCE = "dynkern tasks (synthetic, Apache-2.0)"
# 16 records of each family and level
DEFAULT_COUNT = 1024

FAMILIES: dict[str, Family] = {
    family.name: family
    for room in (lists, numbers, lookups, sentences, recipes)
    for family in room.FAMILIES
}


def records(
    split: str,
    seed: int = 0,
    families: Sequence[str] = (),
    difficulties: Sequence[int] = (),
    start: int = 0,
) -> Iterator[dict[str, Any]]:
    """Records `start`, `start` + 1, … of the endless stream of a split.

    families, difficulties: only these; all by default. Each block of len(families) ×
    len(difficulties) records holds each pair once, in random order, so the first N records are
    balanced for any N. A record depends on (split, seed, families, difficulties) and its place
    only: workers may share the stream out by `start`. The splits are disjoint by content,
    whatever the seeds.

    Fields: id, instruction, input, output, references, source, family, difficulty.
    ValueError for an unknown split, family or difficulty, or a negative seed or start.
    """
    _check(split, seed, families, difficulties, start)
    names = [name for name in FAMILIES if not families or name in families]
    levels = [level for level in LEVELS if not difficulties or level in difficulties]
    cells = [(name, level) for name in names for level in levels]
    return _stream(split, seed, cells, start)


def _stream(
    split: str, seed: int, cells: list[tuple[str, int]], start: int
) -> Iterator[dict[str, Any]]:
    block, order = -1, cells
    for place in count(start):
        if place // len(cells) != block:
            block = place // len(cells)
            order = Dice(seed, split, "block", block).shuffled(cells)
        name, level = order[place % len(cells)]
        dice = Dice(seed, split, place)
        problem = _drawn(FAMILIES[name], level, split, dice)
        instruction, text = problem.written(dice)
        yield {
            "id": f"{split}-{seed}-{place}",
            "instruction": instruction,
            "input": text,
            "output": problem.references[0],
            "references": list(problem.references),
            "source": SOURCE,
            "family": name,
            "difficulty": level,
        }


def _drawn(family: Family, level: int, split: str, dice: Dice) -> Problem:
    while True:
        problem = family.draw(dice, level)
        if split_of(family.name, problem.key) == split:
            return problem


def _check(
    split: str, seed: int, families: Sequence[str], difficulties: Sequence[int], start: int
) -> None:
    if split not in SPLITS:
        raise ValueError(f"split: got {split!r}, expected one of {', '.join(SPLITS)}")
    for family in families:
        if family not in FAMILIES:
            raise ValueError(f"family: got {family!r}, expected one of {', '.join(FAMILIES)}")
    for difficulty in difficulties:
        if difficulty not in LEVELS:
            raise ValueError(f"difficulty: got {difficulty!r}, expected one of 1, 2, 3, 4")
    for name, value in (("seed", seed), ("start", start)):
        if value < 0:
            raise ValueError(f"{name}: got {value}, expected 0 or more")


@dataclass(frozen=True)
class TaskSource:
    """A part of the suite as `tasks[:SPLIT][?family=A+B&difficulty=1+2&seed=N&count=N]` names it.

    split: None leaves it to the caller.
    """

    split: str | None = None
    families: tuple[str, ...] = ()
    difficulties: tuple[int, ...] = ()
    seed: int = 0
    count: int = DEFAULT_COUNT

    def records(self, split: str, limit: int | None = None) -> Iterator[dict[str, Any]]:
        """The first `limit` records, `count` by default; `split` where the source names none."""
        stream = records(self.split or split, self.seed, self.families, self.difficulties)
        return islice(stream, self.count if limit is None else limit)


def is_task_source(name: str) -> bool:
    return re.match(r"tasks(\Z|[:?])", name) is not None


def parse_source(name: str) -> TaskSource:
    """The source that a name asks for; ValueError, one line, for one that is not understood."""
    head, _, query = name.partition("?")
    split = head.partition(":")[2] or None
    if not is_task_source(name):
        known = f"tasks or tasks:{'|'.join(SPLITS)}"
        raise ValueError(f"data: got {name[:60]!r}, expected {known}, options behind a ?")
    if head.endswith(":"):
        head = " ".join(head.split())
        raise ValueError(f"data: {head} names no split, expected tasks:{'|'.join(SPLITS)}")
    options: dict[str, Any] = {}
    items = query.split("&") if "?" in name else []
    name = " ".join(name.split())
    for item in items:
        key, _, value = item.partition("=")
        if sum(other.startswith(f"{key}=") for other in items) > 1:
            raise ValueError(f"data: {name} has {key}= twice, expected each option once")
        if key == "family" and value:
            options["families"] = tuple(value.split("+"))
        elif key == "difficulty" and re.fullmatch(r"[0-9](\+[0-9])*", value):
            options["difficulties"] = tuple(map(int, value.split("+")))
        elif key in ("seed", "count") and re.fullmatch(r"[0-9]{1,18}", value):
            options[key] = int(value)
        else:
            raise ValueError(
                f"data: {name} has {item!r}, expected family=A+B, difficulty=1+2, seed=N or count=N"
            )
    source = TaskSource(split, **options)
    if source.count < 1:
        raise ValueError(f"count: got {source.count}, expected 1 or more")
    # said now, not at the first record
    _check(source.split or SPLITS[0], source.seed, source.families, source.difficulties, 0)
    return source
