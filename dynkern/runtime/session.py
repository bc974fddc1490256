"""Session: requests come and go, rows share passes, slots are refilled as soon as a row ends."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from heapq import heappop, heappush, nlargest
from itertools import islice
from operator import add
from typing import TYPE_CHECKING

import numpy as np

from dynkern import routes as route_math
from dynkern.cost import PassCount
from dynkern.runtime.batch import DecodeBatch, Passes, PassLimits, PassResult
from dynkern.runtime.intake import Intake
from dynkern.runtime.kv_cache import KVCache
from dynkern.runtime.prefiller import PrefilledPrompt, Prefiller
from dynkern.runtime.request import Completion, Request, RunStats, TokenEvent
from dynkern.runtime.rows import Group, Row, new_completion
from dynkern.runtime.scheduler import (
    MOST_SAMPLED,
    Company,
    GroupKey,
    PromptKey,
    Scheduler,
    Waiting,
    choose_schedule,
)

if TYPE_CHECKING:
    from dynkern.runtime.engine import Engine, RunOptions

# passes after which it is another group's turn
TURN_PASSES = 16


class Session:
    """Continuous batching on one engine: submit, cancel, step.

    Made by Engine.session. Each step admits what fits into free slots, or runs passes. `stats`
    grows along; its passes only where `counts_passes`. Not for use from two threads at once. A
    step that raises closes the session, as does `close`: the engine is free for others then, and
    what had not ended is lost.
    """

    def __init__(
        self,
        engine: Engine,
        options: RunOptions,
        stats: RunStats,
        *,
        slots: int,
        seconds: float,
        one_pass: bool = False,
        is_open: bool = True,
        counts_passes: bool = True,
    ) -> None:
        self.engine, self.options, self.stats = engine, options, stats
        self.passes = 0
        self.closed = False
        self._slots, self._seconds, self._one_pass = slots, seconds, one_pass
        self._is_open, self._counts_passes = is_open, counts_passes
        self._intake = Intake(engine, options)
        schedule = "fifo" if options.schedule == "auto" else options.schedule
        self._scheduler = Scheduler(schedule, slots, options.max_wait)
        self._judged = 0  # routes that were known when the schedule was last chosen
        self.stats.schedule = schedule
        self._prompts = Prefiller(engine, options)
        self._waiting: dict[int, Waiting] = {}
        self._rows: dict[int, Row] = {}
        self._groups: dict[GroupKey, Group] = {}
        self._turn: list[GroupKey] = []
        self._turn_passes = 0
        self._free = list(range(slots))
        self._cache: KVCache | None = None
        self._admitted_last = self._cut = False

    # -- requests --------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether a request waits or runs."""
        return bool(self._waiting or self._rows)

    def __contains__(self, request_id: object) -> bool:
        """Whether the request waits or runs."""
        return request_id in self._waiting or request_id in self._rows

    def submit(self, requests: Sequence[Request]) -> None:
        """Let requests wait for a slot. ValueError, one line, for what cannot run, and for an id
        that has not ended; none of the requests is taken then.
        """
        self._check_open()
        for request in requests:
            if request.id in self:
                raise ValueError(f"requests: id {request.id} is running, expected another one")
        with self.engine.stepping():
            entries = self._intake.entries(requests)
        self._scheduler.add(entries)
        self._waiting.update((entry.request.id, entry) for entry in entries)

    def cancel(self, request_id: int) -> Completion:
        """End a request now; what it has generated is kept. ValueError where it has ended."""
        return self._end_early(request_id, "cancelled")

    def stop(self, request_ids: Iterable[int]) -> dict[int, Completion]:
        """End those of the requests that have not ended ("stopped"); their completions by id."""
        ids = [request_id for request_id in dict.fromkeys(request_ids) if request_id in self]
        return {request_id: self._end_early(request_id, "stopped") for request_id in ids}

    def _end_early(self, request_id: int, reason: str) -> Completion:
        self._check_open()
        if request_id not in self:
            raise ValueError(f"request {request_id}: neither waits nor runs")
        if entry := self._waiting.pop(request_id, None):
            self._scheduler.remove(entry)
            self._prompts.drop_unwanted([entry.prompt], self._scheduler)
            completion = new_completion(entry)
            completion.stop_reason = reason
            return completion
        row = self._rows[request_id]
        with self.engine.stepping():
            self._end(row, reason)
        return row.completion

    def _check_open(self) -> None:
        if self.closed:
            raise RuntimeError("session: closed")

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Give back what the session holds, whether or not everything has ended."""
        self.closed = True
        self._groups, self._rows, self._waiting = {}, {}, {}
        cache, self._cache = self._cache, None
        if cache is not None:
            self.engine.give_back(cache)

    # -- steps -----------------------------------------------------------------------------------

    def step(self) -> list[TokenEvent]:
        """Admit what fits, or run passes; tokens pass by pass, each in request order.

        Rows that decode wait for one prefill of at most prefill_tokens between two passes.
        """
        self._check_open()
        try:
            may_admit = self._free and self._waiting
            if may_admit and not (self._admitted_last and self._rows):
                started = time.perf_counter()
                with self.engine.stepping():
                    events = self._admit()
                    self.engine.synchronize()
                self.stats.seconds_prefill += time.perf_counter() - started
                self._admitted_last = True
                if events:
                    return events
            self._admitted_last = False
            if not self._rows:
                return []
            started = time.perf_counter()
            with self.engine.stepping():
                events = self._decode()
            self.stats.seconds_decode += time.perf_counter() - started
            return events
        except BaseException:
            self.close()
            raise

    def _decode(self) -> list[TokenEvent]:
        group = self._whose_turn()
        passes = max(group.remaining)
        if len(self._turn) > 1:
            passes = min(passes, TURN_PASSES - self._turn_passes)
        if self._one_pass or (self._cut and self._free and self._waiting):
            passes = 1
        limits = PassLimits(
            passes, self._seconds, group.remaining, group.eos_ids, bool(self._waiting)
        )
        results = self.engine.executor.advance(group.batch, self._cache, group.picker, limits)
        if not results:
            raise RuntimeError("the executor ran no pass although rows are live")
        self._turn_passes += len(results)
        return self._book_passes(group, results)

    def _book_passes(self, group: Group, results: Sequence[PassResult]) -> list[TokenEvent]:
        """Note what passes of a group picked and ran, in what Python does once for all of them as
        far as it can: a pass of a small model takes a millisecond.
        """
        rows = live = group.in_order()
        begun = [len(row.completion.token_ids) for row in rows]
        passes = Passes.of(results)
        ran = passes.ran
        tokens = passes.token.tolist()
        if self._counts_passes:
            layer_rows, filled = np.add.reduce(ran, axis=2).tolist(), passes.filled.tolist()
            head_rows = passes.head_rows.tolist()
        entries = sum(len(r.completion.prompt_ids) + n for r, n in zip(rows, begun, strict=True))
        events: list[TokenEvent] = []
        for at, picked in enumerate(tokens):
            if self._counts_passes:
                count = PassCount(
                    rows=len(live),
                    layer_rows=tuple(layer_rows[at]),
                    fill_rows=tuple(filled[at]) if any(filled[at]) else (),
                    head_rows=head_rows[at],
                    length=entries / len(live) - 1,
                )
                self.stats.passes.append(count)
            events += [self._book(group, row, picked[row.slot]) for row in live]
            entries += len(live)
            if len(group.rows) < len(live):
                gone = [row.completion for row in live if row.slot not in group.rows]
                entries -= sum(len(done.prompt_ids) + len(done.token_ids) for done in gone)
                live = [row for row in live if row.slot in group.rows]
        self.passes += len(tokens)
        self._book_layers(rows, begun, ran)
        return events

    def _book_layers(self, rows: Sequence[Row], begun: Sequence[int], ran: np.ndarray) -> None:
        """Layers of rows that had `begun` tokens each ahead of these passes. ran: [P, L, B]."""
        layers = np.add.reduce(ran, axis=1).T.tolist()
        # by pass, then by slot
        sums = ran.cumsum(axis=0).transpose(0, 2, 1)
        fresh: dict[int, list[list[int]]] = {}
        for row, before in zip(rows, begun, strict=True):
            done = row.completion
            taken = len(done.token_ids) - before
            if taken not in fresh:
                fresh[taken] = sums[taken - 1].tolist()
            done.layers_run += layers[row.slot][:taken]
            done.layer_counts = list(map(add, done.layer_counts, fresh[taken][row.slot]))

    def _whose_turn(self) -> Group:
        """Groups take turns of TURN_PASSES passes."""
        live = [key for key, group in self._groups.items() if group.rows]
        first = self._turn[0] if self._turn else None
        if self._turn_passes >= TURN_PASSES:
            self._turn.append(self._turn.pop(0))
        self._turn = [key for key in self._turn if key in live]
        self._turn += [key for key in live if key not in self._turn]
        if self._turn_passes >= TURN_PASSES or self._turn[0] != first:
            self._turn_passes = 0
        return self._groups[self._turn[0]]

    def _book(self, group: Group, row: Row, token: int) -> TokenEvent:
        """Note a row's token; a row that stops leaves its slot before anybody sees the event."""
        request, done = row.entry.request, row.completion
        done.token_ids.append(token)
        group.remaining[row.slot] -= 1
        self.stats.new_tokens += 1
        if token in group.eos_ids[row.slot]:
            self._end(row, "eos")
        elif len(done.token_ids) == request.max_new_tokens:
            self._end(row, "length")
        return TokenEvent(request.id, token, done if done.stop_reason is not None else None)

    def _end(self, row: Row, reason: str) -> None:
        row.completion.stop_reason = reason
        self._groups[row.entry.group].retire(row)
        del self._rows[row.entry.request.id]
        self._cache.release(row.slot)
        heappush(self._free, row.slot)

    # -- admission -------------------------------------------------------------------------------

    def _admit(self) -> list[TokenEvent]:
        """Prefill what needs it, give rows their slots, and pick their first tokens."""
        self._judge()
        chosen = self._choose()
        if not chosen:
            return []
        company = Company.of([*(row.entry for row in self._rows.values()), *chosen])
        upcoming = self._scheduler.upcoming(company)
        prompts = self._prompts.prefilled(chosen, upcoming, self._scheduler, self.stats)
        self._intake.plan(chosen, prompts)
        if self.options.schedule != "fifo":
            # routes of those among whom it chooses next
            if self._intake.plan(self._scheduler.unknown(), self._prompts.held):
                self._scheduler.routes_changed()
        rows = [self._place(entry, prompts[entry.prompt]) for entry in chosen]
        tokens: dict[int, int] = {}
        for key in dict.fromkeys(entry.group for entry in chosen):
            own = [row for row in rows if row.entry.group == key]
            states = [prompts[row.entry.prompt] for row in own]
            tokens.update(self._groups[key].first_tokens(own, states))
        rows.sort(key=lambda row: row.entry.order[1])
        return [self._book(self._groups[r.entry.group], r, tokens[r.slot]) for r in rows]

    def _judge(self) -> None:
        """Choose the schedule by cost, once routes are known, and again with twice as many."""
        known = self._intake.planned
        if self.options.schedule != "auto" or known <= self._slots or known < 2 * self._judged:
            return
        self._judged = known
        cost = self.engine.decode_cost(self._slots, self._intake.mean_length)
        sample = [e for e in islice(self._scheduler, MOST_SAMPLED) if e.is_known]
        if len(sample) <= self._slots:
            # policies that see prompts say little ahead: what they said of others, then
            sample = sorted(self._intake.known, key=lambda e: e.order)
        name, predicted = choose_schedule(sample, self._slots, self.options.max_wait, cost)
        self._scheduler.schedule = self.stats.schedule = name
        self.stats.predicted = predicted

    def _choose(self) -> list[Waiting]:
        """Who takes the free slots now, in order; out of the scheduler from here on.

        While rows decode, no more prompts than prefill_tokens are prefilled at a time, but always
        one; and whoever does not fit into the cache waits until they have ended.
        """
        chosen: list[Waiting] = []
        new: set[PromptKey] = set()
        tokens, self._cut = 0, False
        lanes = 0 if self._cache is None else self._cache.free_lanes
        company = [row.entry for row in self._rows.values()]
        while len(chosen) < len(self._free):
            entry = self._scheduler.next(Company.of(company), self.passes)
            if entry is None:
                break
            cache = self._cache
            if cache is None or entry.lanes > lanes or entry.tokens > cache.capacity:
                if company:
                    break
                lanes = self._renew_cache(entry).free_lanes
            if entry.prompt not in new and entry.prompt not in self._prompts.held:
                tokens += len(entry.request.prompt_ids)
                if self._rows and chosen and tokens > self.options.prefill_tokens:
                    self._cut = True
                    break
                new.add(entry.prompt)
            self._scheduler.admit(entry, self.passes)
            del self._waiting[entry.request.id]
            lanes -= entry.lanes
            chosen.append(entry)
            company.append(entry)
        return chosen

    def _renew_cache(self, entry: Waiting) -> KVCache:
        """A cache with room for the entry, and for those that wait as far as they are known."""
        waiting = list(self._scheduler)
        capacity = max(e.tokens for e in waiting)
        if self._is_open:
            # longer ones may come: doubling keeps the times at which everybody waits few
            lanes = self._slots * entry.num_layers
            if self._cache is not None:
                capacity = max(capacity, 2 * self._cache.capacity)
            capacity = min(capacity, self.engine.spec.max_positions + 1)
        else:
            lanes = sum(nlargest(self._slots, (e.lanes for e in waiting)))
        cache, self._cache = self._cache, None
        self._groups, self._turn = {}, []  # what executors keep for a batch knows its cache
        if cache is not None:
            self.engine.give_back(cache)
        self._cache = self.engine.take_cache(self._slots, lanes, capacity)
        return self._cache

    def _place(self, entry: Waiting, prompt: PrefilledPrompt) -> Row:
        row = Row(entry, heappop(self._free), new_completion(entry))
        self._rows[entry.request.id] = row
        route = entry.route if entry.route is not None else route_math.full(entry.num_layers)
        self._cache.admit(row.slot, route, prompt.keys, prompt.values)
        self._group_of(entry.group).admit(row, route)
        return row

    def _group_of(self, key: GroupKey) -> Group:
        if key not in self._groups:
            self._groups = {k: g for k, g in self._groups.items() if g.rows}
            engine, options = self.engine, self.options
            program, sampling = key
            batch = DecodeBatch(
                engine.spec.num_layers,
                self._slots,
                options.kv_fill,
                program,
                options.seed,
                engine.device,
            )
            picker = engine.make_picker(options, sampling)
            picker.begin(self._slots, self._cache.capacity, engine.device)
            self._groups[key] = Group(batch, picker)
        return self._groups[key]
