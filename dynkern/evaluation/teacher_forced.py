"""Teacher-forced loss on the engine's own decode passes: what a reference answer costs in nats."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dynkern import routes
from dynkern.llm import LLM
from dynkern.runtime.batch import DecodeBatch, PassLimits
from dynkern.runtime.request import SamplingParams
from dynkern.runtime.sampling import Head, TokenPicker


class _Teacher(TokenPicker):
    """Picks the reference's next token, whatever the model would say, and notes its loss."""

    def __init__(self, head: Head, targets: Sequence[Sequence[int]]) -> None:
        super().__init__(head, SamplingParams(), 0)
        self.targets = targets
        self.losses: list[float] = []
        # the row of each loss
        self.slots: list[int] = []

    def pick(
        self, hidden: Tensor, n: Tensor | None, rows: Tensor, request: Tensor, step: Tensor
    ) -> Tensor:
        """The target tokens [C]; `step` says how many a row has had."""
        count = hidden.shape[0] if n is None else int(n)
        slots, steps = rows[:count].tolist(), step[:count].tolist()
        wanted = torch.tensor(
            [self.targets[slot][at] for slot, at in zip(slots, steps, strict=True)]
        )
        losses = self.head.losses(hidden[:count], wanted)
        self.losses += losses.tolist()
        self.slots += slots
        token = torch.zeros(hidden.shape[0], dtype=torch.int64)
        token[:count] = wanted
        return token


def teacher_forced_losses(
    llm: LLM,
    prompts: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    batch_size: int = 8,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> list[float]:
    """Cross entropy in nats of every target token, given its prompt and the targets before it.

    prompts, targets: token ids, as many of one as of the other, none empty. Every layer runs; each
    target token is decoded by the very passes that generate text, in the model's own K/V dtype.
    report(done, total) counts prompts. ValueError for unequal numbers or an empty target.
    """
    _check_targets(prompts, targets)
    losses: list[float] = []
    for start in range(0, len(prompts), batch_size):
        part = slice(start, start + batch_size)
        losses += _run_batch(llm, prompts[part], targets[part]).losses
        report(min(start + batch_size, len(prompts)), len(prompts))
    return losses


def teacher_forced_sums(
    llm: LLM,
    prompts: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    keep: Sequence[Tensor],
) -> list[float]:
    """Cross entropy in nats of each row's whole target under its own route, all rows in one batch.

    As teacher_forced_losses, but the passes of tokens 2..N run the layers of keep[i], bool [L],
    which is what generating does; equal prompts are prefilled once. ValueError alike.
    """
    _check_targets(prompts, targets)
    teacher = _run_batch(llm, prompts, targets, keep)
    sums = [0.0] * len(prompts)
    for slot, loss in zip(teacher.slots, teacher.losses, strict=True):
        sums[slot] += loss
    return sums


def _check_targets(prompts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> None:
    if len(prompts) != len(targets):
        raise ValueError(f"targets: got {len(targets)} for {len(prompts)} prompts")
    if not all(targets):
        raise ValueError("targets: got an empty one, expected at least one token in each")


def _run_batch(
    llm: LLM,
    prompts: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    keep: Sequence[Tensor] | None = None,
) -> _Teacher:
    """Decode the targets of one batch; the teacher that watched."""
    engine, n_rows = llm.engine, len(prompts)
    executor, num_layers = engine.executor, engine.spec.num_layers
    teacher = _Teacher(executor.head, targets)
    unique = list(dict.fromkeys(map(tuple, prompts)))
    places = {prompt: place for place, prompt in enumerate(unique)}
    owner = [places[tuple(prompt)] for prompt in prompts]
    plans = [routes.full(num_layers)] * n_rows if keep is None else keep
    with engine.stepping():
        state = executor.prefill(unique)
        slots = torch.arange(n_rows, dtype=torch.int32)
        teacher.pick(state.hidden[owner], None, slots, slots.long(), torch.zeros(n_rows).long())
        longest = max(len(p) + len(t) for p, t in zip(prompts, targets, strict=True))
        lanes = int(sum(route.sum() for route in plans))
        cache = engine.take_cache(n_rows, lanes, longest)
        batch = DecodeBatch(num_layers, n_rows, "project", None, 0, engine.device)
        for slot, route in enumerate(plans):
            span = slice(state.bounds[owner[slot]], state.bounds[owner[slot] + 1])
            cache.admit(slot, route, state.keys[:, span], state.values[:, span])
            batch.admit(slot, targets[slot][0], len(prompts[slot]), slot, route)
            if len(targets[slot]) == 1:
                batch.retire(slot)
        left = [len(target) - 1 for target in targets]
        while alive := batch.alive.nonzero().flatten().tolist():
            executor.advance(
                batch, cache, teacher, PassLimits(1, 0.0, left, [frozenset()] * n_rows)
            )
            for slot in alive:
                left[slot] -= 1
                if left[slot] == 0:
                    batch.retire(slot)
        batch.fill = None
        engine.give_back(cache)
    return teacher
