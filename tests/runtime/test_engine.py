"""The engine: request life, stops, shared prefill, counters, batches."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dynkern.llm import LLM
from dynkern.policies import policy
from dynkern.runtime import engine as engine_module
from dynkern.runtime.engine import RunOptions
from dynkern.runtime.request import Request, RunStats, SamplingParams
from dynkern.runtime.sampling import TokenPicker
from support.backends import BACKENDS
from support.opt import random_prompts, save_opt
from support.trace import trace_run

NUM_LAYERS = 6


@pytest.fixture(scope="module", params=BACKENDS)
def llm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LLM:
    directory = tmp_path_factory.mktemp("opt")
    save_opt(directory)
    return LLM(directory, backend=request.param)


def requests_for(llm: LLM, prompts: list, specs: list[str], **overrides) -> list[Request]:
    settings = {"max_new_tokens": 10, "eos_token_ids": frozenset([2]), **overrides}
    return [
        Request(i, tuple(prompt), policy(spec), **settings)
        for i, (prompt, spec) in enumerate(zip(prompts, specs, strict=True))
    ]


def test_one_prefill_serves_all_routes_of_a_prompt(monkeypatch, llm):
    prompts = random_prompts(2, seed=5)
    rows = [prompts[0]] * 5 + [prompts[1]] * 3
    specs = [f"uniform:{k}" for k in (1, 2, 3, 4, 5)] + ["full", "early_exit:1", "random:2"]
    with monkeypatch.context() as patch:
        shared = trace_run(patch, llm, rows, specs, batch_size=8)
    assert shared.prefills == [2]
    alone = [
        llm.generate([p], s, request_ids=[i])
        for i, (p, s) in enumerate(zip(rows, specs, strict=True))
    ]
    assert [c.token_ids for c in shared.result.completions] == [c.token_ids for (c,) in alone]


def test_routed_prefill_is_shared_by_equal_routes_only(monkeypatch, llm):
    rows = [random_prompts(1, seed=5)[0]] * 4
    specs = ["uniform:2", "uniform:2", "uniform:3", "full"]
    trace = trace_run(monkeypatch, llm, rows, specs, prefill="routed")
    assert trace.prefills == [3]


def test_rows_stop_one_by_one_and_leave_the_batch(llm):
    prompts = random_prompts(6, seed=8)
    plain = llm.generate(prompts, force_length=True, max_new_tokens=20)
    # a token that some rows produce early and others late or never
    stop = plain[0].token_ids[6]
    requests = requests_for(
        llm, prompts, ["full"] * 6, max_new_tokens=20, eos_token_ids=frozenset([stop])
    )
    result = llm.engine.run(requests, RunOptions(batch_size=6))
    for before, after in zip(plain, result.completions, strict=True):
        hit = before.token_ids.index(stop) + 1 if stop in before.token_ids else 20
        assert after.token_ids == before.token_ids[:hit]
        assert after.stop_reason == ("eos" if stop in before.token_ids else "length")
        assert after.layers_run == [NUM_LAYERS] * (len(after.token_ids) - 1)
    alive = [count.rows for count in result.stats.passes]
    assert alive == sorted(alive, reverse=True) and alive[0] > alive[-1]
    assert all(count.layer_rows == (count.rows,) * NUM_LAYERS for count in result.stats.passes)
    assert result.stats.new_tokens == sum(len(c.token_ids) for c in result.completions)


def test_counters_are_those_of_the_routes(llm):
    prompts = random_prompts(4, seed=2)
    specs = ["uniform:2", "uniform:4", "early_exit:0", "full"]
    result = llm.run(prompts, specs, max_new_tokens=5, force_length=True)
    routes = [policy(spec).route(NUM_LAYERS) for spec in specs]
    for completion, route in zip(result.completions, routes, strict=True):
        assert completion.layer_counts == (route.int() * 4).tolist()
        assert completion.mean_layers == route.sum()
    assert len(result.stats.passes) == 4
    rows = torch.stack(routes).sum(dim=0).tolist()
    assert all(list(count.layer_rows) == rows for count in result.stats.passes)


def test_fill_and_head_rows_are_counted(llm):
    prompts = random_prompts(3, seed=2)
    options = {"max_new_tokens": 8, "force_length": True}
    drawn = llm.run(prompts, "random-step:2", kv_fill="project", **options).stats.passes
    assert all(count.fill_rows == tuple(3 - n for n in count.layer_rows) for count in drawn)
    copied = llm.run(prompts, "random-step:2", kv_fill="copy", **options).stats.passes
    assert all(count.fill_rows == () for count in copied)
    never = llm.run(prompts, "confidence:top_prob=1.0,exits=0+2", **options).stats.passes
    assert {count.head_rows for count in never} == {6}
    # who leaves takes the token that the exit's head found, and does not ask the final one
    always = llm.run(prompts, "confidence:top_prob=0,exits=0+2", **options).stats.passes
    assert {(count.head_rows, count.union) for count in always} == {(0, 1)}
    drawn_tokens = {**options, "sampling": SamplingParams(1.0)}
    sampled = llm.run(prompts, "confidence:top_prob=0,exits=0+2", **drawn_tokens).stats.passes
    assert {count.head_rows for count in sampled} == {3}
    planned = llm.run(prompts, "uniform:2", **options).stats.passes
    assert {(count.head_rows, count.fill_rows) for count in planned} == {(0, ())}


def test_batches_do_not_change_a_row(llm):
    prompts = random_prompts(9, seed=6)
    for spec in ("random:3", "stochastic:0.5", "confidence:margin=0.3"):
        runs = [llm.generate(prompts, spec, batch_size=size, seed=4) for size in (1, 4, 9)]
        texts = [[c.token_ids for c in run] for run in runs]
        assert texts[0] == texts[1] == texts[2]
        layers = [[c.layers_run for c in run] for run in runs]
        assert layers[0] == layers[1] == layers[2]


def test_planned_rows_hold_lanes_for_their_layers_only(llm):
    llm.engine._cache = None
    llm.generate(random_prompts(4, seed=1), ["uniform:1", "uniform:2", "uniform:3", "full"])
    cache = llm.engine._cache
    assert cache.n_lanes == 1 + 2 + 3 + NUM_LAYERS
    assert cache.free_lanes == cache.n_lanes


def test_sampling_is_the_same_in_any_batch_and_follows_the_seed(llm):
    prompts = random_prompts(5, seed=6)
    options = {"sampling": SamplingParams(1.0, 20, 0.95, 1.2), "max_new_tokens": 12}
    one, five = (llm.generate(prompts, batch_size=b, seed=1, **options) for b in (1, 5))
    other = llm.generate(prompts, seed=2, **options)
    assert [c.token_ids for c in one] == [c.token_ids for c in five]
    assert [c.token_ids for c in one] != [c.token_ids for c in other]


@pytest.mark.parametrize("policy", ["full", "random-step:5", "confidence:margin=0.3"])
def test_steps_of_any_length_pick_the_same_tokens(monkeypatch, llm, policy):
    prompts = random_prompts(5, seed=6)
    for sampling in (SamplingParams(), SamplingParams(0.9, 40, 0.9, 1.5), SamplingParams(1.4)):
        options = {"max_new_tokens": 30, "seed": 4, "sampling": sampling}
        runs = []
        for seconds in (0.0, 0.002, 60.0):
            with monkeypatch.context() as patch:
                patch.setattr(engine_module, "UNWATCHED_SECONDS", seconds)
                runs.append(llm.run(prompts, policy, **options))
        for run in runs[1:]:
            assert run.completions == runs[0].completions
            assert run.stats.passes == runs[0].stats.passes


def test_one_new_token_needs_no_routed_pass(llm):
    result = llm.run(random_prompts(2), "uniform:1", max_new_tokens=1)
    assert [len(c.token_ids) for c in result.completions] == [1, 1]
    assert [c.mean_layers for c in result.completions] == [None, None]
    assert result.stats.passes == []


def test_the_last_position_can_be_used(llm):
    prompt = [2] * 90
    assert llm.spec.max_positions == 96
    (full,) = llm.generate([prompt], max_new_tokens=7, force_length=True)
    assert len(full.token_ids) == 7
    with pytest.raises(ValueError, match="prompt of request 0: too long"):
        llm.generate([prompt], max_new_tokens=8)


def test_a_stream_left_early_frees_its_rows(llm):
    requests = requests_for(llm, random_prompts(3), ["full"] * 3)
    events = llm.engine.stream(requests, RunOptions(batch_size=3), RunStats())
    assert next(events).request_id == 0
    events.close()
    assert llm.engine._cache.free_lanes == llm.engine._cache.n_lanes
    assert len(llm.generate(random_prompts(3))) == 3


@pytest.mark.parametrize("spec", ["random-step:2", "stochastic:0.4"])
def test_token_policies_draw_by_seed_request_and_token(monkeypatch, llm, spec):
    ids = [7, 3, 40]
    trace = trace_run(
        monkeypatch,
        llm,
        random_prompts(3, seed=1),
        spec,
        max_new_tokens=9,
        force_length=True,
        request_ids=ids,
        seed=5,
    )
    program = policy(spec).lower(NUM_LAYERS)
    for request_id in ids:
        token = torch.arange(1, 9)
        drawn = program.draw(5, torch.full((8,), request_id), token, NUM_LAYERS)
        assert torch.equal(torch.stack(trace.rows[request_id].keep), drawn.T)
        assert not torch.equal(drawn[:, 0], drawn[:, 1])


def test_on_pass_hears_each_pass_and_ends_rows(llm):
    prompts = random_prompts(4, seed=8)
    requests = requests_for(llm, prompts, ["full"] * 4, force_length=True)
    plain = llm.engine.run(requests, RunOptions(batch_size=4)).completions
    heard = []

    def on_pass(events):
        heard.append([event.request_id for event in events])
        if len(heard) == 3:
            return [1, 2]
        return None if len(heard) < 6 else {0, 1}

    result = llm.engine.run(requests, RunOptions(batch_size=4), on_pass=on_pass)
    assert heard == [[0, 1, 2, 3]] * 3 + [[0, 3]] * 3 + [[3]] * 4
    for before, after, length in zip(plain, result.completions, (6, 3, 3, 10), strict=True):
        assert after.token_ids == before.token_ids[:length]
        assert after.stop_reason == ("length" if length == 10 else "stopped")
        assert after.layers_run == [NUM_LAYERS] * (length - 1)
    assert [count.rows for count in result.stats.passes] == [4, 4, 2, 2, 2, 1, 1, 1, 1]


def test_on_pass_ends_rows_that_wait_too(llm):
    requests = requests_for(llm, random_prompts(7, seed=8), ["full"] * 7, force_length=True)
    plain = llm.engine.run(requests, RunOptions(batch_size=2)).completions
    heard, tokens = [], []

    def on_pass(events):
        heard.append([event.request_id for event in events])
        # one that waits, one that has ended, one that never was
        return [4, 0, 99] if len(heard) == 13 else None

    result = llm.engine.run(
        requests, RunOptions(batch_size=2), lambda i, t: tokens.append((i, t)), on_pass
    )
    assert [c.request_id for c in result.completions] == list(range(7))
    assert {c.request_id: c.stop_reason for c in result.completions} == {
        **dict.fromkeys(range(7), "length"),
        4: "stopped",
    }
    assert result.completions[4].token_ids == []
    for before, after in zip(plain, result.completions, strict=True):
        heard_of = [t for i, t in tokens if i == after.request_id]
        assert heard_of == after.token_ids == ([] if after.request_id == 4 else before.token_ids)
    # a pass for each token, and prefill's first ones
    assert heard[:12] == [[0, 1]] * 10 + [[2, 3]] * 2 and heard[20:] == [[5, 6]] * 10
    assert sum(map(len, heard)) == result.stats.new_tokens == 60


def test_a_picker_of_ones_own(llm):
    made = []

    class Constant(TokenPicker):
        def pick(self, hidden, n, rows, request, step):
            return 40 + step

    def make(head, params, seed):
        made.append((head, params, seed))
        return Constant(head, params, seed)

    requests = requests_for(llm, random_prompts(3), ["full", "uniform:2", "uniform:3"])
    result = llm.engine.run(requests, RunOptions(batch_size=3, seed=9, picker=make))
    assert [c.token_ids for c in result.completions] == [list(range(40, 50))] * 3
    assert made == [(llm.engine.executor.head, SamplingParams(), 9)]


def test_a_picker_of_ones_own_is_told_whose_counters_these_are(llm):
    """After a row has ended, and where rows leave early: no head picks in its place."""
    told = []

    class Noting(TokenPicker):
        def pick(self, hidden, n, rows, request, step):
            count = len(rows) if n is None else int(n)
            told.extend(zip(request[:count].tolist(), step[:count].tolist(), strict=True))
            return 40 + 10 * request + step

    prompts = random_prompts(3)
    for specs in (["full"] * 3, ["confidence:top_prob=0"] * 3):
        told.clear()
        requests = [
            replace(request, max_new_tokens=length)
            for request, length in zip(requests_for(llm, prompts, specs), (2, 6, 4), strict=True)
        ]
        result = llm.engine.run(requests, RunOptions(batch_size=3, picker=Noting))
        wanted = [[40 + 10 * i + step for step in range(n)] for i, n in enumerate((2, 6, 4))]
        assert [c.token_ids for c in result.completions] == wanted
        assert sorted(told) == [(i, step) for i, n in enumerate((2, 6, 4)) for step in range(n)]
