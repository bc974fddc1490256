"""Planned policies: their routes, their range checks, and a user's own."""

from __future__ import annotations

import pytest
import torch

import dynkern
from dynkern.llm import LLM
from dynkern.policies import PlanRequest, check_policy
from support.errors import one_line_error
from support.opt import random_prompts, save_opt

NUM_LAYERS = 6


def plan(spec: str, ids, num_layers: int = 12, seed: int = 0) -> torch.Tensor:
    requests = [PlanRequest(i, (2, 5 + i % 7), num_layers, seed) for i in ids]
    return torch.stack(dynkern.policy(spec).plan(requests))


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    directory = tmp_path_factory.mktemp("model")
    save_opt(directory)
    return LLM(directory)


FIXED = {
    "full": list(range(12)),
    "uniform:4": [0, 5, 8, 11],
    "uniform-even:4": [0, 3, 6, 9],
    "early_exit:3": [0, 1, 2, 3],
}


@pytest.mark.parametrize(("spec", "layers"), FIXED.items())
def test_fixed_routes(spec, layers):
    table = plan(spec, range(3))
    assert table.dtype == torch.bool and table.shape == (3, 12)
    assert all(row.nonzero().flatten().tolist() == layers for row in table)


# spec, a depth that fits it, the first depth below that does not
RANGES = [
    ("uniform:6", 6, 5),
    ("uniform-even:6", 6, 5),
    ("uniform-even:6", 12, 13),
    ("early_exit:6", 7, 6),
    ("random:6", 6, 5),
    ("random:6,force_first=1", 6, 5),
    ("random-step:6", 6, 5),
    ("confidence:top_prob=0.9,exits=0+6", 8, 7),
]


@pytest.mark.parametrize(("spec", "fits", "too_small"), RANGES)
def test_range_checks(spec, fits, too_small):
    policy = dynkern.policy(spec)
    policy.check(fits)
    with one_line_error(ValueError, "got (layer )?6, expected"):
        policy.check(too_small)


@pytest.mark.parametrize(
    "spec",
    ["uniform:0", "uniform:-1", "uniform-even:0", "early_exit:-1", "random:0", "random-step:-3"],
)
def test_numbers_below_the_range(spec):
    number = spec.partition(":")[2]
    with pytest.raises(ValueError, match=f"got {number}, expected [01] to"):
        dynkern.policy(spec).check(12)


@pytest.mark.parametrize("spec", ["full", "stochastic:0.5", "confidence:top_prob=0.5"])
def test_any_depth_fits(spec):
    policy = dynkern.policy(spec)
    for num_layers in range(1, 49):
        policy.check(num_layers)
        assert check_policy(policy, num_layers) is None


def test_random_is_per_request_and_seed():
    table = plan("random:5", range(64))
    assert (table.sum(dim=1) == 5).all()
    assert len({tuple(row.tolist()) for row in table}) > 48
    assert torch.equal(table, plan("random:5", range(64)))
    other_seed = plan("random:5", range(64), seed=1)
    assert (table != other_seed).any(dim=1).sum() > 56


def test_random_is_the_same_in_any_batch():
    table = plan("random:5", range(20), seed=7)
    order = [13, 2, 19, 0]
    assert torch.equal(plan("random:5", order, seed=7), table[order])
    for request in order:
        assert torch.equal(plan("random:5", [request], seed=7)[0], table[request])


def test_forced_random_keeps_layer_zero():
    table = plan("random:5,force_first=1", range(200))
    assert table[:, 0].all() and (table.sum(dim=1) == 5).all()
    assert not plan("random:5", range(200))[:, 0].all()


def test_random_layers_are_equally_likely():
    rows = 6000
    rate = plan("random:3", range(rows)).double().mean(dim=0)
    assert (rate - 3 / 12).abs().max() < 5 * (0.25 * 0.75 / rows) ** 0.5


# -- a user's own policy -------------------------------------------------------------------------


class LongPromptsRunMore:
    """As in the README: half of the layers for short prompts, all for long ones."""

    spec = "long-prompts-run-more"

    def plan(self, requests):
        routes = []
        for request in requests:
            half = [layer % 2 == 0 for layer in range(request.num_layers)]
            long = len(request.prompt_ids) > 8
            routes.append([True] * request.num_layers if long else half)
        return routes


def test_a_users_own_policy(llm):
    prompts = random_prompts(5, seed=1)
    assert {len(p) > 8 for p in prompts} == {True, False}
    run = llm.generate(prompts, LongPromptsRunMore(), max_new_tokens=6, batch_size=3)
    for prompt, completion in zip(prompts, run, strict=True):
        layers = NUM_LAYERS if len(prompt) > 8 else NUM_LAYERS // 2
        assert completion.layers_run == [layers] * 5
        assert completion.layer_counts[1] == (5 if layers == NUM_LAYERS else 0)
    even = llm.generate(prompts, "uniform-even:3", max_new_tokens=6)
    full = llm.generate(prompts, "full", max_new_tokens=6)
    for prompt, own, at_half, at_full in zip(prompts, run, even, full, strict=True):
        assert own.token_ids == (at_full if len(prompt) > 8 else at_half).token_ids


def test_what_a_policy_sees(llm):
    seen = []

    class Spy:
        def plan(self, requests):
            seen.append(list(requests))
            return [[True] * r.num_layers for r in requests]

    prompts = random_prompts(3, seed=2)
    options = {"max_new_tokens": 2, "seed": 5, "request_ids": [4, 9, 2]}
    llm.generate(prompts, Spy(), **options)
    llm.generate(prompts, Spy(), prefill="routed", **options)
    after_prefill, before = seen
    for requests in seen:
        assert [r.id for r in requests] == [4, 9, 2]
        assert [list(r.prompt_ids) for r in requests] == prompts
        assert {(r.num_layers, r.seed) for r in requests} == {(NUM_LAYERS, 5)}
    assert all(r.prompt_state.shape == (48,) for r in after_prefill)
    assert all(r.prompt_state is None for r in before)


def own_policy(routes):
    class Own:
        spec = "mine"

        def plan(self, requests):
            return routes(len(requests))

    return Own()


@pytest.mark.parametrize(
    "routes",
    [
        lambda n: None,
        lambda n: [[True] * NUM_LAYERS] * (n + 1),
        lambda n: [[True] * (NUM_LAYERS - 1)] * n,
        lambda n: [[1] * NUM_LAYERS] * n,
        lambda n: torch.ones(n, NUM_LAYERS),
        lambda n: [[True] * NUM_LAYERS] * (n - 1) + [[False] * NUM_LAYERS],
        lambda n: [[True] * NUM_LAYERS] * (n - 1) + [[True]],
    ],
    ids=["none", "rows", "layers", "integers", "floats", "empty route", "ragged"],
)
@pytest.mark.parametrize("prefill", ["full", "routed"])
def test_bad_plans_name_the_policy(llm, routes, prefill):
    with one_line_error(ValueError, "^policy mine: "):
        llm.generate([[2, 5], [2, 6]], own_policy(routes), prefill=prefill)
    # the engine is usable afterwards
    assert len(llm.generate([[2, 5]], max_new_tokens=2)[0].token_ids) == 2


def test_a_policy_without_a_spec_goes_by_its_class(llm):
    class Nameless:
        def plan(self, requests):
            return []

    with pytest.raises(ValueError, match="^policy Nameless: "):
        llm.generate([[2, 5]], Nameless())
