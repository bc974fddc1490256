"""Prefiller: each prompt once for all of its requests; a store keeps it for those that wait."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dynkern.kernels.cpu.copy_kv import copy_kv
from dynkern.runtime.request import RunStats
from dynkern.runtime.scheduler import PromptKey, Scheduler, Waiting

if TYPE_CHECKING:
    from dynkern.runtime.engine import Engine, RunOptions


@dataclass(frozen=True)
class PrefilledPrompt:
    """hidden: [E] final state of the last token. keys, values: [L, n, H, Dh] of the n tokens.
    greedy: the token that the head finds most likely next, None where nobody asked.
    """

    hidden: Tensor
    keys: Tensor
    values: Tensor
    greedy: int | None = None

    @property
    def nbytes(self) -> int:
        """Of the tensors."""
        return sum(t.numel() * t.element_size() for t in (self.hidden, self.keys, self.values))

    def clone(self) -> PrefilledPrompt:
        """A copy of its own, where these are parts of a group's tensors."""
        keys, values = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in self._kv)
        layers = range(len(keys))
        copy_kv(self._kv, (keys, values), layers, layers)
        return PrefilledPrompt(self.hidden.clone(), keys, values, self.greedy)

    @property
    def _kv(self) -> tuple[Tensor, Tensor]:
        return self.keys, self.values


class PromptStore(Mapping[PromptKey, PrefilledPrompt]):
    """Copies of prefilled prompts, `limit` bytes at most.

    What does not fit is not kept, or the oldest go: whoever needs them prefills again.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.nbytes = limit, 0
        self._held: dict[PromptKey, PrefilledPrompt] = {}

    def __getitem__(self, key: PromptKey) -> PrefilledPrompt:
        return self._held[key]

    def __iter__(self) -> Iterator[PromptKey]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)

    @property
    def room(self) -> int:
        """Bytes that are free."""
        return self.limit - self.nbytes

    def put(self, key: PromptKey, prompt: PrefilledPrompt) -> None:
        """Keep a copy; the oldest make room for it."""
        if key in self._held or prompt.nbytes > self.limit:
            return
        while prompt.nbytes > self.room:
            self.discard(next(iter(self._held)))
        self._held[key] = prompt.clone()
        self.nbytes += prompt.nbytes

    def discard(self, key: PromptKey) -> None:
        """Drop a prompt if it is held."""
        prompt = self._held.pop(key, None)
        if prompt is not None:
            self.nbytes -= prompt.nbytes


class Prefiller:
    """Prefills in groups. held: the prompts of requests that still wait."""

    def __init__(self, engine: Engine, options: RunOptions) -> None:
        self.engine, self.options = engine, options
        self.held = PromptStore(options.prompt_bytes)

    def prefilled(
        self,
        chosen: Sequence[Waiting],
        upcoming: Iterable[Waiting],
        scheduler: Scheduler,
        stats: RunStats,
    ) -> dict[PromptKey, PrefilledPrompt]:
        """The prompts of those chosen, who wait no longer: taken from the store, or prefilled.

        What is left of prefill_tokens goes to the prompts of those upcoming, in that order: one
        prefill of many costs less than many of one.
        """
        prompts = {e.prompt: self.held[e.prompt] for e in chosen if e.prompt in self.held}
        missing = {entry.prompt: entry for entry in chosen if entry.prompt not in prompts}
        if missing:
            missing.update(self._ahead(missing, upcoming))
            for entry, prompt in self._prefill(list(missing.values()), stats):
                prompts[entry.prompt] = prompt
                if scheduler.wants(entry.prompt):
                    self.held.put(entry.prompt, prompt)
        self.drop_unwanted([entry.prompt for entry in chosen], scheduler)
        return prompts

    def drop_unwanted(self, prompts: Iterable[PromptKey], scheduler: Scheduler) -> None:
        """Drop those that nobody waits for."""
        for prompt in prompts:
            if not scheduler.wants(prompt):
                self.held.discard(prompt)

    def _prefill(
        self, entries: Sequence[Waiting], stats: RunStats
    ) -> list[tuple[Waiting, PrefilledPrompt]]:
        routed = self.options.prefill == "routed"
        state = self.engine.executor.prefill(
            [entry.request.prompt_ids for entry in entries],
            torch.stack([entry.route for entry in entries]) if routed else None,
        )
        stats.prefilled += state.bounds[-1]
        spans = [slice(*pair) for pair in zip(state.bounds, state.bounds[1:], strict=False)]
        tokens = self._greedy(entries, state.hidden)
        return [
            (entry, PrefilledPrompt(hidden, state.keys[:, span], state.values[:, span], token))
            for entry, hidden, span, token in zip(entries, state.hidden, spans, tokens, strict=True)
        ]

    def _greedy(self, entries: Sequence[Waiting], hidden: Tensor) -> list[int] | list[None]:
        """First tokens if one of the entries begins with the most likely one. The head reads its
        weights once for all of them, not at every admission.
        """
        if self.options.picker is None and any(e.group[1].is_greedy for e in entries):
            return self.engine.executor.head.argmax(hidden, None)[0].tolist()
        return [None] * len(entries)

    def _ahead(
        self, missing: Mapping[PromptKey, Waiting], upcoming: Iterable[Waiting]
    ) -> dict[PromptKey, Waiting]:
        """Prompts of those upcoming, as far as prefill_tokens and the store reach."""
        tokens = sum(len(entry.request.prompt_ids) for entry in missing.values())
        spec, room = self.engine.spec, self.held.room
        each = 2 * spec.num_layers * spec.hidden_size * self.engine.executor.dtype.itemsize
        found: dict[PromptKey, Waiting] = {}
        for entry in upcoming:
            if any(entry.prompt in known for known in (missing, found, self.held)):
                continue
            count = len(entry.request.prompt_ids)
            # one token more for the hidden state
            tokens, room = tokens + count, room - (count + 1) * each
            if tokens > self.options.prefill_tokens or room < 0:
                break
            found[entry.prompt] = entry
        return found
