"""What must always hold: full = Hugging Face, routed = compute-then-mask, nothing is read
before it is written. Every run here has its fresh memory filled with NaN.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dynkern.evaluation.compute_then_mask import masked_logits
from dynkern.llm import LLM
from dynkern.routes import KV_FILLS
from dynkern.runtime.engine import Engine
from support.backends import BACKENDS, needs_engine
from support.opt import VARIANTS, random_prompts, save_opt
from support.tolerances import assert_logits_close
from support.trace import trace_run

NUM_LAYERS = 6
NEW_TOKENS = 12
PLANNED = ["full", "uniform:3", "uniform-even:2", "early_exit:2", "random:3", "random:2"]
MIXED = ["full", "uniform:1", "early_exit:0", "random:4", "uniform:5", "early_exit:4", "random:1"]
TOKEN = [
    "random-step:3",
    "random-step:1,force_first=1",
    "stochastic:0.5",
    "stochastic:0.1",
    "confidence:top_prob=0.5",
    "confidence:margin=0.2,exits=0+1+4",
    "confidence:cosine=0.6,exits=1+3",
]


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """torch.empty and its kin hand out NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


# "ops": the eager executor on the CPU kernels of single ops
@pytest.fixture(scope="module", params=[*BACKENDS, pytest.param("ops", marks=needs_engine)])
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module", params=["pre_norm", "post_norm_projected"])
def twin(backend: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """The same tiny model as a float32 LLM and as a float64 transformers module."""
    directory = tmp_path_factory.mktemp(request.param)
    module = save_opt(directory, **VARIANTS[request.param])
    return llm_on(backend, directory), module.double()


def llm_on(backend: str, directory: Path, **options) -> LLM:
    if backend != "ops":
        return LLM(directory, backend=backend, **options)
    llm = LLM(directory, backend="reference", **options)
    llm.engine = Engine(llm.spec, llm.engine.weights, "cpu")
    assert llm.engine.executor.name == "eager"
    return llm


def check_rows(trace, module, prefill_routed: bool = False) -> None:
    """Each row's logits against compute-then-mask of the layers that its passes ran."""
    for completion in trace.result.completions:
        row = trace.rows[completion.request_id]
        assert len(row.logits) == len(completion.token_ids)
        assert [int(k.sum()) for k in row.keep] == completion.layers_run
        counts = torch.stack(row.keep).sum(dim=0).tolist() if row.keep else [0] * NUM_LAYERS
        assert counts == completion.layer_counts
        prompt, generated = completion.prompt_ids, completion.token_ids
        over_prompt = torch.ones(len(prompt), NUM_LAYERS, dtype=torch.bool)
        if prefill_routed:
            over_prompt[:] = row.keep[0]
        keep = torch.cat([over_prompt, *(k[None] for k in row.keep)])
        ids = torch.tensor(prompt + generated[:-1])
        with torch.no_grad():
            truth = masked_logits(module, ids, keep, trace.kv_fill)[len(prompt) - 1 :]
        assert_logits_close(torch.stack(row.logits), truth, torch.float32)


def run_and_check(monkeypatch, twin, policy, kv_fill="project", prefill="full", **options) -> None:
    llm, module = twin
    prompts = random_prompts(7, seed=3)
    trace = trace_run(
        monkeypatch,
        llm,
        prompts,
        policy,
        kv_fill=kv_fill,
        prefill=prefill,
        **{"max_new_tokens": NEW_TOKENS, "batch_size": 4, "seed": 11, **options},
    )
    trace.kv_fill = kv_fill
    check_rows(trace, module, prefill_routed=prefill == "routed")


@pytest.mark.parametrize("policy", PLANNED)
def test_planned_route_equals_compute_then_mask(monkeypatch, twin, policy):
    run_and_check(monkeypatch, twin, policy)


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_rows_of_one_batch_take_different_layers(monkeypatch, twin, batch_size):
    run_and_check(monkeypatch, twin, MIXED, batch_size=batch_size)


@pytest.mark.parametrize("kv_fill", KV_FILLS)
@pytest.mark.parametrize("policy", TOKEN)
def test_token_policy_equals_compute_then_mask(monkeypatch, twin, policy, kv_fill):
    run_and_check(monkeypatch, twin, policy, kv_fill)


@pytest.mark.parametrize("kv_fill", KV_FILLS)
def test_long_gaps_between_runs_of_a_layer(monkeypatch, twin, kv_fill):
    # with 5 % a layer is skipped for dozens of tokens: more than the deferred buffer holds
    run_and_check(monkeypatch, twin, "stochastic:0.05", kv_fill, max_new_tokens=70)


@pytest.mark.parametrize("policy", ["full", "uniform:2", "early_exit:1", MIXED])
def test_routed_prefill_equals_compute_then_mask(monkeypatch, twin, policy):
    run_and_check(monkeypatch, twin, policy, prefill="routed")


@pytest.mark.parametrize("kv_fill", KV_FILLS)
def test_planned_routes_need_no_fill(twin, kv_fill):
    prompts = random_prompts(5, seed=1)
    runs = [
        twin[0].generate(prompts, MIXED[:5], kv_fill=fill, force_length=True)
        for fill in ("project", kv_fill)
    ]
    assert [c.token_ids for c in runs[0]] == [c.token_ids for c in runs[1]]


@pytest.mark.parametrize("variant", VARIANTS)
def test_full_depth_equals_hugging_face_logits(monkeypatch, tmp_path, variant, backend):
    module = save_opt(tmp_path, seed=5, **VARIANTS[variant])
    llm = llm_on(backend, tmp_path)
    prompts = random_prompts(6, seed=9)
    trace = trace_run(monkeypatch, llm, prompts, "full", max_new_tokens=NEW_TOKENS)
    module = module.double()
    for completion in trace.result.completions:
        ids = torch.tensor([completion.prompt_ids + completion.token_ids[:-1]])
        with torch.no_grad():
            truth = module(ids).logits[0, len(completion.prompt_ids) - 1 :]
        row = trace.rows[completion.request_id]
        assert_logits_close(torch.stack(row.logits), truth, torch.float32)
        assert truth.argmax(dim=-1).tolist() == completion.token_ids


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("policy", ["full", "random:3", "stochastic:0.5"])
def test_half_precision_stays_within_the_table(monkeypatch, tmp_path, dtype, policy, backend):
    if (dtype, backend) == ("float16", "cpu"):
        pytest.skip("the CPU engine has no float16")
    module = save_opt(tmp_path, seed=2, init_std=0.1)
    llm = llm_on(backend, tmp_path, dtype=dtype)
    trace = trace_run(
        monkeypatch, llm, random_prompts(4, seed=2), policy, max_new_tokens=NEW_TOKENS
    )
    module = module.to(llm.dtype).double()
    for completion in trace.result.completions:
        row = trace.rows[completion.request_id]
        full = torch.ones(len(completion.prompt_ids), NUM_LAYERS, dtype=torch.bool)
        keep = torch.cat([full, *(k[None] for k in row.keep)])
        ids = torch.tensor(completion.prompt_ids + completion.token_ids[:-1])
        with torch.no_grad():
            truth = masked_logits(module, ids, keep)[len(completion.prompt_ids) - 1 :]
        assert_logits_close(torch.stack(row.logits), truth, llm.dtype)


def test_confidence_settles_the_tokens_that_its_final_head_would_pick(twin, monkeypatch):
    llm, _ = twin
    prompts = random_prompts(6, seed=4)
    for policy in ("confidence:top_prob=0.5", "confidence:margin=0.3"):
        settled = llm.generate(prompts, policy, max_new_tokens=NEW_TOKENS)
        with monkeypatch.context() as patch:
            trace = trace_run(patch, llm, prompts, policy, max_new_tokens=NEW_TOKENS)
        assert [c.token_ids for c in settled] == [c.token_ids for c in trace.result.completions]
        assert any(layers < NUM_LAYERS for c in settled for layers in c.layers_run)
