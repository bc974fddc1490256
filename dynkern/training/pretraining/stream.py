"""Batches from the endless stream of tasks, of about as many tokens each, resumable in between."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from dynkern.tasks import FAMILIES, records
from dynkern.training.data import IGNORED
from dynkern.training.pretraining.drills import KINDS, drill_records
from dynkern.training.pretraining.recipe import Phase
from dynkern.training.pretraining.tokenizer import task_text

# records that are sorted by length together; within it batches come in random order
POOL = 1024
BOS = EOS = 2
PAD = 1
FAMILY_NUMBER = {name: number for number, name in enumerate((*FAMILIES, *KINDS))}


@dataclass(frozen=True)
class Batch:
    """ids: int64 [B, T], BOS first, padded on the right. targets: int64 [B, T], the token behind
    each, IGNORED where it is no part of the response or EOS, or a drill's question. families: int64
    [B], FAMILY_NUMBER.
    """

    ids: Tensor
    targets: Tensor
    families: Tensor

    @property
    def tokens(self) -> int:
        """Padding included."""
        return self.ids.numel()

    def to(self, device: torch.device) -> Batch:
        return Batch(self.ids.to(device), self.targets.to(device), self.families.to(device))


# ids, the token behind each or IGNORED, family
Encoded = tuple[list[int], list[int], int]


class TaskStream:
    """The batches of one phase. pool, batch: how many whole pools, and batches of the next one,
    lie behind; given again, the stream goes on with the same batches.

    ValueError where no record of a pool fits into max_positions.
    """

    def __init__(
        self,
        tokenizer: Any,
        phase: Phase,
        seed: int,
        batch_tokens: int,
        max_positions: int,
        pool: int = 0,
        batch: int = 0,
    ) -> None:
        self.tokenizer, self.phase, self.seed = tokenizer, phase, seed
        self.batch_tokens, self.max_positions = batch_tokens, max_positions
        self.pool, self.batch = pool, batch

    def __iter__(self) -> Iterator[Batch]:
        while True:
            parts = self._parts()
            while self.batch < len(parts):
                part = parts[self.batch]
                # counted ahead of the step: what is saved behind it does not see this batch again
                self.batch += 1
                yield padded(part)
            self.pool, self.batch = self.pool + 1, 0

    def _parts(self) -> list[list[Encoded]]:
        families, difficulties = self.phase.families, self.phase.difficulties
        drills = round(self.phase.drills * POOL)
        tasks = POOL - drills
        rows = [
            *islice(records("train", self.seed, families, difficulties, self.pool * tasks), tasks),
            *islice(drill_records(self.seed, self.pool * drills, self.phase.kinds), drills),
        ]
        sequences = encode(self.tokenizer, rows, self.max_positions)
        dice = random.Random(f"{self.seed}-{self.pool}")
        # those of one length come together at random
        dice.shuffle(sequences)
        parts = bucketed(sequences, self.batch_tokens)
        dice.shuffle(parts)
        return parts


def encode(tokenizer: Any, rows: Sequence[dict[str, Any]], max_positions: int) -> list[Encoded]:
    """Ids, targets and family of the records that fit into max_positions ids; BOS and EOS
    included. ValueError where none does.
    """
    fitting = []
    for row, (prompt, parts) in zip(rows, _tokens(tokenizer, rows), strict=True):
        ids, targets = [BOS, *prompt], [IGNORED] * len(prompt)
        for number, part in enumerate(parts):
            ids += part
            # the last of the ids so far is what foretells the first of the part
            targets += part if number % 2 else [IGNORED] * len(part)
        # a drill ends where its questions do, which nobody can foretell
        targets += [IGNORED, IGNORED] if "turns" in row else [EOS, IGNORED]
        ids.append(EOS)
        if len(ids) <= max_positions:
            fitting.append((ids, targets, FAMILY_NUMBER[row["family"]]))
    if not fitting:
        raise ValueError(
            f"max_positions: got {max_positions}, expected room for a task and its answer"
        )
    return fitting


def _tokens(
    tokenizer: Any, rows: Sequence[dict[str, Any]]
) -> Iterator[tuple[list[int], list[list[int]]]]:
    """Of each record the prompt's ids, and those of questions and answers in turn."""
    texts = []
    for row in rows:
        prompt, response = task_text(row)
        turns = row.get("turns", [("", response)])
        texts.append([prompt, *(text for turn in turns for text in turn)])
    flat = [text for part in texts for text in part if text]
    known = iter(tokenizer(flat, add_special_tokens=False)["input_ids"])
    for part in texts:
        prompt, *rest = ([*next(known)] if text else [] for text in part)
        yield prompt, rest


def bucketed(sequences: Sequence[Encoded], batch_tokens: int) -> list[list[Encoded]]:
    """Parts of sequences of like lengths, each as many as fit into batch_tokens, one at least."""
    ordered = sorted(sequences, key=lambda entry: len(entry[0]))
    parts: list[list[Encoded]] = []
    for entry in ordered:
        # the last of a part is its longest
        if not parts or (len(parts[-1]) + 1) * len(entry[0]) > batch_tokens:
            parts.append([])
        parts[-1].append(entry)
    return parts


def padded(part: Sequence[Encoded]) -> Batch:
    """A part as tensors."""
    width = max(len(ids) for ids, _, _ in part)
    ids = torch.full((len(part), width), PAD)
    targets = torch.full((len(part), width), IGNORED)
    for row, (tokens, behind, _) in enumerate(part):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        targets[row, : len(behind)] = torch.tensor(behind)
    return Batch(ids, targets, torch.tensor([family for *_, family in part]))
