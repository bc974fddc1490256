"""What a worker of bench.peers is asked to run, and when its tokens came."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


class Watch:
    """When a caller had each row's tokens: seconds since its making."""

    def __init__(self, rows: int) -> None:
        self.started = time.perf_counter()
        self.times: list[list[float]] = [[] for _ in range(rows)]

    def now(self) -> float:
        """Seconds so far."""
        return time.perf_counter() - self.started

    def note(self, row: int, at: float) -> None:
        """One token of a row."""
        self.times[row].append(at)

    def cut(self, row: int, length: int) -> None:
        """The row has only so many tokens; a batch may go on for others."""
        del self.times[row][length:]


@dataclass(frozen=True)
class How:
    """Beyond prompts and tokens. watch: told of tokens, None where nobody listens; natural: rows
    end at EOS; policy: dynkern's.
    """

    watch: Watch | None = None
    natural: bool = False
    policy: str = "full"


EOS, PAD = 2, 1
# prompts, tokens to generate, how; the reply's seconds are of the whole loop
Run = Callable[[list[list[int]], int, How], None]


def padded(prompts: list[list[int]]) -> tuple[list[list[int]], list[list[int]]]:
    """Ids padded on the left to one length, and their mask."""
    longest = max(map(len, prompts))
    ids = [[PAD] * (longest - len(p)) + p for p in prompts]
    mask = [[0] * (longest - len(p)) + [1] * len(p) for p in prompts]
    return ids, mask


def first_steps(sizes: Sequence[int], lengths: Sequence[int]) -> list[int]:
    """The step that gave each row its first token, where rows start in order and have a token in
    every step from then on. sizes: tokens of each step; lengths: of each row. ValueError where
    they do not fit each other.
    """
    first: list[int] = []
    left = list(lengths)
    for step, size in enumerate(sizes):
        running = [row for row in range(len(first)) if left[row]]
        fresh = range(len(first), len(first) + size - len(running))
        first += [step] * len(fresh)
        for row in [*running, *fresh]:
            if row < len(left):
                left[row] -= 1
    if len(first) != len(lengths) or any(left):
        raise ValueError(f"sizes: got {list(sizes)}, expected steps of rows of {list(lengths)}")
    return first
