"""The engine: prefill, route, decode, stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from dynkern import routes as route_math
from dynkern.arguments import check_integer
from dynkern.cost import CostModel, roofline_model
from dynkern.kernels.invariance import batch_invariant
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
from dynkern.runtime.executors import make_executor
from dynkern.runtime.kv_cache import KVCache
from dynkern.runtime.request import (
    Completion,
    Request,
    RunResult,
    RunStats,
    SamplingParams,
    TokenEvent,
    TokenPolicy,
)
from dynkern.runtime.sampling import Head, TokenPicker
from dynkern.runtime.scheduler import SCHEDULES
from dynkern.runtime.session import Session

# one call of the executor may take this long: somebody waits for tokens, or for Ctrl-C. A call
# costs half a millisecond of Python and of waking threads: 6 % at 5 ms (OPT-125m, 1 row)
LISTENED_SECONDS = 0.015
UNWATCHED_SECONDS = 0.25

# bytes/s and operations/s where nothing was measured: two cores of a server, one H100. A choice
# between schedules depends on little more than their ratio
NOMINAL_PEAKS = {"cpu": (30e9, 200e9), "cuda": (2.5e12, 400e12)}

OnPass = Callable[[Sequence[TokenEvent]], Collection[int] | None]


@dataclass(frozen=True)
class RunOptions:
    """How requests run. batch_size: rows at most; prefill: "full" or "routed";
    kv_fill: a rule of executors/kv_fill.py; seed: of Philox. picker(head, sampling, seed): makes
    the picker of a group of rows; None takes TokenPicker.

    schedule: "fifo", "cohort" (equal and nested routes together) or "auto", which asks the cost
    model. prefill_tokens: prompts prefilled at a time while rows decode. max_wait: passes after
    which whoever was overtaken goes ahead of those who were not. prompt_bytes: prefilled prompts
    kept at most for requests that still wait.
    """

    batch_size: int = 8
    prefill: str = "full"
    kv_fill: str = "project"
    seed: int = 0
    picker: Callable[[Head, SamplingParams, int], TokenPicker] | None = None
    schedule: str = "auto"
    prefill_tokens: int = 512
    max_wait: int = 512
    prompt_bytes: int = 256 << 20

    def __post_init__(self) -> None:
        check_integer("batch_size", self.batch_size, 1)
        route_math.check_choice("prefill", self.prefill, route_math.PREFILLS)
        route_math.check_choice("kv_fill", self.kv_fill, route_math.KV_FILLS)
        route_math.check_choice("schedule", self.schedule, SCHEDULES)
        for name, least in (("prefill_tokens", 1), ("max_wait", 0), ("prompt_bytes", 0)):
            check_integer(name, getattr(self, name), least)
        check_integer("seed", self.seed, 0, (1 << 64) - 1, "an integer from 0 to 2**64 - 1")


class Engine:
    """Runs requests on one model. backend: "auto", or one that everything must run on.
    cost_model: set it to decode times measured on this engine, and schedules are chosen by them.
    batch_invariant: kernels/invariance.py; None leaves it to DYNKERN_BATCH_INVARIANT.

    Raises BackendUnavailable (a ValueError) where these weights cannot run on the one named.
    """

    def __init__(
        self,
        spec: DecoderSpec,
        weights: DecoderWeights | PackedWeights,
        backend: str = "auto",
        batch_invariant: bool | None = None,
    ) -> None:
        self.spec, self.weights, self.backend = spec, weights, backend
        self.batch_invariant = batch_invariant
        self.device = weights.device
        if isinstance(weights, PackedWeights):
            # whole passes run there, whatever kernels the single ops have
            _check_packed("backend", backend)
        else:
            check_runnable(backend, self.device.type)
        self.executor = make_executor(spec, weights)
        self.cost_model: CostModel | None = None
        # what errors call the model
        self.name = "this model"
        self._cache: KVCache | None = None

    def run(
        self,
        requests: Sequence[Request],
        options: RunOptions,
        on_token: Callable[[int, int], None] | None = None,
        on_pass: OnPass | None = None,
    ) -> RunResult:
        """Run every request to its end. on_token(request id, token id) as tokens are read.

        on_pass(events): called once a pass is booked, prefill's first tokens included, with the
        events of all rows that it was for, in request order; it returns ids of requests to end
        there ("stopped"). With it the executor runs one pass at a time.
        """
        stats = RunStats()
        done: dict[int, Completion] = {}
        started = time.perf_counter()
        seconds = UNWATCHED_SECONDS if on_token is None else LISTENED_SECONDS
        for event in self._events(requests, options, stats, seconds, on_pass):
            if on_token is not None and event.token_id is not None:
                on_token(event.request_id, event.token_id)
            if event.completion is not None:
                done[event.request_id] = event.completion
        stats.seconds = time.perf_counter() - started
        return RunResult([done[request.id] for request in requests], stats)

    def stream(
        self, requests: Sequence[Request], options: RunOptions, stats: RunStats
    ) -> Iterator[TokenEvent]:
        """Tokens as they are read; `stats` grows along. Raises ValueError first."""
        return self._events(requests, options, stats, LISTENED_SECONDS)

    def session(
        self, options: RunOptions, stats: RunStats | None = None, expected: int | None = None
    ) -> Session:
        """Continuous batching for requests that come and go; close it.

        stats: grows along, a PassCount for each pass; None keeps totals only, so that memory stays
        flat however long the session lives. expected: how many requests are submitted, all at
        once, where that is known: their K/V cache need not be ready for others.
        """
        known = expected is not None
        return Session(
            self,
            options,
            RunStats() if stats is None else stats,
            slots=max(1, min(options.batch_size, expected)) if known else options.batch_size,
            seconds=LISTENED_SECONDS,
            is_open=not known,
            counts_passes=stats is not None,
        )

    def _events(
        self,
        requests: Sequence[Request],
        options: RunOptions,
        stats: RunStats,
        seconds: float,
        on_pass: OnPass | None = None,
    ) -> Iterator[TokenEvent]:
        session = Session(
            self,
            options,
            stats,
            slots=max(1, min(options.batch_size, len(requests))),
            seconds=seconds,
            one_pass=on_pass is not None,
            is_open=False,
        )
        try:
            session.submit(requests)
            while session.busy:
                events = session.step()
                if on_pass is not None:
                    events = _ended(events, session.stop(on_pass(events) or ()))
                yield from events
        finally:
            session.close()

    def make_picker(self, options: RunOptions, sampling: SamplingParams) -> TokenPicker:
        """The picker of a group of rows."""
        make = options.picker or TokenPicker
        return make(self.executor.head, sampling, options.seed)

    def decode_cost(self, rows: int, length: float) -> CostModel:
        """`cost_model` where it was measured for as many rows, else what the roofline says."""
        measured = self.cost_model
        if measured is not None and max(1, rows) in _measured_rows(measured):
            return measured
        return roofline_model(
            self.spec,
            rows,
            length,
            self.weights.element_size,
            self.executor.dtype.itemsize,
            *NOMINAL_PEAKS[self.device.type],
        )

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
        mode = batch_invariant(self.batch_invariant)
        with torch.inference_mode(), use_backend(backend), mode:
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

    def check(self, requests: Sequence[Request], options: RunOptions) -> None:
        """ValueError, one line, for requests that cannot run."""
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


def _ended(events: Sequence[TokenEvent], done: dict[int, Completion]) -> list[TokenEvent]:
    """The events with the completions of rows that were ended after them."""
    ended = [
        TokenEvent(e.request_id, e.token_id, e.completion or done.pop(e.request_id, None))
        for e in events
    ]
    # rows of other passes, and those that had not begun
    return ended + [TokenEvent(i, None, completion) for i, completion in done.items()]


def _measured_rows(model: CostModel) -> range:
    highest = min(model.fixed.rows[-1], model.layer.rows[-1])
    return range(1, highest + 1) if model.fixed.rows[0] == model.layer.rows[0] == 1 else range(0)
