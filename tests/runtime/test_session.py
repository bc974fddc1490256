"""Sessions: rows come and go, and each is what it would be alone; nothing lost, nothing kept."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from dynkern.cost import CostModel, LayerTimes
from dynkern.llm import LLM
from dynkern.policies import policy
from dynkern.routes import KV_FILLS, uniform
from dynkern.runtime import engine as engine_module
from dynkern.runtime.engine import RunOptions
from dynkern.runtime.request import Request, RunStats, SamplingParams
from support.backends import BACKENDS
from support.opt import random_prompts, save_opt
from support.sessions import Listener, alone, assert_empty, random_requests

NUM_LAYERS = 6
PLANNED = ["full", "uniform:3", "early_exit:1", "random:4", "uniform:1", "random:2", "uniform:5"]
TOKEN = ["random-step:3", "stochastic:0.3", "confidence:margin=0.2", "confidence:cosine=0.6"]


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """torch.empty and its kin hand out NaN: caches, and what waits."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module", params=BACKENDS)
def llm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LLM:
    directory = tmp_path_factory.mktemp("opt")
    save_opt(directory, seed=3)
    return LLM(directory, backend=request.param)


# -- a row is what it is alone -------------------------------------------------------------------


@pytest.mark.parametrize("kv_fill", KV_FILLS)
@pytest.mark.parametrize("schedule", ["fifo", "cohort"])
def test_random_arrivals(llm, schedule, kv_fill):
    requests = random_requests(40, [*PLANNED, *TOKEN], seed=len(kv_fill))
    options = RunOptions(5, kv_fill=kv_fill, seed=7, schedule=schedule, prefill_tokens=30)
    want = alone(llm, requests, options)
    draw = random.Random(len(kv_fill))
    with llm.engine.session(options, stats := RunStats()) as session:
        listener, coming, cancelled = Listener(session), list(requests), 0
        while coming or session.busy:
            if coming and draw.random() < 0.4:
                count = draw.randint(1, 9)
                session.submit(coming[:count])
                del coming[:count]
            if session.busy and draw.random() < 0.1:
                running = [r.id for r in requests if r.id in session]
                listener.end(session.cancel(draw.choice(running)))
                cancelled += 1
            if session.busy:
                listener.step()
    listener.check(requests, want)
    assert cancelled > 0
    assert stats.new_tokens == sum(len(done.token_ids) for done in listener.done.values())
    assert sum(p.rows for p in stats.passes) == sum(
        len(d.layers_run) for d in listener.done.values()
    )
    assert_empty(llm.engine)


@pytest.mark.parametrize("prefill", ["full", "routed"])
def test_schedules_give_the_same_texts(llm, prefill):
    requests = random_requests(30, PLANNED, seed=5)
    runs = [
        llm.engine.run(requests, RunOptions(4, prefill, schedule=schedule, prefill_tokens=40))
        for schedule in ("fifo", "cohort", "auto")
    ]
    assert runs[0].completions == runs[1].completions == runs[2].completions
    assert [c.request_id for c in runs[0].completions] == list(range(30))
    assert [run.stats.schedule for run in runs[:2]] == ["fifo", "cohort"]
    assert runs[0].stats.predicted == {}
    want = alone(llm, requests, RunOptions(1, prefill))
    assert {c.request_id: c for c in runs[0].completions} == want


def test_a_slot_forgets_the_row_before(llm):
    # long gaps leave hidden states waiting at a layer when a row ends
    requests = [
        Request(i, tuple(p), policy("stochastic:0.1"), 9 + 3 * (i % 4), frozenset())
        for i, p in enumerate(random_prompts(12, seed=2))
    ]
    penalised = [replace(r, sampling=SamplingParams(0.0, 0, 1.0, 3.0)) for r in requests]
    for rows in (requests, penalised):
        options = RunOptions(3, kv_fill="deferred", seed=1)
        done = llm.engine.run(rows, options).completions
        assert {c.request_id: c for c in done} == alone(llm, rows, options)


def test_slots_are_refilled_as_soon_as_a_row_ends(llm):
    limits = [3, 9, 9, 4, 8, 2, 7, 5]
    requests = [
        Request(i, tuple(p), policy("full"), n, frozenset())
        for (i, p), n in zip(enumerate(random_prompts(8, seed=1)), limits, strict=True)
    ]
    passes = llm.engine.run(requests, RunOptions(3)).stats.passes
    # static batches of three take 8 + 7 + 6 passes
    assert sum(p.rows for p in passes) == sum(limits) - 8
    rows = [p.rows for p in passes]
    assert rows == [3] * rows.count(3) + sorted(rows[rows.count(3) :], reverse=True)
    assert len(passes) == 14


def test_rows_that_decode_wait_for_one_group_of_prompts_at_a_time(llm, monkeypatch):
    prompts = [tuple([2] + [5 + i] * 11) for i in range(9)]
    requests = [
        Request(i, p, policy("full"), 4 + 20 * (i == 0), frozenset()) for i, p in enumerate(prompts)
    ]
    prefill, given = llm.engine.executor.prefill, []

    def counting(prompts, routes=None):
        given.append(sum(map(len, prompts)))
        return prefill(prompts, routes)

    monkeypatch.setattr(llm.engine.executor, "prefill", counting)
    monkeypatch.setattr(engine_module, "LISTENED_SECONDS", 0.0)
    options = RunOptions(4, prefill_tokens=24)
    with llm.engine.session(options) as session:
        session.submit(requests[:1])
        listener = Listener(session)
        listener.step()
        listener.step()
        session.submit(requests[1:])
        while session.busy:
            before = len(given)
            listener.step()
            assert len(given) <= before + 1
    assert given == [12, 24, 24, 24, 24]
    assert session.stats.prefilled == 9 * 12


# -- prompts are prefilled once ------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["fifo", "cohort"])
def test_each_prompt_is_prefilled_once_for_all_of_its_routes(llm, schedule):
    prompts = random_prompts(10, seed=4)
    budgets = range(1, NUM_LAYERS + 1)
    requests = [
        Request(i * 10 + k, tuple(p), policy(f"uniform:{k}"), 6, frozenset([2]))
        for i, p in enumerate(prompts)
        for k in budgets
    ]
    run = llm.engine.run(requests, RunOptions(4, schedule=schedule))
    assert run.stats.prefilled == sum(map(len, prompts))
    want = alone(llm, requests, RunOptions())
    assert {c.request_id: c for c in run.completions} == want
    # without room each is prefilled again, with the same result
    none = llm.engine.run(requests, RunOptions(4, schedule=schedule, prompt_bytes=0))
    assert none.completions == run.completions
    assert none.stats.prefilled >= 2 * run.stats.prefilled


def test_the_store_of_prompts_is_bounded_and_empties(llm):
    requests = [
        Request(i * 3 + k, tuple([2, 9 + i, *[7] * i]), policy(f"uniform:{k + 1}"), 4, frozenset())
        for k in range(3)
        for i in range(12)
    ]
    token = 2 * NUM_LAYERS * 48 * 4
    limit = 60 * token
    with llm.engine.session(RunOptions(2, prompt_bytes=limit)) as session:
        session.submit(requests)
        held = []
        while session.busy:
            session.step()
            store = session._prompts.held
            assert store.nbytes == sum(p.nbytes for p in store.values()) <= limit
            assert all(any(e.prompt == key for e in session._waiting.values()) for key in store)
            held.append(len(store))
        assert max(held) > 2 and held[-1] == 0


def test_the_head_finds_the_first_tokens_of_a_prefill_at_once(llm, monkeypatch):
    prompts = random_prompts(9, seed=4)
    requests = [
        Request(i * 10 + k, tuple(p), policy(f"uniform:{k}"), 6, frozenset([2]))
        for i, p in enumerate(prompts)
        for k in (2, 5)
    ]
    executor, prefills, asked = llm.engine.executor, [], []
    prefill, argmax = executor.prefill, executor.head.argmax

    def counting(prompts, routes=None):
        prefills.append(len(prompts))
        return prefill(prompts, routes)

    def noting(hidden, n):
        if n is None:  # passes say how many rows count
            asked.append(len(hidden))
        return argmax(hidden, n)

    monkeypatch.setattr(executor, "prefill", counting)
    monkeypatch.setattr(executor.head, "argmax", noting)
    run = llm.engine.run(requests, RunOptions(3, prefill_tokens=40))
    assert asked == prefills and sum(prefills) == 9 > len(prefills)
    asked.clear()
    sampled = [replace(r, sampling=SamplingParams(0.9, 40)) for r in requests]
    llm.engine.run(sampled, RunOptions(3, prefill_tokens=40))
    assert asked == []
    monkeypatch.undo()
    assert {c.request_id: c for c in run.completions} == alone(llm, requests, RunOptions())


def test_a_prompt_prefilled_for_a_sampled_row_serves_a_greedy_one(llm):
    requests = [
        Request(i, (2, 9, 8), policy("full"), 6, frozenset(), sampling=sampling)
        for i, sampling in enumerate([SamplingParams(0.9, 40), SamplingParams()])
    ]
    run = llm.engine.run(requests, RunOptions(1))
    assert run.stats.prefilled == 3
    assert {c.request_id: c for c in run.completions} == alone(llm, requests, RunOptions())


def test_prompts_are_prefilled_in_the_order_in_which_a_cohort_takes_them(llm, monkeypatch):
    requests = [
        Request(i, (2, 5 + i, 9), policy(f"uniform:{1 + 5 * (i % 2)}"), 4, frozenset(), True)
        for i in range(12)
    ]
    prefill, given = llm.engine.executor.prefill, []

    def noting(prompts, routes=None):
        given.append([ids[1] - 5 for ids in prompts])
        return prefill(prompts, routes)

    monkeypatch.setattr(llm.engine.executor, "prefill", noting)
    llm.engine.run(requests, RunOptions(2, schedule="cohort", prefill_tokens=12))
    assert given == [[1, 3, 5, 7], [9, 11, 0, 2], [4, 6, 8, 10]]


class SeesState:
    """A planned policy that looks at the prompt's state."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def plan(self, requests):
        self.asked.append([r.id for r in requests])
        assert all(r.prompt_state is not None for r in requests)
        return [
            uniform(NUM_LAYERS, 1 + int(r.prompt_state.abs().sum() * 1e3) % 6) for r in requests
        ]


@pytest.mark.parametrize("schedule", ["fifo", "cohort"])
def test_a_policy_that_sees_prompts_is_asked_once_for_each_request(llm, schedule):
    chooser = SeesState()
    requests = [
        Request(i, tuple(p), chooser, 5, frozenset())
        for i, p in enumerate(random_prompts(14, seed=4))
    ]
    run = llm.engine.run(requests, RunOptions(4, schedule=schedule, prefill_tokens=50))
    assert sorted(i for ids in chooser.asked for i in ids) == list(range(14))
    assert len(chooser.asked) < 14
    assert len({c.mean_layers for c in run.completions}) > 2
    assert {c.request_id: c for c in run.completions} == alone(llm, requests, RunOptions())


def test_auto_learns_routes_of_policies_that_see_prompts(llm, monkeypatch):
    # a head that costs nothing, so that any difference of unions shows
    layers = LayerTimes((1, 64), (1.0, 1.1))
    cost = CostModel(LayerTimes((1, 64), (1e-9, 1e-9)), layers)
    monkeypatch.setattr(llm.engine, "cost_model", cost)
    chooser = SeesState()
    requests = [
        Request(i, tuple(p), chooser, 12, frozenset(), True)
        for i, p in enumerate(random_prompts(90, seed=4))
    ]
    runs = [llm.engine.run(requests, RunOptions(4, schedule=name)) for name in ("auto", "fifo")]
    auto, fifo = (run.stats for run in runs)
    assert auto.schedule == "cohort"
    assert auto.predicted["fifo"] > 1.03 * auto.predicted["cohort"]
    assert runs[0].completions == runs[1].completions
    assert sum(p.union for p in auto.passes) < 0.9 * sum(p.union for p in fifo.passes)


# -- order ---------------------------------------------------------------------------------------


def test_the_earliest_deadline_goes_first(llm):
    deadlines = [None, 5.0, 1.0, None, 3.0, 1.0]
    requests = [
        Request(i, (2, 5 + i), policy("full"), 3, frozenset(), deadline=d)
        for i, d in enumerate(deadlines)
    ]
    with llm.engine.session(RunOptions(1)) as session:
        session.submit(requests)
        ended = []
        while session.busy:
            for event in session.step():
                if event.completion is not None:
                    ended.append(event.request_id)
            if len(ended) == 2 and 9 not in session and 9 not in ended:
                session.submit([Request(9, (2,), policy("full"), 2, frozenset(), deadline=0.0)])
    assert ended == [2, 5, 9, 4, 1, 0, 3]


def test_groups_take_turns(llm):
    kinds = ["full", "random-step:3", "confidence:margin=0.2"]
    requests = [
        Request(i, tuple(p), policy(kinds[i % 3]), 60, frozenset(), force_length=True)
        for i, p in enumerate(random_prompts(6, seed=4))
    ]
    with llm.engine.session(RunOptions(6)) as session:
        session.submit(requests)
        listener = Listener(session)
        spread = 0
        while session.busy:
            listener.step()
            counts = [len(listener.tokens[r.id]) for r in requests]
            spread = max(spread, max(counts) - min(counts))
    assert 0 < spread <= 2 * 16
    listener.check(requests, alone(llm, requests, RunOptions()))


def test_nobody_waits_longer_than_the_bound(llm):
    lengths = [9, 5, *[9] * 80]
    deep = [Request(i, (2, 5), policy("full"), n, frozenset()) for i, n in enumerate(lengths)]
    shallow = Request(99, (2, 6), policy("uniform:1"), 3, frozenset(), True)
    requests = [*deep[:2], shallow, *deep[2:]]

    def begins(max_wait: int) -> int:
        options = RunOptions(2, schedule="cohort", max_wait=max_wait)
        with llm.engine.session(options, stats := RunStats()) as session:
            session.submit(requests)
            while True:
                if any(event.request_id == 99 for event in session.step()):
                    return len(stats.passes)

    # a slot comes free every four passes; the first time it is overtaken
    assert begins(0) == 8
    assert begins(24) == 28
    # the pool holds 64, and it goes last of them
    assert begins(1000) == 4 * (64 - 2)
