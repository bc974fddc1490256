"""Sessions at their limits: ten thousand requests, failing steps, other sessions, bad input."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest

from dynkern.llm import LLM
from dynkern.policies import policy
from dynkern.runtime.engine import RunOptions
from dynkern.runtime.request import Request, SamplingParams
from support.backends import BACKENDS, needs_engine
from support.opt import save_opt
from support.sessions import SAMPLINGS, Listener, alone, assert_empty, random_requests

NUM_LAYERS = 6
PLANNED = ["full", "uniform:3", "early_exit:1", "random:4", "uniform:1", "random:2", "uniform:5"]


@pytest.fixture(scope="module", params=BACKENDS)
def llm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LLM:
    directory = tmp_path_factory.mktemp("opt")
    save_opt(directory, seed=3)
    return LLM(directory, backend=request.param)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    """Two layers of width 16 on the CPU engine: ten thousand requests take seconds."""
    directory = tmp_path_factory.mktemp("tiny")
    sizes = {"hidden_size": 16, "ffn_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    save_opt(directory, **sizes, word_embed_proj_dim=16, vocab_size=61, init_std=0.6)
    return LLM(directory, backend="cpu")


# -- many ----------------------------------------------------------------------------------------


@needs_engine
def test_ten_thousand_requests(tiny):
    count = 10_000
    specs = ["full", "uniform:1", "early_exit:0", "random:1", "stochastic:0.5"]
    samplings = [*[SamplingParams()] * 15, SamplingParams(1.1, 10)]
    base = random_requests(count, specs, samplings, vocab_size=61, longest=12, most=9, seed=1)
    requests = [replace(r, deadline=None if r.id % 50 else r.id / 3) for r in base]
    options = RunOptions(16, schedule="cohort", prompt_bytes=100_000)
    draw = random.Random(3)
    doomed = set(draw.sample(range(count), 700))
    with tiny.engine.session(options) as session:
        listener = Listener(session)
        session.submit(requests)
        steps, kept = 0, Counter()
        cache = None
        while session.busy:
            listener.step()
            steps += 1
            if steps % 5 == 0 and doomed:
                target = doomed.pop()
                if target in session:
                    listener.end(session.cancel(target))
            cache = cache or session._cache
            assert session._cache is cache
            kept["prompts"] = max(kept["prompts"], session._prompts.held.nbytes)
            kept["groups"] = max(kept["groups"], len(session._groups))
        assert session.stats.passes == [] and not session._rows
        assert kept["prompts"] <= 100_000 and kept["groups"] <= 5
    reasons = Counter(done.stop_reason for done in listener.done.values())
    assert reasons.total() == count and min(reasons.values()) > 300
    assert set(reasons) == {"eos", "length", "cancelled"}
    assert_empty(tiny.engine)
    sample = draw.sample(requests, 400)
    some = Listener(session)
    some.done = {r.id: listener.done[r.id] for r in sample}
    some.tokens = {r.id: listener.tokens.get(r.id, []) for r in sample}
    some.check(sample, alone(tiny, sample, options))


# -- what may go wrong ---------------------------------------------------------------------------


def test_a_longer_row_waits_for_a_larger_cache(llm):
    rows = [Request(i, (2, 5 + i), policy("full"), 6 + i, frozenset()) for i in range(3)]
    long = Request(7, tuple([2] + [9] * 40), policy("full"), 30, frozenset())
    late = [Request(i, (2, 5 + i), policy("full"), 5, frozenset()) for i in (8, 9)]
    llm.engine._cache = None
    with llm.engine.session(RunOptions(4)) as session:
        session.submit(rows)
        listener = Listener(session)
        listener.step()
        assert session._cache.capacity == 16
        session.submit([long, *late])
        while session.busy:
            listener.step()
        assert session._cache.capacity == 80
    every = [*rows, long, *late]
    listener.check(every, alone(llm, every, RunOptions()))


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("method", ["prefill", "advance"])
def test_a_step_that_fails_leaves_the_engine_usable(llm, monkeypatch, error, method):
    requests = random_requests(12, PLANNED, SAMPLINGS[:1], seed=6)
    want = llm.engine.run(requests, RunOptions(4)).completions
    run, calls = getattr(llm.engine.executor, method), []

    def failing(*args):
        calls.append(args)
        if len(calls) == 2:
            raise error
        return run(*args)

    with monkeypatch.context() as patch:
        patch.setattr(llm.engine.executor, method, failing)
        with pytest.raises(error):
            llm.engine.run(requests, RunOptions(4, prefill_tokens=10))
    assert_empty(llm.engine)
    assert llm.engine.run(requests, RunOptions(4)).completions == want


def test_sessions_take_turns_and_close(llm):
    requests = random_requests(12, PLANNED, seed=8)
    want = alone(llm, requests, RunOptions())
    halves = [requests[:6], requests[6:]]
    sessions = [llm.engine.session(RunOptions(2)) for _ in halves]
    listeners = [Listener(session) for session in sessions]
    for session, half in zip(sessions, halves, strict=True):
        session.submit(half)
    while any(session.busy for session in sessions):
        for listener in listeners:
            if listener.session.busy:
                listener.step()
    for session, listener, half in zip(sessions, listeners, halves, strict=True):
        listener.check(half, want)
        assert not session.closed
        session.close()
        session.close()
        assert session.closed and not session.busy
        with pytest.raises(RuntimeError, match="session: closed"):
            session.step()
        with pytest.raises(RuntimeError, match="session: closed"):
            session.submit(half)
    assert_empty(llm.engine)


def test_ids_that_run_and_ids_that_do_not(llm):
    request = Request(3, (2, 5), policy("full"), 4, frozenset())
    with llm.engine.session(RunOptions(2)) as session:
        session.submit([request])
        with pytest.raises(ValueError, match=r"^requests: id 3 is running, expected another one$"):
            session.submit([replace(request, id=4), request])
        assert 4 not in session
        waiting = session.cancel(3)
        assert (waiting.stop_reason, waiting.token_ids) == ("cancelled", [])
        assert waiting.layer_counts == [0] * NUM_LAYERS and not session.busy
        with pytest.raises(ValueError, match=r"^request 3: neither waits nor runs$"):
            session.cancel(3)
        session.submit([request])
        assert session.stop([3, 8])[3].stop_reason == "stopped"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "lifo"}, "^schedule: got 'lifo', expected one of auto, fifo, cohort$"),
        ({"prefill_tokens": 0}, "^prefill_tokens: got 0, expected 1 or more$"),
        ({"max_wait": -1}, "^max_wait: got -1, expected 0 or more$"),
        ({"prompt_bytes": -1}, "^prompt_bytes: got -1, expected 0 or more$"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        RunOptions(**options)
