"""The cuda_graph executor against the eager one, its graphs recorded on the CPU."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dynkern.llm import LLM
from dynkern.policies import policy
from dynkern.routes import KV_FILLS
from dynkern.runtime.engine import RunOptions
from dynkern.runtime.executors import cuda_graph, graph_pool, make_executor
from dynkern.runtime.request import Request, SamplingParams
from support.errors import one_line_error
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
    assert graphs.engine.executor.replays - before == len(want.stats.passes) > 0
    assert got.completions == want.completions
    assert got.stats.passes == want.stats.passes
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
    prompts = random_prompts(5, seed=4)
    for sampling in (None, SAMPLED):
        options = {"max_new_tokens": 12, "seed": 5, "sampling": sampling}
        both(pair, prompts, spec, kv_fill=kv_fill, batch_size=3, **options)


@pytest.mark.parametrize("kv_fill", KV_FILLS)
def test_long_gaps_between_runs_of_a_layer(pair, kv_fill):
    options = {"max_new_tokens": 60, "force_length": True, "batch_size": 4}
    both(pair, random_prompts(4, seed=6), "stochastic:0.05", kv_fill=kv_fill, **options)


def test_random_batches_of_random_routes(pair):
    draw = random.Random(5)
    for turn in range(12):
        rows = draw.randint(1, 9)
        specs = [f"random:{draw.randint(1, NUM_LAYERS)}" for _ in range(rows)]
        prompts = random_prompts(rows, seed=turn)
        options = {"batch_size": draw.randint(1, 9), "max_new_tokens": draw.randint(2, 20)}
        both(pair, prompts, specs, seed=turn, **options)
