"""LLM.stream_many: texts of many prompts as they come, cancelled or left early."""

from __future__ import annotations

import pytest

from dynkern.llm import LLM
from dynkern.runtime.request import SamplingParams
from support.backends import BACKENDS
from support.checkpoint import save_checkpoint
from support.errors import one_line_error

TEXTS = ["the restaurant is near", "Today is", "what is the capital of France? — naïve 日本", "It"]
POLICIES = ["full", "uniform:3", "early_exit:1", "stochastic:0.6"]


@pytest.fixture(scope="module", params=BACKENDS)
def llm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LLM:
    directory = save_checkpoint(tmp_path_factory.mktemp("model"), 6, init_std=0.6)
    return LLM(directory, backend=request.param)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_pieces_of_each_request_join_to_its_text(llm, batch_size):
    options = {
        "max_new_tokens": [20, 3, 11, 1],
        "sampling": [SamplingParams(), SamplingParams(1.2), SamplingParams(), SamplingParams()],
        "request_ids": [7, 2, 5, 4],
        "seed": 3,
    }
    want = {c.request_id: c for c in llm.generate(TEXTS, POLICIES, **options)}
    stream = llm.stream_many(TEXTS, POLICIES, batch_size=batch_size, **options)
    texts, ids, done = dict.fromkeys(want, ""), {i: [] for i in want}, {}
    for event in stream:
        assert event.request_id not in done
        texts[event.request_id] += event.text
        ids[event.request_id].append(event.token_id)
        if event.completion is not None:
            done[event.request_id] = event.completion
    assert done == want
    assert texts == {i: c.text for i, c in want.items()}
    assert ids == {i: c.token_ids for i, c in want.items()}
    assert stream.stats.new_tokens == sum(len(c.token_ids) for c in want.values())
    assert len(stream.stats.passes) >= 19
    assert next(stream, None) is None


def test_a_cancelled_request_keeps_what_it_has(llm, monkeypatch):
    monkeypatch.setattr("dynkern.runtime.engine.LISTENED_SECONDS", 0.0)
    want = llm.generate(TEXTS, POLICIES, max_new_tokens=30)
    done = {}
    with llm.stream_many(TEXTS, POLICIES, batch_size=2, max_new_tokens=30) as stream:
        for count, event in enumerate(stream):
            if count == 5:
                assert stream.cancel(0) and stream.cancel(3)
                assert not stream.cancel(0) and not stream.cancel(99)
            if event.completion is not None:
                done[event.request_id] = event
        assert not stream.cancel(1)
    assert {i: e.completion.stop_reason for i, e in done.items() if i in (0, 3)} == {
        0: "cancelled",
        3: "cancelled",
    }
    assert done[3].completion.token_ids == [] and done[3].completion.text == ""
    part = done[0].completion
    assert part.token_ids == want[0].token_ids[: len(part.token_ids)] != []
    assert part.text == llm.decode(part.token_ids) and done[0].token_id is None
    assert [done[i].completion for i in (1, 2)] == want[1:3]


def test_a_stream_left_early_frees_the_engine(llm):
    want = llm.generate(TEXTS, POLICIES)
    with llm.stream_many(TEXTS, POLICIES) as stream:
        next(stream)
    assert next(stream, None) is None
    cache = llm.engine._cache
    assert cache.free_lanes == cache.n_lanes
    untouched = llm.stream_many(TEXTS)
    assert llm.engine._cache is cache
    assert llm.generate(TEXTS, POLICIES) == want
    assert len({event.request_id for event in untouched}) == len(TEXTS)


def test_deadlines_decide_who_begins(llm):
    stream = llm.stream_many(TEXTS, max_new_tokens=2, batch_size=1, deadlines=[None, 4, 1.5, 4])
    assert list(dict.fromkeys(event.request_id for event in stream)) == [2, 1, 3, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "best"}, "^schedule: got 'best', expected one of auto, fifo, cohort$"),
        (
            {"max_new_tokens": [1, 2]},
            "^max_new_tokens: got 2 for 4 prompts, expected one for each$",
        ),
        (
            {"sampling": [SamplingParams()]},
            "^sampling: got 1 for 4 prompts, expected one for each$",
        ),
        ({"deadlines": []}, "^deadlines: got 0 for 4 prompts, expected one for each$"),
        ({"max_new_tokens": 1000}, "^prompt of request 0: too long, "),
    ],
)
def test_bad_arguments(llm, options, message):
    for use in (llm.stream_many, llm.run):
        with one_line_error(ValueError, message):
            use(TEXTS, **options)
