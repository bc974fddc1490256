"""The native executor against the eager one in float64, and against itself pass by pass."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dynkern.kernels import native
from dynkern.llm import LLM
from dynkern.models.checkpoint import Checkpoint
from dynkern.models.opt import pack_weights
from dynkern.ops import lm_head_argmax
from dynkern.ops.backends import BackendUnavailable
from dynkern.policies import policy as make_policy
from dynkern.routes import KV_FILLS
from dynkern.runtime import engine as engine_module
from dynkern.runtime.engine import Engine, RunOptions
from dynkern.runtime.request import Request, RunStats, SamplingParams
from support.backends import isa_levels, needs_engine
from support.errors import one_line_error
from support.opt import VARIANTS, random_prompts, save_opt
from support.tolerances import LOGITS, assert_logits_close
from support.trace import Trace, trace_run

pytestmark = needs_engine
NUM_LAYERS = 6
CPU = torch.device("cpu")
PLANNED = ["full", "uniform:3", "early_exit:1", "random:4", "uniform:1", "random:2", "uniform:5"]
TOKEN = [
    "random-step:3",
    "random-step:2,force_first=1",
    "stochastic:0.4",
    "confidence:top_prob=0.5",
    "confidence:margin=0.2,exits=0+1+4",
    "confidence:cosine=0.6,exits=1+3",
]


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """torch.empty and its kin hand out NaN: caches, arenas, what waits, what comes out."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """A tiny model on the CPU engine in float32, and on the ops in float64."""
    directory = tmp_path_factory.mktemp(request.param)
    save_opt(directory, seed=4, **VARIANTS[request.param])
    truth = LLM(directory, backend="reference")
    with Checkpoint(directory) as tensors:
        weights = pack_weights(tensors, truth.spec, torch.float64, CPU)
    truth.engine = Engine(truth.spec, weights, "reference")
    return LLM(directory, backend="cpu"), truth


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("opt")
    save_opt(directory, max_position_embeddings=400)
    return directory


@pytest.fixture(scope="module")
def llm(directory: Path) -> LLM:
    return LLM(directory, backend="cpu")


def texts(result) -> list[list[int]]:
    return [c.token_ids for c in result.completions]


def everything(result) -> list:
    """All that a run says, but its times."""
    return [*result.completions, result.stats.passes, result.stats.new_tokens]


def traced(llm: LLM, *args, **options) -> Trace:
    with pytest.MonkeyPatch.context() as patch:
        return trace_run(patch, llm, *args, **options)


def check_pair(pair, prompts, policy, **options) -> None:
    """Logits, layers and tokens of every pass, up to one that rounding alone may decide."""
    ours, truth = (traced(llm, prompts, policy, **options) for llm in pair)
    compared = 0
    for request_id, want in truth.rows.items():
        got = ours.rows[request_id]
        picked = [[int(z.argmax()) for z in row.logits] for row in (got, want)]
        for at, (a, b) in enumerate(zip(got.logits, want.logits, strict=False)):
            if at and not torch.equal(got.keep[at - 1], want.keep[at - 1]):
                break  # a measure beside its threshold, judged where thresholds are far
            assert_logits_close(a, b, torch.float32)
            compared += 1
            if picked[0][at] != picked[1][at]:
                margin = b.max() - b[picked[0][at]]
                assert margin <= 2 * LOGITS[torch.float32] * b.abs().max()
                break
    assert compared >= 0.8 * sum(len(row.logits) for row in truth.rows.values())


# -- against the reference -----------------------------------------------------------------------


@pytest.mark.parametrize("prefill", ["full", "routed"])
@pytest.mark.parametrize("batch_size", [1, 7])
def test_planned_routes(pair, batch_size, prefill):
    options = {"batch_size": batch_size, "prefill": prefill, "seed": 3}
    check_pair(pair, random_prompts(7, seed=2), PLANNED, max_new_tokens=10, **options)


@pytest.mark.parametrize("kv_fill", KV_FILLS)
@pytest.mark.parametrize("policy", TOKEN)
def test_token_policies(pair, policy, kv_fill):
    options = {"batch_size": 4, "kv_fill": kv_fill, "seed": 3}
    check_pair(pair, random_prompts(5, seed=2), policy, max_new_tokens=10, **options)


@pytest.mark.parametrize("kv_fill", KV_FILLS)
def test_long_gaps(pair, kv_fill):
    # more skipped tokens in a row than wait at a layer
    options = {"kv_fill": kv_fill, "seed": 5, "force_length": True}
    check_pair(pair, random_prompts(3, seed=2), "stochastic:0.05", max_new_tokens=60, **options)


@pytest.mark.parametrize("policy", ["full", "random:3", *TOKEN])
def test_tokens_and_counters_are_the_references(pair, policy):
    # without a recorder: the engine picks the tokens, exits settle them
    prompts = random_prompts(6, seed=8)
    options = {"max_new_tokens": 12, "seed": 2}
    ours, truth = (llm.run(prompts, policy, **options) for llm in pair)
    assert everything(ours) == everything(truth)


SAMPLINGS = [
    SamplingParams(1.0),
    SamplingParams(0.7, 12),
    SamplingParams(1.3, 0, 0.8),
    SamplingParams(0.9, 40, 0.9, 1.3),
    SamplingParams(0.0, 0, 1.0, 1.7),
    SamplingParams(2.0, 1),
]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
@pytest.mark.parametrize("policy", ["full", "random-step:4", "confidence:margin=0.2"])
def test_samples_are_the_references(pair, policy, sampling):
    prompts = random_prompts(6, seed=8)
    options = {"max_new_tokens": 14, "seed": 9, "sampling": sampling, "force_length": True}
    ours, truth = (llm.run(prompts, policy, **options) for llm in pair)
    assert texts(ours) == texts(truth)


def test_the_head(pair):
    ours, truth = (llm.engine.executor.head for llm in pair)
    hidden = torch.randn(5, pair[0].spec.embed_size)
    logits = ours.logits(hidden, None)
    assert_logits_close(logits, truth.logits(hidden.double(), None), torch.float32)
    got = ours.argmax(hidden, None)
    assert torch.equal(got[0], logits.argmax(dim=-1))
    want = lm_head_argmax(hidden.double(), truth.weight)
    for a, b in zip(got, want, strict=True):
        assert torch.allclose(a.double(), b.double(), rtol=1e-4, atol=1e-5)
    three = ours.argmax(hidden, torch.tensor(3, dtype=torch.int32))
    assert all(torch.equal(a[:3], b[:3]) for a, b in zip(three, got, strict=True))


# -- against itself ------------------------------------------------------------------------------


def one_pass_a_call(patch: pytest.MonkeyPatch) -> None:
    for name in ("UNWATCHED_SECONDS", "LISTENED_SECONDS"):
        patch.setattr(engine_module, name, 0.0)


def counted(patch: pytest.MonkeyPatch, llm: LLM) -> list[int]:
    """Passes of each call from here on."""
    advance, calls = llm.engine.executor.advance, []

    def counting(*args):
        results = advance(*args)
        calls.append(len(results))
        return results

    patch.setattr(llm.engine.executor, "advance", counting)
    return calls


@pytest.mark.parametrize("kv_fill", KV_FILLS)
@pytest.mark.parametrize("policy", [PLANNED, *TOKEN])
def test_a_burst_is_its_passes_one_by_one(monkeypatch, directory, policy, kv_fill):
    prompts, runs, caches = random_prompts(7, seed=6), [], []
    for single in (True, False):
        llm = LLM(directory, backend="cpu")
        with monkeypatch.context() as patch:
            if single:
                one_pass_a_call(patch)
            else:
                patch.setattr(engine_module, "UNWATCHED_SECONDS", 60.0)
            calls = counted(patch, llm)
            runs.append(llm.run(prompts, policy, max_new_tokens=24, kv_fill=kv_fill, seed=1))
        caches.append(llm.engine._cache)
        assert sum(calls) == len(runs[-1].stats.passes)
        assert set(calls) == {1} if single else len(calls) == 1
    assert everything(runs[0]) == everything(runs[1])
    for name in ("k", "v"):
        one, other = (getattr(cache, name).view(torch.int32) for cache in caches)
        assert torch.equal(one, other)


def test_a_stop_inside_a_burst(monkeypatch, llm):
    prompts = random_prompts(6, seed=8)
    plain = llm.generate(prompts, force_length=True, max_new_tokens=20)
    stop = plain[0].token_ids[6]
    requests = [
        Request(i, tuple(p), make_policy(s), 8 + 2 * i, frozenset([stop, 131 + i]), i == 5)
        for i, (p, s) in enumerate(zip(prompts, ["full"] * 6, strict=True))
    ]
    monkeypatch.setattr(engine_module, "UNWATCHED_SECONDS", 60.0)
    burst = llm.engine.run(requests, RunOptions(6))
    one_pass_a_call(monkeypatch)
    assert everything(llm.engine.run(requests, RunOptions(6))) == everything(burst)
    for before, after, request in zip(plain, burst.completions, requests, strict=True):
        ends = stop in before.token_ids[: request.max_new_tokens] and not request.force_length
        assert after.stop_reason == ("eos" if ends else "length")
        assert ends == (after.token_ids[-1] == stop) or request.force_length
    assert len({p.rows for p in burst.stats.passes}) > 2


def test_a_call_ends_with_a_row_only_where_another_waits(monkeypatch, llm):
    limits = [3, 6, 6, 4]
    requests = [
        Request(i, (2, 9 + i), make_policy("full"), n, frozenset()) for i, n in enumerate(limits)
    ]
    monkeypatch.setattr(engine_module, "UNWATCHED_SECONDS", 60.0)
    calls = counted(monkeypatch, llm)
    waits = llm.engine.run(requests, RunOptions(3))
    assert calls == [2, 3] and [p.rows for p in waits.stats.passes] == [3] * 5
    together = llm.engine.run(requests, RunOptions(4))
    assert calls[2:] == [5] and [p.rows for p in together.stats.passes] == [4, 4, 3, 2, 2]
    assert waits.completions == together.completions


def test_more_passes_than_one_call_reports(monkeypatch, llm):
    monkeypatch.setattr(engine_module, "UNWATCHED_SECONDS", 60.0)
    calls = counted(monkeypatch, llm)
    result = llm.run([[2, 5], [2, 9, 9]], max_new_tokens=300, force_length=True)
    assert [len(ids) for ids in texts(result)] == [300, 300]
    assert calls == [256, 43]


@pytest.mark.parametrize("policy", ["full", "random-step:3"])
def test_streamed_tokens_are_those_of_a_run(llm, policy):
    requests = [
        Request(i, tuple(p), make_policy(policy), 9 + i, frozenset([2]))
        for i, p in enumerate(random_prompts(5, seed=3))
    ]
    result = llm.engine.run(requests, RunOptions(5))
    stats = RunStats()
    events = list(llm.engine.stream(requests, RunOptions(5), stats))
    for completion in result.completions:
        own = [e for e in events if e.request_id == completion.request_id]
        assert [e.token_id for e in own] == completion.token_ids
        assert [e.completion for e in own[:-1]] == [None] * (len(own) - 1)
        assert own[-1].completion == completion
    assert stats.passes == result.stats.passes and stats.new_tokens == result.stats.new_tokens
    # pass by pass, each in the order of the rows
    nth = {}
    places = []
    for event in events:
        nth[event.request_id] = nth.get(event.request_id, 0) + 1
        places.append((nth[event.request_id], event.request_id))
    assert places == sorted(places)


def test_a_listener_waits_for_few_passes(monkeypatch, llm):
    calls = counted(monkeypatch, llm)
    prompts = random_prompts(4, seed=1)
    quiet = llm.run(prompts, max_new_tokens=200, force_length=True)
    assert len(calls) == 1
    heard: list[int] = []
    monkeypatch.setattr(engine_module, "LISTENED_SECONDS", 1e-9)
    run = llm.run(
        prompts, max_new_tokens=200, force_length=True, on_token=lambda i, t: heard.append(i)
    )
    assert everything(run) == everything(quiet) and len(heard) == 800
    assert calls[1:] == [1] * 199


def test_streams_that_take_turns_keep_what_waits_for_their_layers(llm):
    def rows(policy):
        return [
            Request(i, tuple(p), make_policy(policy), 20, frozenset())
            for i, p in enumerate(random_prompts(3, seed=3))
        ]

    options = RunOptions(3, kv_fill="deferred")
    want = [texts(llm.engine.run(rows(p), options)) for p in ("stochastic:0.2", "random-step:2")]
    streams = [
        llm.engine.stream(rows(p), options, RunStats()) for p in ("stochastic:0.2", "random-step:2")
    ]
    got = [[[], [], []], [[], [], []]]
    for _ in range(60):
        for stream, ids in zip(streams, got, strict=True):
            event = next(stream)
            ids[event.request_id].append(event.token_id)
    assert got == want


@pytest.mark.parametrize("format", ["float32", "bfloat16", "int8"])
def test_poison_reaches_nothing(directory, format):
    def run():
        llm = LLM(directory, dtype=format, backend="cpu")
        trace = traced(llm, random_prompts(6, seed=5), "random-step:3", kv_fill="deferred", seed=1)
        return torch.stack([z for row in trace.rows.values() for z in row.logits])

    poisoned = run()
    assert poisoned.isfinite().all()
    torch.use_deterministic_algorithms(False)
    assert torch.equal(run(), poisoned)


# -- other formats -------------------------------------------------------------------------------


def test_int8_is_near_what_its_weights_say(directory):
    """Weights rounded to int8 and back, in float32, are what the int8 format rounds besides."""
    llm = LLM(directory, dtype="int8", backend="cpu")
    truth = LLM(directory, backend="reference")
    prompts = random_prompts(6, seed=5)
    ours, plain = (traced(m, prompts, "full", max_new_tokens=1) for m in (llm, truth))
    got, want = (
        torch.stack([row.logits[0] for row in t.rows.values()]).float() for t in (ours, plain)
    )
    assert (got - want).norm() <= 0.08 * want.norm()


# -- around it -----------------------------------------------------------------------------------


def test_a_backend_that_packed_weights_cannot_have(llm):
    with one_line_error(BackendUnavailable, "^backend: got 'reference' for weights packed"):
        Engine(llm.spec, llm.engine.weights, "reference")


def test_isa_levels_by_name(llm):
    held, levels = native.cpu_isa(), isa_levels()
    try:
        assert levels[0] == "portable"
        for level in levels:
            native.set_cpu_isa(level)
            assert native.cpu_isa() == llm.engine.executor.isa == level
        with one_line_error(ValueError, "^isa: got 'sse9', expected one of auto, portable, avx2"):
            native.set_cpu_isa("sse9")
        assert native.cpu_isa() == levels[-1]
        native.set_cpu_isa("auto")
        # Intel's bfloat16 products are slower than widened ones
        slow = levels[-1] == "avx512_bf16" and "Intel" in Path("/proc/cpuinfo").read_text()
        assert native.cpu_isa() == levels[-2 if slow else -1]
    finally:
        native.set_cpu_isa(held)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("portable", "portable"),
        ("sse9", "ValueError: DYNKERN_CPU_ISA: got 'sse9', expected one of auto, portable,"),
    ],
)
def test_isa_by_environment(value, expected):
    code = "from dynkern.kernels import native\nprint(native.cpu_isa())"
    environment = {**os.environ, "DYNKERN_CPU_ISA": value}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert (done.stdout + done.stderr).strip().splitlines()[-1].startswith(expected)
