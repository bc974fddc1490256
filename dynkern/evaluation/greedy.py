"""Greedy layer removal: the layer to drop next is the one that held-out answers miss least."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from dynkern.allocation.store import TableStore
from dynkern.evaluation.teacher_forced import teacher_forced_sums
from dynkern.llm import LLM


def removal_order(
    llm: LLM,
    prompts: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    store: TableStore,
    batch_size: int,
    report: Callable[[int, int, str], None],
) -> list[int]:
    """All layers from the one kept longest to the first dropped.

    In each step the layer goes whose loss over all targets is the least without it (the lowest one
    of equal ones). Steps are kept in `store` as they are done, and taken from there.
    """
    num_layers = llm.spec.num_layers
    dropped = [layer for layer, _ in store.removals()]
    total = num_layers * (num_layers + 1) // 2 - 1
    done = sum(num_layers - step for step in range(len(dropped)))
    while len(dropped) < num_layers - 1:
        left = [layer for layer in range(num_layers) if layer not in dropped]
        losses = []
        for layer in left:
            report(done, total, f"greedy, {len(left)} layers left")
            keep = torch.zeros(num_layers, dtype=torch.bool)
            keep[[other for other in left if other != layer]] = True
            losses.append(_loss(llm, prompts, targets, keep, batch_size))
            done += 1
        best = min(range(len(left)), key=losses.__getitem__)
        store.put_removal(left[best], losses[best])
        dropped.append(left[best])
    report(total, total, "greedy done")
    (last,) = (layer for layer in range(num_layers) if layer not in dropped)
    return [last, *reversed(dropped)]


def _loss(
    llm: LLM,
    prompts: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    keep: torch.Tensor,
    batch_size: int,
) -> float:
    total = 0.0
    for start in range(0, len(prompts), batch_size):
        part = slice(start, start + batch_size)
        rows = prompts[part]
        total += sum(teacher_forced_sums(llm, rows, targets[part], [keep] * len(rows)))
    return total / sum(map(len, targets))
