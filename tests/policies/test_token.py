"""Token policies: their programs, and how often a layer runs."""

from __future__ import annotations

import pytest
import torch

import dynkern
from dynkern.llm import LLM
from dynkern.policies import Confidence
from dynkern.routes import TokenProgram
from support.opt import random_prompts, save_opt

ROWS = 200
STEPS = 30


def draws(spec: str, num_layers: int = 8, seed: int = 3) -> torch.Tensor:
    """Keep bits [num_layers, STEPS * ROWS] of ROWS rows over STEPS passes."""
    program = dynkern.policy(spec).lower(num_layers)
    request = torch.arange(ROWS)
    passes = [
        program.draw(seed, request, torch.full((ROWS,), step), num_layers)
        for step in range(1, STEPS + 1)
    ]
    return torch.cat(passes, dim=1)


def tolerance(probability: float) -> float:
    """Five standard errors of a rate over all draws of a layer."""
    return 5 * (probability * (1 - probability) / (ROWS * STEPS)) ** 0.5 + 1e-9


@pytest.mark.parametrize("budget", [1, 3, 8])
def test_random_step_runs_every_layer_equally_often(budget):
    keep = draws(f"random-step:{budget}")
    assert (keep.sum(dim=0) == budget).all()
    rate = keep.double().mean(dim=1)
    assert (rate - budget / 8).abs().max() <= tolerance(budget / 8)


def test_forced_random_step_runs_layer_zero_always():
    keep = draws("random-step:3,force_first=1")
    assert keep[0].all() and (keep.sum(dim=0) == 3).all()
    rate = keep[1:].double().mean(dim=1)
    assert (rate - 2 / 7).abs().max() <= tolerance(2 / 7)


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_stochastic_rates(probability):
    keep = draws(f"stochastic:{probability}")
    assert keep[0].all()
    rate = keep[1:].double().mean(dim=1)
    assert (rate - probability).abs().max() <= tolerance(probability)


def test_stochastic_layers_are_independent():
    keep = draws("stochastic:0.5")[1:].double()
    correlation = torch.corrcoef(keep) - torch.eye(7)
    assert correlation.abs().max() < 5 / (ROWS * STEPS) ** 0.5


@pytest.mark.parametrize("spec", ["random-step:3", "stochastic:0.5"])
def test_draws_are_equal_in_any_batch_and_differ_by_seed(spec):
    program = dynkern.policy(spec).lower(8)
    request, step = torch.tensor([5, 1, 9]), torch.tensor([2, 7, 3])
    together = program.draw(4, request, step, 8)
    for row in range(3):
        alone = program.draw(4, request[row : row + 1], step[row : row + 1], 8)
        assert torch.equal(alone[:, 0], together[:, row])
    assert not torch.equal(draws(spec, seed=3), draws(spec, seed=4))


def test_lowering_checks_the_depth():
    for spec in ("random-step:9", "confidence:margin=0.1,exits=7"):
        with pytest.raises(ValueError, match="expected"):
            dynkern.policy(spec).lower(8)


@pytest.mark.parametrize(
    ("num_layers", "exits"),
    [(1, ()), (2, (0,)), (3, (0, 1)), (4, (0, 1, 2)), (12, (2, 5, 8)), (24, (5, 11, 17))],
)
def test_default_exits_are_the_ends_of_the_quarters(num_layers, exits):
    program = dynkern.policy("confidence:margin=0.5").lower(num_layers)
    expected = TokenProgram("confidence", measure="margin", threshold=0.5, exit_layers=exits)
    assert program == expected


def test_declared_exits_are_sorted_and_distinct():
    assert Confidence("cosine", 0.5, (4, 1, 4)).lower(8).exit_layers == (1, 4)


@pytest.mark.parametrize("layer", [-1, 7, 8])
def test_exits_out_of_range(layer):
    with pytest.raises(ValueError, match=f"^confidence exits: got layer {layer}, expected 0 to 6$"):
        Confidence("cosine", 0.5, (1, layer)).check(8)


def test_an_unknown_measure():
    with pytest.raises(ValueError, match="^confidence measure: got 'entropy', expected one of"):
        Confidence("entropy", 0.5)


def test_a_users_own_token_policy(tmp_path):
    class FirstTwoLayers:
        spec = "mine"

        def lower(self, num_layers):
            return TokenProgram("bernoulli", probability=(1.0,) * 2 + (0.0,) * (num_layers - 2))

    save_opt(tmp_path)
    llm, prompts = LLM(tmp_path), random_prompts(3)
    policy = FirstTwoLayers()
    assert not dynkern.is_planned(policy)
    own = llm.generate(prompts, policy, max_new_tokens=6)
    assert [c.layer_counts for c in own] == [[5, 5, 0, 0, 0, 0]] * 3
    early = llm.generate(prompts, "early_exit:1", max_new_tokens=6)
    assert [c.token_ids for c in own] == [c.token_ids for c in early]


def test_random_step_in_a_run_does_not_depend_on_the_batch(tmp_path):
    save_opt(tmp_path)
    llm, prompts = LLM(tmp_path), random_prompts(5, seed=6)
    options = {"seed": 9, "max_new_tokens": 8}
    together = llm.generate(prompts, "random-step:3", batch_size=5, **options)
    alone = llm.generate(prompts, "random-step:3", batch_size=1, **options)
    assert [c.layer_counts for c in together] == [c.layer_counts for c in alone]
    assert len({tuple(c.layer_counts) for c in together}) > 1
    other = llm.generate(prompts, "random-step:3", batch_size=5, seed=10, max_new_tokens=8)
    assert [c.layer_counts for c in together] != [c.layer_counts for c in other]
