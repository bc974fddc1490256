"""Sampling by the engine itself: transformers' distribution, seeds, and when it is taken."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from dynkern.hf import loop, modeling
from support.errors import one_line_error
from support.opt import random_prompts
from support.twins import check_equal, padded, twins

NEW_TOKENS = 6
INPUTS = padded(random_prompts(4, seed=8))
PROMPT = [2, 40, 41, 51, 51]
ONE_ROW = {"input_ids": torch.tensor([PROMPT])}


@pytest.fixture(scope="module")
def pair():
    return twins(seed=1)


@pytest.fixture
def plain_only(monkeypatch):
    """Neither the loop in step nor transformers' own may be taken."""
    monkeypatch.setattr(loop, "_in_step", lambda *a: pytest.fail("in step"))
    refuse = lambda *a: pytest.fail("fell back")  # noqa: E731
    monkeypatch.setattr(modeling.OPTForCausalLM, "_leave_to_transformers", refuse)


SETTINGS = [
    {"top_k": 0},
    {},
    {"top_k": 0, "temperature": 2.0},
    {"top_k": 5, "temperature": 1.5},
    {"top_k": 0, "top_p": 0.7},
    {"top_k": 12, "top_p": 0.8, "temperature": 1.3, "repetition_penalty": 1.4},
]


def probabilities(module, temperature=1.0, top_k=50, top_p=1.0, repetition_penalty=1.0) -> Tensor:
    """Of the token after PROMPT, by transformers' own processors in its order: float64 [V]."""
    processors = LogitsProcessorList()
    if repetition_penalty != 1.0:
        processors.append(RepetitionPenaltyLogitsProcessor(repetition_penalty))
    processors.append(TemperatureLogitsWarper(temperature))
    if top_k:
        processors.append(TopKLogitsWarper(top_k))
    if top_p < 1.0:
        processors.append(TopPLogitsWarper(top_p))
    with torch.no_grad():
        logits = module(**ONE_ROW).logits[:, -1]
    return processors(ONE_ROW["input_ids"], logits).double().softmax(dim=-1)[0]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_distribution(pair, settings, plain_only):
    theirs, ours = pair
    draws, torch_seed = 4000, 11
    torch.manual_seed(torch_seed)
    ids = ours.generate(
        **ONE_ROW, do_sample=True, num_return_sequences=draws, max_new_tokens=1, **settings
    )
    expected = probabilities(theirs, **settings) * draws
    counted = torch.bincount(ids[:, -1], minlength=131).double()
    assert counted[expected == 0].sum() == 0
    # Pearson's statistic over the tokens that are expected five times or more, the rest in one
    common = expected >= 5
    rest = expected[~common].sum(), counted[~common].sum()
    terms = (counted[common] - expected[common]) ** 2 / expected[common]
    statistic = terms.sum() + ((rest[1] - rest[0]) ** 2 / rest[0] if rest[0] >= 5 else 0.0)
    freedom = int(common.sum())
    assert freedom >= 3
    assert statistic < freedom + 4 * (2 * freedom) ** 0.5 + 8


def test_seeds(pair, plain_only):
    ours = pair[1]

    def run(**more):
        return ours.generate(**INPUTS, do_sample=True, max_new_tokens=NEW_TOKENS, **more)

    transformers.set_seed(3)
    first, second = run(), run()
    transformers.set_seed(3)
    assert torch.equal(run(), first) and torch.equal(run(), second)
    assert not torch.equal(first, second)
    # a seed of its own leaves torch's generator alone
    state = torch.get_rng_state()
    given = run(seed=5)
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(run(seed=5), given)
    assert not torch.equal(run(seed=6), given)
    # and greedy decoding draws nothing
    ours.generate(**INPUTS, max_new_tokens=2)
    assert torch.equal(torch.get_rng_state(), state)


def test_rows_and_copies_draw_on_their_own(pair, plain_only):
    inputs = {name: tensor[1:2].repeat(2, 1) for name, tensor in INPUTS.items()}
    ids = pair[1].generate(
        **inputs, do_sample=True, num_return_sequences=3, max_new_tokens=NEW_TOKENS, seed=1
    )
    assert ids.shape[0] == 6 and len({str(row.tolist()) for row in ids}) == 6


@pytest.mark.parametrize("policy", ["uniform:3", "stochastic:0.5", "confidence:top_prob=0.6"])
def test_under_a_policy(pair, policy, plain_only):
    settings = {"policy": policy, "do_sample": True, "max_new_tokens": NEW_TOKENS, "top_k": 20}
    got = pair[1].generate(**INPUTS, seed=2, num_return_sequences=2, **settings)
    assert got.shape == (8, INPUTS["input_ids"].shape[1] + NEW_TOKENS)
    assert torch.equal(got, pair[1].generate(**INPUTS, seed=2, num_return_sequences=2, **settings))
    assert not torch.equal(got[::2], got[1::2])
    transformers.set_seed(0)
    first = pair[1].generate(**INPUTS, **settings)
    transformers.set_seed(0)
    assert torch.equal(pair[1].generate(**INPUTS, **settings), first)


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 1.6},
        {"logits_processor": []},
        {"stopping_criteria": []},
        {"logits_processor": LogitsProcessorList([RepetitionPenaltyLogitsProcessor(1.6)])},
    ],
    ids=["penalty", "no processors", "no criteria", "penalty among processors"],
)
def test_greedy_settings_that_the_engine_has_itself(pair, settings, plain_only):
    check_equal_by_scores(pair, ONE_ROW, settings)


def check_equal_by_scores(pair, inputs, settings):
    want = pair[0].generate(**inputs, max_new_tokens=NEW_TOKENS, **settings)
    got = pair[1].generate(**inputs, max_new_tokens=NEW_TOKENS, **settings)
    assert torch.equal(got, want)


@pytest.mark.parametrize("with_padding", [False, True])
def test_a_repetition_penalty_does_not_count_what_transformers_does_not(pair, with_padding):
    # whether padding counts differs between versions of transformers: theirs decides
    inputs = INPUTS if with_padding else ONE_ROW
    check_equal_by_scores(pair, inputs, {"repetition_penalty": 1.6})


@pytest.mark.parametrize(
    "processors",
    [
        [TopKLogitsWarper(3), TemperatureLogitsWarper(2.0)],
        [TemperatureLogitsWarper(2.0)],
        [TopPLogitsWarper(0.9, min_tokens_to_keep=2)],
        [TopKLogitsWarper(3, filter_value=-5.0)],
    ],
    ids=lambda p: " ".join(type(x).__name__ for x in p),
)
def test_processors_that_only_look_like_the_engines_own(pair, processors):
    settings = {"do_sample": True, "top_k": 0, "logits_processor": LogitsProcessorList(processors)}
    # temperature 2 by the caller and top-k by transformers is in the engine's order; this is not
    settings |= {"temperature": 0.9, "top_p": 0.95, "max_new_tokens": NEW_TOKENS}
    results = []
    for module in pair:
        torch.manual_seed(2)
        results.append(module.generate(**INPUTS, **settings))
    assert torch.equal(*results)


def test_a_model_that_samples_by_default(plain_only):
    ours = twins(seed=6)[1]
    ours.generation_config = GenerationConfig(do_sample=True, temperature=1.8, eos_token_id=2)
    transformers.set_seed(0)
    first = ours.generate(**ONE_ROW, max_new_tokens=8)
    assert not torch.equal(ours.generate(**ONE_ROW, max_new_tokens=8), first)
    transformers.set_seed(0)
    assert torch.equal(ours.generate(**ONE_ROW, max_new_tokens=8), first)
    assert ours.generate(**ONE_ROW, policy="uniform:3", max_new_tokens=8).shape == (1, 13)


def test_a_tiny_temperature_is_greedy(pair):
    got = pair[1].generate(**INPUTS, do_sample=True, temperature=1e-4, max_new_tokens=NEW_TOKENS)
    assert torch.equal(got, check_equal(*pair, INPUTS, max_new_tokens=NEW_TOKENS))


BAD = {
    "zero temperature": ({"temperature": 0.0}, "temperature"),
    "negative temperature": ({"temperature": -1.0}, "temperature"),
    "NaN temperature": ({"temperature": float("nan")}, "^temperature: got nan"),
    "negative top_k": ({"top_k": -3}, "top_k"),
    "top_p": ({"top_p": -0.5}, "top_p"),
    "NaN top_p": ({"top_p": float("nan"), "top_k": 0}, "top_p"),
    "min_p": ({"min_p": 1.5}, "min_p"),
    "penalty": ({"repetition_penalty": 0.0}, "penalty"),
    "seed": ({"seed": 1 << 64}, "^seed: got 18446744073709551616"),
}


@pytest.mark.parametrize(("settings", "named"), BAD.values(), ids=BAD)
def test_bad_settings(pair, settings, named):
    for policy in ("full", "uniform:3"):
        with pytest.raises(ValueError, match=named):
            pair[1].generate(**INPUTS, do_sample=True, policy=policy, max_new_tokens=2, **settings)


def test_greedy_copies_are_refused_as_in_transformers(pair):
    for module in pair:
        with one_line_error(ValueError, "num_return_sequences"):
            module.generate(**INPUTS, num_return_sequences=2, max_new_tokens=2)
