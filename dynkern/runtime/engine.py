"""The engine: prefill, route, decode, stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from dynkern import routes as route_math
from dynkern.arguments import check_integer
from dynkern.cost import PassCount
from dynkern.models.packed import PackedWeights
from dynkern.models.spec import DecoderSpec
from dynkern.models.weights import DecoderWeights
from dynkern.ops.backends import (
    BackendUnavailable,
    check_backend,
    check_runnable,
    requested_backend,
    use_backend,
)
from dynkern.runtime.batch import DecodeBatch, PassLimits, PassResult, PrefillResult
from dynkern.runtime.executors import make_executor
from dynkern.runtime.kv_cache import KVCache
from dynkern.runtime.request import (
    Completion,
    PlanRequest,
    Request,
    RunResult,
    RunStats,
    TokenEvent,
    TokenPolicy,
)
from dynkern.runtime.sampling import TokenPicker
from dynkern.runtime.scheduler import ScheduledBatch, Scheduler

# one call of the executor may take this long: somebody waits for tokens, or for Ctrl-C. A call
# costs half a millisecond of Python and of waking threads: 6 % at 5 ms (OPT-125m, 1 row)
LISTENED_SECONDS = 0.015
UNWATCHED_SECONDS = 0.25


@dataclass(frozen=True)
class RunOptions:
    """How requests run. batch_size: rows at most; prefill: "full" or "routed";
    kv_fill: a rule of executors/kv_fill.py; seed: of Philox."""

    batch_size: int = 8
    prefill: str = "full"
    kv_fill: str = "project"
    seed: int = 0

    def __post_init__(self) -> None:
        check_integer("batch_size", self.batch_size, 1)
        route_math.check_choice("prefill", self.prefill, route_math.PREFILLS)
        route_math.check_choice("kv_fill", self.kv_fill, route_math.KV_FILLS)
        check_integer("seed", self.seed, 0, (1 << 64) - 1, "an integer from 0 to 2**64 - 1")


class Engine:
    """Runs requests on one model. backend: "auto", or one that everything must run on.

    Raises BackendUnavailable (a ValueError) where these weights cannot run on the one named.
    """

    def __init__(
        self, spec: DecoderSpec, weights: DecoderWeights | PackedWeights, backend: str = "auto"
    ) -> None:
        self.spec, self.weights, self.backend = spec, weights, backend
        self.device = weights.device
        if isinstance(weights, PackedWeights):
            # whole passes run there, whatever kernels the single ops have
            _check_packed("backend", backend)
        else:
            check_runnable(backend, self.device.type)
        self.executor = make_executor(spec, weights)
        self._cache: KVCache | None = None

    def run(
        self,
        requests: Sequence[Request],
        options: RunOptions,
        on_token: Callable[[int, int], None] | None = None,
    ) -> RunResult:
        """Run every request to its end. on_token(request id, token id) as tokens are read."""
        stats = RunStats()
        done: dict[int, Completion] = {}
        started = time.perf_counter()
        seconds = UNWATCHED_SECONDS if on_token is None else LISTENED_SECONDS
        for event in self._events(requests, options, stats, seconds):
            if on_token is not None:
                on_token(event.request_id, event.token_id)
            if event.completion is not None:
                done[event.request_id] = event.completion
        stats.seconds = time.perf_counter() - started
        return RunResult([done[request.id] for request in requests], stats)

    def stream(
        self, requests: Sequence[Request], options: RunOptions, stats: RunStats
    ) -> Iterator[TokenEvent]:
        """Tokens as they are read, batch by batch; `stats` grows along. Raises ValueError first."""
        return self._events(requests, options, stats, LISTENED_SECONDS)

    def _events(
        self,
        requests: Sequence[Request],
        options: RunOptions,
        stats: RunStats,
        seconds: float,
    ) -> Iterator[TokenEvent]:
        self._check(requests, options)
        scheduler = Scheduler(requests, options.batch_size, self.spec.num_layers)
        while (batch := scheduler.next_batch()) is not None:
            run = _BatchRun(self, batch, options, stats, seconds)
            try:
                yield from run.events()
            finally:
                run.close()

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """The context of one step: this engine's backend, in inference mode. Never held across a
        yield, since a caller's own code must run in neither.
        """
        backend = requested_backend() if self.backend == "auto" else self.backend
        if isinstance(self.weights, PackedWeights):
            _check_packed("backend", backend)
            # passes need no op; what little is left around them takes any kernel
            backend = "auto"
        with torch.inference_mode(), use_backend(backend):
            yield

    def take_cache(self, n_slots: int, n_lanes: int, capacity: int) -> KVCache:
        """An empty cache with at least this room: the one last given back, where it fits.

        It is the taker's alone until `give_back`: a stream may wait while others run.
        """
        capacity = -(-capacity // 16) * 16
        cache, self._cache = self._cache, None
        if cache is None or not cache.fits(n_slots, n_lanes, capacity):
            cache = None  # freed ahead of the larger one
            spec = self.spec
            cache = KVCache(
                spec.num_layers,
                n_slots,
                n_lanes,
                spec.num_heads,
                spec.head_size,
                capacity,
                self.weights.dtype,
                self.device,
            )
        return cache

    def give_back(self, cache: KVCache) -> None:
        """Empty a cache that was taken, and keep it for the next batch."""
        # not a step: what was run must come back under any backend
        with torch.inference_mode():
            cache.release_all()
        self._cache = cache

    def synchronize(self) -> None:
        """Wait for the device, so that a clock read next is right."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _check(self, requests: Sequence[Request], options: RunOptions) -> None:
        ids = [request.id for request in requests]
        if len(set(ids)) != len(ids):
            raise ValueError("requests: ids repeat, expected distinct ones")
        for request in requests:
            self._check_request(request)
            if options.prefill == "routed" and isinstance(request.policy, TokenPolicy):
                raise ValueError(
                    "prefill: 'routed' needs a planned policy, got a token policy; use 'full'"
                )

    def _check_request(self, request: Request) -> None:
        name = f"prompt of request {request.id}"
        if not request.prompt_ids:
            raise ValueError(f"{name}: empty, expected at least one token")
        vocab_size = self.spec.vocab_size
        if not all(0 <= i < vocab_size for i in request.prompt_ids):
            bad = next(i for i in request.prompt_ids if not 0 <= i < vocab_size)
            raise ValueError(f"{name}: token id {bad}, expected 0 to {vocab_size - 1}")
        check_integer("max_new_tokens", request.max_new_tokens, 1)
        # the last generated token is never an input, so it needs no position
        needed = len(request.prompt_ids) + request.max_new_tokens - 1
        if needed > self.spec.max_positions:
            raise ValueError(
                f"{name}: too long, {len(request.prompt_ids)} tokens and "
                f"{request.max_new_tokens} new ones exceed the model's "
                f"{self.spec.max_positions} positions"
            )


def _check_packed(argument: str, backend: str) -> None:
    if check_backend(argument, backend) not in ("auto", "cpu"):
        raise BackendUnavailable(
            f"{argument}: got {backend!r} for weights packed for the CPU engine, expected auto or "
            "cpu; load the model under that backend"
        )


class _BatchRun:
    """One batch from prefill to its last token. seconds: how long one step may take, about."""

    def __init__(
        self,
        engine: Engine,
        scheduled: ScheduledBatch,
        options: RunOptions,
        stats: RunStats,
        seconds: float,
    ) -> None:
        self.engine, self.options, self.stats, self.seconds = engine, options, stats, seconds
        self.requests, self.program = scheduled.requests, scheduled.program
        self.picker = TokenPicker(engine.executor.head, scheduled.sampling, options.seed)
        self.cache: KVCache | None = None
        layers = engine.spec.num_layers
        self.rows = [
            Completion(r.id, list(r.prompt_ids), layer_counts=[0] * layers) for r in self.requests
        ]
        self.eos_ids = [frozenset() if r.force_length else r.eos_token_ids for r in self.requests]

    def events(self) -> Iterator[TokenEvent]:
        """Prefill, then passes until no row is live."""
        stats, started = self.stats, time.perf_counter()
        with self.engine.stepping():
            tokens = self._prefill()
            events = self._commit(range(len(self.rows)), tokens)
            self.engine.synchronize()
        stats.seconds_prefill += time.perf_counter() - started
        yield from events
        while self._live():
            started = time.perf_counter()
            with self.engine.stepping():
                events = self._step()
            stats.seconds_decode += time.perf_counter() - started
            yield from events

    def _live(self) -> list[int]:
        return [slot for slot, row in enumerate(self.rows) if row.stop_reason is None]

    def _step(self) -> list[TokenEvent]:
        """As many passes as the executor runs at a time, committed in order."""
        remaining = [
            request.max_new_tokens - len(row.token_ids)
            for request, row in zip(self.requests, self.rows, strict=True)
        ]
        limits = PassLimits(max(remaining), self.seconds, remaining, self.eos_ids)
        results = self.engine.executor.advance(self.batch, self.cache, self.picker, limits)
        if not results:
            raise RuntimeError("the executor ran no pass although rows are live")
        events = []
        for result in results:
            alive = self._live()
            self._count(alive, result)
            events += self._commit(alive, result.token.tolist())
        return events

    def close(self) -> None:
        """Give back what the batch holds, whether or not it ran to its end."""
        if self.cache is not None:
            self.engine.give_back(self.cache)
            self.batch.fill = self.cache = None

    def _prefill(self) -> list[int]:
        """Token 1 of every row; leaves the batch and its cache ready to decode."""
        engine, options = self.engine, self.options
        plans = self._plan(None) if options.prefill == "routed" else None
        # one prefill serves every request with the same prompt (and, routed, the same route)
        keys = [
            (request.prompt_ids, None if plans is None else tuple(plans[i].tolist()))
            for i, request in enumerate(self.requests)
        ]
        unique = list(dict.fromkeys(keys))
        prompts = [prompt for prompt, _ in unique]
        routed = None if plans is None else torch.tensor([route for _, route in unique])
        state = engine.executor.prefill(prompts, routed)
        owner = [unique.index(key) for key in keys]
        if plans is None and self.program is None:
            plans = self._plan(state.hidden[owner])
        self._admit(state, owner, plans)
        return self._first_tokens(state.hidden[owner])

    def _plan(self, prompt_states: Tensor | None) -> list[Tensor]:
        """A route for each request; each policy is asked once for all of its requests."""
        num_layers, seed = self.engine.spec.num_layers, self.options.seed
        by_policy: dict[int, list[int]] = {}
        for slot, request in enumerate(self.requests):
            by_policy.setdefault(id(request.policy), []).append(slot)
        plans: dict[int, Tensor] = {}
        for slots in by_policy.values():
            policy = self.requests[slots[0]].policy
            asked = [
                PlanRequest(
                    self.requests[slot].id,
                    self.requests[slot].prompt_ids,
                    num_layers,
                    seed,
                    None if prompt_states is None else prompt_states[slot],
                )
                for slot in slots
            ]
            name = f"policy {getattr(policy, 'spec', type(policy).__name__)}"
            table = route_math.check_routes(name, policy.plan(asked), len(slots), num_layers)
            plans.update(zip(slots, table, strict=True))
        return [plans[slot] for slot in range(len(self.requests))]

    def _admit(self, state: PrefillResult, owner: list[int], plans: list[Tensor] | None) -> None:
        engine = self.engine
        num_layers, n_slots = engine.spec.num_layers, len(self.requests)
        routes = plans or [route_math.full(num_layers)] * n_slots
        capacity = max(len(r.prompt_ids) + r.max_new_tokens for r in self.requests)
        n_lanes = int(sum(route.sum() for route in routes))
        self.batch = DecodeBatch(
            num_layers,
            n_slots,
            self.options.kv_fill,
            self.program,
            self.options.seed,
            engine.device,
        )
        self.cache = engine.take_cache(n_slots, n_lanes, capacity)
        self.picker.begin(n_slots, capacity, engine.device)
        for slot, request in enumerate(self.requests):
            start, end = state.bounds[owner[slot]], state.bounds[owner[slot] + 1]
            keys, values = state.keys[:, start:end], state.values[:, start:end]
            self.cache.admit(slot, routes[slot], keys, values)
            # the first token is not known yet; _first_tokens writes it
            self.batch.admit(slot, 0, len(request.prompt_ids), request.id, routes[slot])
            self.picker.remember(slot, 0, list(request.prompt_ids))

    def _first_tokens(self, hidden: Tensor) -> list[int]:
        batch = self.batch
        slots = torch.arange(len(self.rows), dtype=torch.int32, device=self.engine.device)
        step = torch.zeros_like(batch.step)
        token = self.picker.pick(hidden, None, slots, batch.request, step)
        batch.token.copy_(token)
        # admitted rows stand at the first generated token
        self.picker.note(batch.alive, batch.position - 1, token)
        return token.tolist()

    def _count(self, alive: list[int], result: PassResult) -> None:
        ran = result.ran.cpu()
        filled = result.filled.tolist()
        lengths = [len(self.rows[s].prompt_ids) + len(self.rows[s].token_ids) - 1 for s in alive]
        self.stats.passes.append(
            PassCount(
                rows=len(alive),
                layer_rows=tuple(ran.sum(dim=1).tolist()),
                fill_rows=tuple(filled) if any(filled) else (),
                head_rows=int(result.head_rows),
                length=sum(lengths) / len(lengths),
            )
        )
        columns = ran.T.tolist()
        for slot in alive:
            row, column = self.rows[slot], columns[slot]
            row.layers_run.append(sum(column))
            row.layer_counts = [c + k for c, k in zip(row.layer_counts, column, strict=True)]

    def _commit(self, slots: Sequence[int], tokens: list[int]) -> list[TokenEvent]:
        """Book a pass's tokens; rows that stop leave the batch before anybody sees the event."""
        events = []
        for slot in slots:
            row, request, token = self.rows[slot], self.requests[slot], tokens[slot]
            row.token_ids.append(token)
            if token in self.eos_ids[slot]:
                row.stop_reason = "eos"
            elif len(row.token_ids) == request.max_new_tokens:
                row.stop_reason = "length"
            if row.stop_reason is not None:
                self.batch.retire(slot)
            self.stats.new_tokens += 1
            done = row if row.stop_reason is not None else None
            events.append(TokenEvent(request.id, token, done))
        return events
