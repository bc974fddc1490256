"""The cuda_graph executor against the eager one, its graphs recorded on the CPU."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dynkern.llm import LLM
from dynkern.policies import policy
from dynkern.routes import KV_FILLS
from dynkern.runtime.batch import PassLimits
from dynkern.runtime.engine import RunOptions
from dynkern.runtime.executors import cuda_graph, graph_pool, graph_state
from dynkern.runtime.executors.recorded_graphs import HostSync, RecordedGraphs
from dynkern.runtime.request import Request, SamplingParams
from dynkern.runtime.sampling import TokenPicker
from support.graphs import on_graphs
from support.opt import VARIANTS, random_prompts, save_opt

NUM_LAYERS = 6
MIXED = ["full", "uniform:1", "early_exit:0", "random:4", "uniform:5", "early_exit:4", "random:1"]
NESTED = ["uniform:3", "uniform:1", "uniform:5", "uniform:3", "uniform:2", "uniform:4", "full"]
TOKEN = [
    "random-step:3",
    "random-step:2,force_first=1",
    "stochastic:0.4",
    "confidence:top_prob=0.5",
    "confidence:margin=0.2,exits=0+1+4",
    "confidence:cosine=0.6,exits=1+3",
]
SAMPLED = SamplingParams(1.1, 30, 0.9, 1.3)


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """torch.empty and its kin hand out NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module", params=["pre_norm", "post_norm_projected"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp(request.param)
    save_opt(directory, **VARIANTS[request.param])
    return directory


@pytest.fixture(scope="module")
def pair(directory: Path) -> tuple[LLM, LLM]:
    """The same model on the eager executor and on graphs."""
    eager, graphs = (LLM(directory, backend="reference") for _ in range(2))
    on_graphs(graphs)
    return eager, graphs


def both(pair: tuple[LLM, LLM], prompts: list, specs, **options) -> tuple:
    """The same run on both; graphs must have been replayed."""
    eager, graphs = pair
    before = graphs.engine.executor.replays
    want = eager.run(prompts, specs, **options)
    got = graphs.run(prompts, specs, **options)
    assert graphs.engine.executor.replays - before == len(got.stats.passes) > 0
    assert got.completions == want.completions
    if options.get("batch_size", 8) >= len(prompts):
        assert got.stats.passes == want.stats.passes
    else:
        # rows that wait take a slot passes later, as the host hears of the end that late
        for count in (lambda c: c.rows, lambda c: sum(c.layer_rows), lambda c: c.head_rows):
            assert sum(map(count, got.stats.passes)) == sum(map(count, want.stats.passes))
    return want, got


@pytest.mark.parametrize("sampling", [None, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("batch_size", [1, 3, 7])
@pytest.mark.parametrize("specs", [MIXED, NESTED], ids=["mixed", "nested"])
def test_planned_routes(pair, specs, batch_size, sampling):
    prompts = random_prompts(7, seed=3)
    options = {"max_new_tokens": 14, "seed": 11, "sampling": sampling}
    both(pair, prompts, specs, batch_size=batch_size, **options)


@pytest.mark.parametrize("kv_fill", KV_FILLS)
@pytest.mark.parametrize("spec", TOKEN)
def test_token_policies(pair, spec, kv_fill):
    sampling = SAMPLED if (len(spec) + len(kv_fill)) % 3 == 0 else None
    options = {"max_new_tokens": 9, "seed": 5, "sampling": sampling}
    both(pair, random_prompts(5, seed=4), spec, kv_fill=kv_fill, batch_size=3, **options)


def test_long_gaps_between_runs_of_a_layer(pair):
    options = {"max_new_tokens": 40, "force_length": True, "kv_fill": "deferred"}
    both(pair, random_prompts(3, seed=6), "stochastic:0.05", **options)


def test_a_planned_run_after_a_token_policy_in_the_same_buffers(pair):
    for spec in ("confidence:top_prob=0.5", "stochastic:0.3", "full", "random:2"):
        both(pair, random_prompts(3, seed=2), spec, max_new_tokens=7, force_length=True)


def test_random_batches_of_random_routes(pair):
    draw = random.Random(5)
    for turn in range(8):
        rows = draw.randint(1, 9)
        specs = [f"random:{draw.randint(1, NUM_LAYERS)}" for _ in range(rows)]
        prompts = random_prompts(rows, seed=turn)
        options = {"batch_size": draw.randint(1, 9), "max_new_tokens": draw.randint(2, 14)}
        both(pair, prompts, specs, seed=turn, **options)


def test_rows_that_end_one_by_one(pair):
    eager, graphs = pair
    prompts = random_prompts(6, seed=8)
    plain = eager.generate(prompts, MIXED[:6], force_length=True, max_new_tokens=20)
    # a token that some rows produce early and others late or never
    stop = plain[0].token_ids[6]
    requests = [
        Request(i, tuple(p), policy(s), 20 - i, frozenset([stop, 130] if i % 2 else [stop]))
        for i, (p, s) in enumerate(zip(prompts, MIXED, strict=False))
    ]
    want, got = (llm.engine.run(requests, RunOptions(batch_size=6)) for llm in pair)
    assert got.completions == want.completions and got.stats.passes == want.stats.passes
    assert {c.stop_reason for c in got.completions} == {"eos", "length"}


class Bench:
    """A batch of a run, its executor driven by hand."""

    def __init__(self, llm: LLM, specs: list[str], new_tokens: int = 30, **options) -> None:
        self.llm, self.executor = llm, llm.engine.executor
        prompts = random_prompts(len(specs), seed=len(specs))
        self.requests = [
            Request(i, tuple(p), policy(s), new_tokens, frozenset([2]), force_length=True)
            for i, (p, s) in enumerate(zip(prompts, specs, strict=True))
        ]
        options = RunOptions(batch_size=len(specs), **options)
        self.session = llm.engine.session(options, expected=len(specs))
        self.session.submit(self.requests)
        self.tokens = [[event.token_id] for event in self.session.step()]
        (group,) = self.session._groups.values()
        self.batch, self.cache, self.picker = group.batch, self.session._cache, group.picker

    def advance(self, passes: int, remaining=None, eos_ids=None, seconds=math.inf) -> list:
        """Passes of the executor; tokens are kept for the rows that were live."""
        n = len(self.requests)
        limits = PassLimits(passes, seconds, remaining or [100] * n, eos_ids or [frozenset()] * n)
        live = self.batch.alive.nonzero().flatten().tolist()
        with self.llm.engine.stepping():
            results = self.executor.advance(self.batch, self.cache, self.picker, limits)
        for place, result in enumerate(results):
            for slot in list(live):
                self.tokens[slot].append(int(result.token[slot]))
                if limits.ends(slot, self.tokens[slot][-1], place + 1):
                    live.remove(slot)
        return results

    def entry(self):
        """The one entry of the executor's pool that this batch uses."""
        return list(self.executor.pool._entries.values())[-1]


@pytest.fixture
def graphs(directory: Path) -> LLM:
    """A model with no graph captured yet."""
    llm = LLM(directory, backend="reference")
    on_graphs(llm)
    return llm


@torch.inference_mode()
def test_nested_routes_share_whole_passes_and_the_oldest_goes(graphs):
    captured = []
    bench = Bench(graphs, ["full", "uniform:3"])
    executor, batch = bench.executor, bench.batch
    bench.advance(2)
    bench.advance(2)
    entry = bench.entry()
    assert entry.n_whole == 1 and not entry.parts and executor.graphs.captured == 1
    # nested routes have at most L unions: as many graphs are kept
    order = list(range(1, NUM_LAYERS + 1))
    for budget in order:
        batch.route[:, 0] = policy(f"uniform:{budget}").route(NUM_LAYERS)
        batch.route[:, 1] = batch.route[:, 0]
        batch.rows_changed()
        bench.advance(1)
        captured.append(executor.graphs.captured)
    assert captured == [2, 3, 4, 5, 6, 6] and entry.n_whole == NUM_LAYERS
    batch.route[:] = policy("early_exit:2").route(NUM_LAYERS)[:, None]
    batch.rows_changed()
    bench.advance(1)
    assert executor.graphs.captured == 7 and entry.n_whole == NUM_LAYERS
    # uniform:1 was the one longest unused; full was used last
    batch.route[:] = True
    batch.rows_changed()
    bench.advance(1)
    assert executor.graphs.captured == 7
    batch.route[:] = policy("uniform:1").route(NUM_LAYERS)[:, None]
    batch.rows_changed()
    bench.advance(1)
    assert executor.graphs.captured == 8


@torch.inference_mode()
def test_other_routes_take_a_graph_a_layer_and_captures_serve_any_route(graphs):
    bench = Bench(graphs, ["random:3", "random:2", "random:4", "early_exit:1", "random:3"])
    batch, executor = bench.batch, bench.executor
    draw = torch.Generator().manual_seed(1)
    for _ in range(30):
        batch.route[:] = torch.rand(batch.route.shape, generator=draw) < 0.5
        batch.route[0] |= ~batch.route.any(dim=0)
        batch.rows_changed()
        (result,) = bench.advance(1)
        assert torch.equal(result.ran, batch.route)
    parts = bench.entry().parts
    layers = {part[1:] for part in parts if part[0] == "layer"}
    assert {layer for layer, _ in layers} == set(range(NUM_LAYERS))
    assert {rows for _, rows in layers} <= {1, 2, 4, 8}
    assert parts - {("layer", *rest) for rest in layers} == {("embed",), ("head", 8)}
    assert executor.graphs.captured <= 4 * NUM_LAYERS + 2 + bench.entry().n_whole


@torch.inference_mode()
def test_graphs_serve_rows_that_come_and_go_between_calls(graphs, directory):
    """Slots are retired and taken again while the batch goes on, as a scheduler would."""
    specs = ["full", "random:4", "uniform:2", "random:3"]
    eager = LLM(directory, backend="reference")
    for options in ({"kv_fill": "project"}, {"kv_fill": "deferred"}):
        for chosen in (specs, ["stochastic:0.3"] * 4):
            runs = []
            for llm in (eager, graphs):
                bench, spare = (Bench(llm, chosen, **options) for _ in range(2))
                batch, cache = bench.batch, bench.cache
                bench.advance(3)
                for slot in (2, 0):
                    batch.retire(slot)
                    cache.release(slot)
                bench.advance(2)
                # row 1 of another run of the same prompts takes slot 2
                with llm.engine.stepping():
                    route = spare.batch.route[:, 1].clone()
                    prompt = spare.requests[1].prompt_ids
                    state = llm.engine.executor.prefill([prompt])
                    cache.admit(2, route, state.keys, state.values)
                    batch.admit(2, spare.tokens[1][0], len(prompt), 1, route)
                before = len(bench.tokens[2])
                bench.advance(7)
                runs.append(bench.tokens)
                spare.advance(7)
                assert bench.tokens[2][before:] == spare.tokens[1][1:]
                for other in (bench, spare):
                    other.session.close()
            assert runs[0] == runs[1]


def test_rows_end_on_the_device_and_tokens_behind_the_end_are_dropped(monkeypatch, graphs):
    for lag in (0, 1, 4, 9):
        monkeypatch.setattr(cuda_graph, "LAG", lag)
        free = Bench(graphs, ["full", "uniform:2", "uniform:4"])
        free.advance(12)
        stops = [tokens[3 + i] for i, tokens in enumerate(free.tokens)]
        ends = [tokens.index(stop, 1) for tokens, stop in zip(free.tokens, stops, strict=True)]
        bench = Bench(graphs, ["full", "uniform:2", "uniform:4"])
        launched = graphs.engine.executor.graphs.marks
        eos_ids = [frozenset([stop, 999 + i]) for i, stop in enumerate(stops)]
        results = bench.advance(50, eos_ids=eos_ids)
        launched = graphs.engine.executor.graphs.marks - launched
        assert len(results) == max(ends) and bench.tokens == [
            tokens[: end + 1] for tokens, end in zip(free.tokens, ends, strict=True)
        ]
        # passes for nobody: no more than the host lags behind
        assert launched == min(50, max(ends) + lag)
        assert not bench.batch.alive.any()
        # a row's cache and counters stand where it ended, whatever was launched behind it
        assert bench.batch.step.tolist() == [end + 1 for end in ends]
        lengths = [len(r.prompt_ids) + end for r, end in zip(bench.requests, ends, strict=True)]
        assert bench.cache.length[0].tolist()[:3] == lengths
        assert bench.advance(5) == []
        free.session.close()
        bench.session.close()


def test_limits(graphs):
    bench = Bench(graphs, ["full", "uniform:2"])
    assert len(bench.advance(3)) == 3
    assert len(bench.advance(50, seconds=0.0)) == 1
    # lengths are known ahead: no pass is launched for nobody
    before = bench.executor.graphs.marks
    results = bench.advance(50, remaining=[4, 6])
    assert len(results) == 6 == bench.executor.graphs.marks - before
    assert [len(tokens) for tokens in bench.tokens] == [1 + 3 + 1 + 4, 1 + 3 + 1 + 6]
    assert bench.batch.alive.tolist() == [False, False]


def test_a_read_that_does_not_wait_finds_poison():
    graphs, source = RecordedGraphs(), torch.zeros(4, dtype=torch.uint8)
    with graphs.working():
        add = graphs.capture(lambda: source.add_(1))
        source.zero_()
        target, mark = graphs.host_bytes(4), graphs.mark()
        add.replay()
        graphs.read_back(target, source)
        mark.record()
        add.replay()
        assert source.tolist() == [0] * 4 and target.tolist() == [255] * 4
        mark.wait()
        assert source.tolist() == [1] * 4 == target.tolist()
    assert source.tolist() == [2] * 4


def test_decode_leaves_the_batch_as_it_is(graphs, directory):
    eager = LLM(directory, backend="reference")
    for spec in ("full", "random-step:3"):
        found = []
        for llm in (eager, graphs):
            bench = Bench(llm, [spec] * 3)
            batch, cache, picker = bench.batch, bench.cache, bench.picker
            with llm.engine.stepping():
                result = llm.engine.executor.decode(batch, cache, picker)
            state = batch.token, batch.position, batch.step, batch.alive, cache.length[:, :3]
            found.append([t.tolist() for t in (result.token, result.ran, *state)])
        assert found[0] == found[1]


def test_parts_to_be_timed(graphs, directory):
    eager = LLM(directory, backend="reference")
    found = []
    for llm in (eager, graphs):
        bench = Bench(llm, ["stochastic:0.5"] * 3)
        batch, cache, picker = bench.batch, bench.cache, bench.picker
        with llm.engine.stepping():
            token = llm.engine.executor.fixed_part(batch, cache, picker)
            llm.engine.executor.fill_part(batch, cache)
            lanes, at = cache.lane[:, :3].long(), cache.length[:, :3].long()
            entries = cache.k[lanes, :, at]
        found.append((token, entries))
    assert torch.equal(found[0][0], found[1][0])
    # rows of another capacity pass through the reference's products
    assert torch.allclose(found[0][1], found[1][1], rtol=1e-4, atol=1e-5)
    assert not found[0][1].isnan().any()
    kinds = {p[0] for e in graphs.engine.executor.pool._entries.values() for p in e.parts}
    assert kinds == {"fixed", "fill"}


def test_a_picker_of_its_own_kind_goes_eagerly_and_is_told_of(graphs, directory, caplog):
    caplog.set_level("INFO", "dynkern")

    class Second(TokenPicker):
        is_greedy = False

        def pick(self, hidden, n, rows, request, step):
            return self.head.logits(hidden, n).topk(2).indices[:, 1]

    found = []
    for llm in (LLM(directory, backend="reference"), graphs):
        bench = Bench(llm, ["full", "uniform:2"])
        bench.picker = Second(llm.engine.executor.head, SamplingParams(), 0)
        for _ in range(4):
            bench.advance(1)
        found.append(bench.tokens)
    assert found[0] == found[1] and graphs.engine.executor.replays == 0
    told = [r.getMessage() for r in caplog.records if "cuda_graph" in r.getMessage()]
    assert told == ["cuda_graph: passes run eagerly: Second picks tokens on the host"]


def test_a_capture_that_fails(graphs, directory, monkeypatch, caplog):
    want = LLM(directory, backend="reference").generate(random_prompts(2), "stochastic:0.5")
    executor = graphs.engine.executor

    monkeypatch.setattr(graph_state.StaticBatch, "begin_pass", lambda self: self.alive.any().item())
    with pytest.raises(HostSync, match="^aten::item waits for the device"):
        graphs.generate(random_prompts(2), "stochastic:0.5")
    executor.demanded = False
    assert executor.name == "cuda_graph"
    got = graphs.generate(random_prompts(2), "stochastic:0.5")
    assert [c.token_ids for c in got] == [c.token_ids for c in want] and executor.replays == 0
    graphs.generate(random_prompts(2), "stochastic:0.5")
    told = [r.getMessage() for r in caplog.records if "capture failed" in r.getMessage()]
    assert executor.name == "eager" and len(told) == 1
    assert told[0].endswith("passes run eagerly from here on")


def test_graphs_do_not_outlive_their_cache(graphs):
    executor = graphs.engine.executor
    graphs.generate(random_prompts(2), "uniform:2", max_new_tokens=4)
    first = executor.graphs.captured
    graphs.generate(random_prompts(2), "uniform:2", max_new_tokens=4)
    assert executor.graphs.captured == first
    # longer rows need a larger cache, and the graphs of the smaller one go
    graphs.generate(random_prompts(2), "uniform:2", max_new_tokens=60)
    assert executor.graphs.captured == 2 * first and len(executor.pool._states) == 1


@pytest.mark.parametrize(("rows", "covered"), [(1, 1), (2, 2), (3, 4), (8, 8), (9, 16), (512, 512)])
def test_buckets(rows, covered):
    assert graph_pool.bucket(rows) == covered
