"""Filling a table: one stream of (prompt, route, sample), scored and kept as rows end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from dynkern.allocation.families import RouteSet
from dynkern.allocation.schema import Row
from dynkern.allocation.store import TableStore
from dynkern.evaluation.analysis import agreement
from dynkern.evaluation.quality import Prompt
from dynkern.evaluation.rouge import score
from dynkern.evaluation.teacher_forced import teacher_forced_sums
from dynkern.llm import LLM
from dynkern.runtime.engine import RunOptions
from dynkern.runtime.request import Completion, PlanRequest, Request, RunStats, SamplingParams

# a transaction costs a fifth of a millisecond, a row's passes tens of them
KEPT_SECONDS = 1.0
# requests handed to the engine in one go: their Python objects take about 200 bytes each
STREAM_REQUESTS = 200_000
# teacher-forced rows at a time at least: each pass is a call of its own, with logits
LOSS_ROWS = 64

Report = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Filling:
    """What is run: the model, all prompts of the data with their answers as ids, the decoding."""

    llm: LLM
    prompts: list[Prompt]
    targets: list[list[int]]
    samples: int
    sampling: SamplingParams
    max_new_tokens: int
    batch_size: int
    seed: int


@dataclass
class _Planner:
    """The policy of every request: its id says which route, and the prompt's state is kept."""

    keep: list[Tensor]
    samples: int
    states: dict[int, np.ndarray] = field(default_factory=dict)
    seen: set[int] = field(default_factory=set)
    spec: str = "table"

    def place(self, request_id: int) -> tuple[int, int, int]:
        """(prompt, route, sample) of a request."""
        rest, sample = divmod(request_id, self.samples)
        prompt, route = divmod(rest, len(self.keep))
        return prompt, route, sample

    def plan(self, requests: Sequence[PlanRequest]) -> list[Tensor]:
        """A route for each request."""
        plans = []
        for request in requests:
            prompt, route, _ = self.place(request.id)
            if prompt not in self.seen and request.prompt_state is not None:
                self.seen.add(prompt)
                self.states[prompt] = request.prompt_state.float().cpu().numpy().copy()
            plans.append(self.keep[route])
        return plans


def fill_rows(
    filling: Filling,
    prompts: Sequence[Prompt],
    routes: RouteSet,
    store: TableStore,
    done: set[tuple[int, int, int]],
    report: Report,
    stats: RunStats | None = None,
) -> None:
    """Generate and score every (prompt, route, sample) that is not in `done`, prompt by prompt.

    The counter of a row's randomness is its place among all prompts, routes and samples, so its
    text depends neither on what was done before nor on who else fills the table. stats: grows by
    what was executed.
    """
    planner = _Planner([torch.tensor(keep) for keep in routes.keep], filling.samples)
    per_prompt = len(routes.keep) * filling.samples
    total = len(prompts) * per_prompt
    mine = {prompt.index for prompt in prompts}
    count = sum(prompt in mine for prompt, _, _ in done)
    report(count, total, "")
    waiting: list[Completion] = []
    kept_at = time.perf_counter()
    for completion in _completions(filling, prompts, planner, done, stats):
        waiting.append(completion)
        now = time.perf_counter()
        if now - kept_at > KEPT_SECONDS or len(waiting) >= 16 * filling.batch_size:
            count += _keep(filling, planner, waiting, store)
            report(count, total, "")
            waiting, kept_at = [], now
    if waiting:
        count += _keep(filling, planner, waiting, store)
        report(count, total, "")


def _completions(
    filling: Filling,
    prompts: Sequence[Prompt],
    planner: _Planner,
    done: set[tuple[int, int, int]],
    stats: RunStats | None,
) -> Iterator[Completion]:
    llm = filling.llm
    per_prompt = len(planner.keep) * filling.samples
    eos = frozenset([llm.spec.eos_token_id])
    options = RunOptions(filling.batch_size, seed=filling.seed)
    at_once = max(1, STREAM_REQUESTS // per_prompt)
    for start in range(0, len(prompts), at_once):
        requests = [
            Request(id, ids, planner, filling.max_new_tokens, eos, sampling=filling.sampling)
            for prompt in prompts[start : start + at_once]
            for ids in [tuple(prompt.ids)]
            for id in range(prompt.index * per_prompt, (prompt.index + 1) * per_prompt)
            if planner.place(id) not in done
        ]
        for event in llm.engine.stream(requests, options, stats or RunStats()) if requests else ():
            if event.completion is not None:
                yield event.completion


def _keep(
    filling: Filling, planner: _Planner, completions: Sequence[Completion], store: TableStore
) -> int:
    """Score completions and keep them in one transaction; how many."""
    eos = filling.llm.spec.eos_token_id
    ids = [c.token_ids[:-1] if c.token_ids[-1] == eos else c.token_ids for c in completions]
    texts = filling.llm.tokenizer.batch_decode(ids, skip_special_tokens=True)
    rows: list[Row] = []
    states: dict[int, np.ndarray] = {}
    # neighbouring budgets often say the same
    scores: dict[tuple[int, str], dict[str, float]] = {}
    for completion, text in zip(completions, texts, strict=True):
        prompt, route, sample = planner.place(completion.request_id)
        if (prompt, text) not in scores:
            references = filling.prompts[prompt].record.references
            scores[prompt, text] = score(text, references)
        if prompt in planner.states:
            states[prompt] = planner.states.pop(prompt)
        rows.append(
            Row(
                prompt,
                route,
                sample,
                text,
                tuple(completion.token_ids),
                **scores[prompt, text],
                layers=completion.mean_layers,
                new_tokens=len(completion.token_ids),
                stop_reason=completion.stop_reason or "",
            )
        )
    store.put(rows, states)
    return len(rows)


def fill_losses(
    filling: Filling,
    prompts: Sequence[Prompt],
    routes: RouteSet,
    store: TableStore,
    done: set[tuple[int, int]],
    report: Report,
) -> None:
    """Teacher-forced loss of every prompt's answer under every route that is not in `done`."""
    keep = [torch.tensor(route) for route in routes.keep]
    # rows of a batch end together where their answers are about as long
    order = sorted(prompts, key=lambda prompt: len(filling.targets[prompt.index]))
    pairs = [(prompt, route) for prompt in order for route in range(len(keep))]
    missing = [pair for pair in pairs if (pair[0].index, pair[1]) not in done]
    count = len(pairs) - len(missing)
    report(count, len(pairs), "")
    at_once = max(filling.batch_size, LOSS_ROWS)
    for start in range(0, len(missing), at_once):
        batch = missing[start : start + at_once]
        targets = [filling.targets[prompt.index] for prompt, _ in batch]
        sums = teacher_forced_sums(
            filling.llm,
            [prompt.ids for prompt, _ in batch],
            targets,
            [keep[route] for _, route in batch],
        )
        store.put_losses(
            (prompt.index, route, loss, len(target))
            for (prompt, route), loss, target in zip(batch, sums, targets, strict=True)
        )
        count += len(batch)
        report(count, len(pairs), "")


def fill_agreements(store: TableStore, report: Report) -> None:
    """Share of equal tokens with the full route's text of the same sample, where it is missing."""
    routes = store.route_set()
    if routes is None:
        return
    full = len(routes.keep) - 1
    prompts = store.select("SELECT DISTINCT prompt FROM rows WHERE agreement IS NULL")
    found: list[tuple[float, int, int, int]] = []
    for place, (prompt,) in enumerate(prompts):
        rows = store.select(
            "SELECT route, sample, token_ids, agreement FROM rows WHERE prompt = ?", (prompt,)
        )
        ids = {(r, s): np.frombuffer(blob, dtype="<i4").tolist() for r, s, blob, _ in rows}
        for route, sample, _, known in rows:
            if known is None and (full, sample) in ids:
                same = agreement(ids[route, sample], ids[full, sample])
                found.append((same, prompt, route, sample))
        if len(found) >= 10_000 or place == len(prompts) - 1:
            if found:
                store.put_agreements(found)
            found = []
            report(place + 1, len(prompts), "")
