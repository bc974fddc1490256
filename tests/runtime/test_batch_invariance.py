"""A row's bits do not depend on its company: batch, slot, threads, or who skips what."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch

from dynkern.kernels import native
from dynkern.llm import LLM
from dynkern.models.checkpoint import Checkpoint
from dynkern.models.opt import pack_weights
from dynkern.runtime.engine import Engine
from dynkern.runtime.request import SamplingParams
from support.backends import isa_levels, needs_engine
from support.opt import random_prompts, save_opt
from support.trace import trace_run

pytestmark = needs_engine
FORMATS = ["float32", "bfloat16", "int8"]
NUM_LAYERS = 6
NEW_TOKENS = 7
POOL = 14
BATCHES = 12
PLANNED = ["full", "uniform:1", "uniform:4", "early_exit:2", "random:3", "random:5", "uniform:2"]
TOKEN = ["random-step:3", "stochastic:0.5", "confidence:margin=0.2", "confidence:cosine=0.6"]


# beyond one block of rows and inputs in every matrix, and no multiple of any
WIDE = {
    "hidden_size": 204,
    "num_attention_heads": 6,
    "ffn_dim": 530,
    "vocab_size": 777,
    "init_std": 0.15,
    "do_layer_norm_before": False,
    "word_embed_proj_dim": 140,
}


@pytest.fixture(scope="module", params=[{}, WIDE], ids=["tiny", "wide"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("opt")
    save_opt(directory, seed=6, **request.param)
    return directory


@pytest.fixture(params=isa_levels())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    held = native.cpu_isa()
    native.set_cpu_isa(request.param)
    yield request.param
    native.set_cpu_isa(held)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    held = torch.get_num_threads()
    yield
    torch.set_num_threads(held)


class Pool:
    """Requests whose id, prompt and policy stay the same in whatever batch they run."""

    def __init__(self, llm: LLM, policies: list[str], **options) -> None:
        self.llm, self.options = llm, options
        self.prompts = random_prompts(POOL, seed=4)
        self.policies = [policies[i % len(policies)] for i in range(POOL)]

    def _arguments(self, members: list[int]) -> tuple[list, list]:
        return [self.prompts[i] for i in members], [self.policies[i] for i in members]

    def _options(self, members: list[int]) -> dict:
        fixed = {"max_new_tokens": NEW_TOKENS, "seed": 5, "force_length": True}
        return {**fixed, "batch_size": len(members), "request_ids": members, **self.options}

    def bits(self, members: list[int]) -> dict:
        """By request id: logits of every token, layers of every pass."""
        with pytest.MonkeyPatch.context() as patch:
            trace = trace_run(patch, self.llm, *self._arguments(members), **self._options(members))
        return {
            i: (
                torch.stack(row.logits).float().view(torch.int32).tolist(),
                torch.stack(row.keep).tolist(),
            )
            for i, row in trace.rows.items()
        }

    def tokens(self, members: list[int], sampling: SamplingParams | None = None) -> dict:
        """By request id: tokens and layers, picked by the engine itself."""
        options = {**self._options(members), "sampling": sampling}
        result = self.llm.run(*self._arguments(members), **options)
        return {c.request_id: (c.token_ids, c.layers_run) for c in result.completions}


def random_batches(seed: int) -> Iterator[list[int]]:
    """Members in random order, on one to four threads."""
    draw = random.Random(seed)
    for _ in range(BATCHES):
        torch.set_num_threads(draw.randint(1, 4))
        yield draw.sample(range(POOL), draw.randint(1, 11))


@pytest.mark.parametrize("format", FORMATS)
def test_planned_rows_are_bitwise_the_same_in_any_batch(directory, isa, format):
    pool = Pool(LLM(directory, dtype=format, backend="cpu"), PLANNED)
    torch.set_num_threads(1)
    alone = {i: pool.bits([i])[i] for i in range(POOL)}
    assert len({str(bits) for bits in alone.values()}) == POOL
    for members in random_batches(seed=len(isa)):
        assert pool.bits(members) == {i: alone[i] for i in members}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_rows_of_the_eager_executor_on_the_cpu_ops_too(directory, dtype):
    llm = LLM(directory, backend="reference")
    with Checkpoint(directory) as tensors:
        weights = pack_weights(tensors, llm.spec, dtype, torch.device("cpu"))
    llm.engine = Engine(llm.spec, weights, "cpu")
    assert llm.engine.executor.name == "eager"
    for policies in (PLANNED, TOKEN):
        pool = Pool(llm, policies)
        torch.set_num_threads(1)
        alone = {i: pool.bits([i])[i] for i in range(POOL)}
        for members in islice(random_batches(seed=8), 3):
            assert pool.bits(members) == {i: alone[i] for i in members}


@pytest.mark.parametrize("kv_fill", ["project", "copy", "deferred", "mask"])
@pytest.mark.parametrize("policy", TOKEN)
def test_token_policies_are_bitwise_the_same_in_any_batch(directory, policy, kv_fill):
    for format in FORMATS:
        llm = LLM(directory, dtype=format, backend="cpu")
        pool = Pool(llm, [policy], kv_fill=kv_fill)
        torch.set_num_threads(1)
        alone = {i: pool.bits([i])[i] for i in range(POOL)}
        for members in islice(random_batches(seed=3), BATCHES // 4):
            assert pool.bits(members) == {i: alone[i] for i in members}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    "sampling", [None, SamplingParams(1.2, 30, 0.9, 1.2)], ids=["greedy", "sampled"]
)
def test_picked_tokens_are_the_same_in_any_batch(directory, isa, format, sampling):
    for policies in (PLANNED, ["random-step:4"]):
        pool = Pool(LLM(directory, dtype=format, backend="cpu"), policies)
        torch.set_num_threads(1)
        alone = {i: pool.tokens([i], sampling)[i] for i in range(POOL)}
        for members in random_batches(seed=len(isa) + 1):
            assert pool.tokens(members, sampling) == {i: alone[i] for i in members}


def prefill_alone_and_packed(llm: LLM) -> list[bool]:
    """Whether each prompt's states and K/V are bitwise those of the packed prompts."""
    prompts = random_prompts(6, seed=3)
    with llm.engine.stepping():
        packed = llm.engine.executor.prefill(prompts)
        found = []
        for place, prompt in enumerate(prompts):
            alone = llm.engine.executor.prefill([prompt])
            tokens = slice(packed.bounds[place], packed.bounds[place + 1])
            pairs = [(alone.hidden[0], packed.hidden[place])]
            pairs += [
                (alone.keys, packed.keys[:, tokens]),
                (alone.values, packed.values[:, tokens]),
            ]
            found.append(all(torch.equal(one, other) for one, other in pairs))
    return found


@pytest.mark.parametrize("format", FORMATS)
def test_prefill_of_the_engine_is_the_same_alone_and_packed(directory, format):
    # with or without the mode
    for mode in (None, True):
        llm = LLM(directory, dtype=format, backend="cpu", batch_invariant=mode)
        assert prefill_alone_and_packed(llm) == [True] * 6


def test_the_reference_is_invariant_under_the_mode_only(directory):
    plain, llm = (LLM(directory, backend="reference", batch_invariant=m) for m in (False, True))
    assert [plain.describe()["batch_invariant"], llm.describe()["batch_invariant"]] == ["no", "yes"]
    assert prefill_alone_and_packed(llm) == [True] * 6
    assert not all(prefill_alone_and_packed(plain))
    for policies in (PLANNED, TOKEN):
        pool = Pool(llm, policies)
        alone = {i: pool.bits([i])[i] for i in range(POOL)}
        for members in islice(random_batches(seed=8), 2):
            torch.set_num_threads(1)
            assert pool.bits(members) == {i: alone[i] for i in members}
