"""The task suite: synthetic instructions with answers that are known, made here from a seed.

Families of short tasks, each at four levels of difficulty, in many wordings; a problem's content
decides its split. Nothing in it is taken from anywhere: it is under the project's licence.
"""

from __future__ import annotations

from dynkern.tasks.problem import LEVELS, SPLITS
from dynkern.tasks.suite import (
    FAMILIES,
    SOURCE,
    TaskSource,
    is_task_source,
    parse_source,
    records,
)

__all__ = [
    "FAMILIES",
    "LEVELS",
    "SOURCE",
    "SPLITS",
    "TaskSource",
    "is_task_source",
    "parse_source",
    "records",
]
