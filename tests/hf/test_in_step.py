"""Processors and criteria: against transformers' loop, under full depth and a policy."""

from __future__ import annotations

import time

import pytest
import torch
import transformers
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, WatermarkingConfig

import dynkern
from dynkern.hf import loop
from support.opt import random_prompts, tiny_opt
from support.routed import NEW_TOKENS, EndsRows, check, models
from support.twins import PAD, padded


@pytest.fixture(params=["full", "routed"])
def both(request: pytest.FixtureRequest):
    return models(request.param)


@pytest.fixture
def in_step_only(monkeypatch):
    """The engine's own sampling must not be taken."""
    monkeypatch.setattr(loop, "_plain", lambda *a: pytest.fail("plain"))


INPUTS = padded(random_prompts(4, seed=8))
ONE_ROW = {"input_ids": torch.tensor([[2, 40, 41, 42]])}

# -- options that act through processors -----------------------------------------------------------

GREEDY = [
    {"repetition_penalty": 1.5},
    {"repetition_penalty": 0.7},
    {"encoder_repetition_penalty": 1.4},
    {"no_repeat_ngram_size": 1},
    {"bad_words_ids": [[50], [51], [52, 53]]},
    {"suppress_tokens": list(range(4, 100))},
    {"begin_suppress_tokens": list(range(4, 120))},
    {"sequence_bias": {(77,): 9.0, (5, 6): -4.0}},
    {"forced_eos_token_id": 2},
    {"min_new_tokens": 5, "eos_token_id": list(range(4, 131))},
    {"min_length": 14, "eos_token_id": list(range(4, 131))},
    {"exponential_decay_length_penalty": (2, 1.8)},
    {"remove_invalid_values": True, "renormalize_logits": True},
    {"watermarking_config": WatermarkingConfig(bias=6.0, seeding_scheme="selfhash")},
    {"prefix_allowed_tokens_fn": lambda row, ids: [4 + row, 60 + len(ids) % 7, 70]},
    {"generation_config": GenerationConfig(repetition_penalty=1.9, max_new_tokens=6, min_length=9)},
]


@pytest.mark.parametrize("settings", GREEDY, ids=lambda s: " ".join(map(str, s)))
def test_greedy_options(both, settings):
    settings = dict(settings)
    if "generation_config" in settings:
        settings["max_new_tokens"] = 6
    got = check(both, INPUTS, **settings)
    plain = both[1].generate(**INPUTS, **both[2], max_new_tokens=NEW_TOKENS)
    neutral = "remove_invalid_values" in settings
    assert neutral == (got.tolist() == plain.tolist())


def test_options_that_look_at_the_prompt(both):
    bos = {"input_ids": torch.tensor([[2]])}
    assert check(both, bos, forced_bos_token_id=9)[0, 1] == 9
    plain = both[1].generate(**ONE_ROW, **both[2], max_new_tokens=NEW_TOKENS)
    again = {"input_ids": torch.cat([plain, plain[:, 1:]], dim=1)}
    got = check(both, again, encoder_no_repeat_ngram_size=2)
    pairs = {tuple(pair) for pair in again["input_ids"].unfold(1, 2, 1)[0].tolist()}
    new = got[:, again["input_ids"].shape[1] :].unfold(1, 2, 1)[0].tolist()
    assert pairs.isdisjoint(map(tuple, new))


SAMPLING = [
    {"min_p": 0.05},
    {"typical_p": 0.8},
    {"epsilon_cutoff": 0.01},
    {"eta_cutoff": 0.02},
    {"top_k": 0, "min_p": 0.02, "temperature": 1.7},
    {"top_k": 7, "top_p": 0.9, "temperature": 0.7, "typical_p": 0.9},
    {"no_repeat_ngram_size": 2, "temperature": 2.0},
    {"min_new_tokens": 3, "num_return_sequences": 3},
    {"suppress_tokens": [5, 6], "num_return_sequences": 2, "repetition_penalty": 1.2},
    {"output_scores": True, "top_k": 0, "repetition_penalty": 1.3},
]


@pytest.mark.parametrize("settings", SAMPLING, ids=lambda s: " ".join(map(str, s)))
def test_sampling_draws_as_transformers_does(both, settings, in_step_only):
    if "output_scores" in settings:
        settings = {**settings, "min_p": 0.001}
    got = check(both, INPUTS, do_sample=True, **settings)
    assert got.shape[0] == 4 * settings.get("num_return_sequences", 1)
    torch.manual_seed(6)
    other = both[1].generate(
        **INPUTS, do_sample=True, max_new_tokens=NEW_TOKENS, **settings, **both[2]
    )
    assert got.tolist() != other.tolist()


def test_top_h(both):
    if not hasattr(GenerationConfig(), "top_h"):
        pytest.skip("this transformers has no top_h")
    check(both, INPUTS, do_sample=True, top_h=0.4)


def test_a_seed_of_its_own(both):
    _, ours, routed = both

    def run(seed):
        return ours.generate(
            **INPUTS, do_sample=True, min_p=0.01, seed=seed, max_new_tokens=NEW_TOKENS, **routed
        )

    state = torch.get_rng_state()
    first, again, other = run(3), run(3), run(4)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)
    assert run((1 << 64) - 1).shape[0] == 4


# -- Python of the caller's own --------------------------------------------------------------------


class Recording(LogitsProcessor):
    """Counts its calls, remembers tokens, and moves scores by what it has seen."""

    def __init__(self):
        self.seen: list[Tensor] = []
        self.shapes: list[tuple] = []

    def __call__(self, input_ids, scores):
        assert not scores.is_inference() and not torch.is_inference_mode_enabled()
        assert scores.dtype == torch.float32 and not scores.requires_grad
        self.seen.append(input_ids.clone())
        self.shapes.append((tuple(input_ids.shape), tuple(scores.shape)))
        scores[:, 10 + len(self.seen)] += 30.0 * (len(self.seen) % 2)
        return scores


@pytest.mark.parametrize("side", ["left", "one row"])
def test_stateful_processors(both, side):
    inputs = INPUTS if side == "left" else ONE_ROW
    made = []

    def make():
        made.append(Recording())
        return {"logits_processor": transformers.LogitsProcessorList([made[-1]])}

    check(both, inputs, make)
    theirs, ours = made
    assert ours.shapes == theirs.shapes and len(ours.seen) == NEW_TOKENS
    assert all(torch.equal(a, b) for a, b in zip(ours.seen, theirs.seen, strict=True))


def test_a_plain_list_and_a_plain_function(both):
    got = check(both, INPUTS, logits_processor=[lambda ids, scores: -scores])
    assert got.tolist() != both[1].generate(**INPUTS, max_new_tokens=NEW_TOKENS).tolist()


@pytest.mark.parametrize("eos", [2, None])
def test_stateful_criteria(both, eos):
    width, made = INPUTS["input_ids"].shape[1], []

    def make():
        made.append(EndsRows(width))
        return {"stopping_criteria": transformers.StoppingCriteriaList([made[-1]])}

    got = check(both, INPUTS, make, eos_token_id=eos)
    assert got.shape[1] == width + 6
    theirs, ours = made
    assert ours.calls == theirs.calls == 6 and ours.scores == theirs.scores == [None] * 6
    if eos is not None:
        # finished rows are padded
        assert [(row[width:] == PAD).sum().item() for row in got] == [3, 2, 1, 0]


def test_criteria_are_handed_the_scores(both):
    made = []

    def make():
        made.append(EndsRows(INPUTS["input_ids"].shape[1]))
        return {
            "stopping_criteria": [made[-1]],
            "return_dict_in_generate": True,
            "output_scores": True,
        }

    results = []
    for module, more in ((both[0], {}), (both[1], both[2])):
        results.append(
            module.generate(**INPUTS, max_new_tokens=NEW_TOKENS, **make(), **more).sequences
        )
    assert torch.equal(*results)
    assert made[0].scores == made[1].scores == [1, 2, 3, 4, 5, 6]


def test_max_time(both):
    class Slow(LogitsProcessor):
        def __call__(self, input_ids, scores):
            time.sleep(0.01)
            return scores

    ids = both[1].generate(
        **ONE_ROW,
        **both[2],
        max_time=0.05,
        max_new_tokens=90,
        eos_token_id=None,
        logits_processor=[Slow()],
    )
    assert 5 <= ids.shape[1] <= 4 + 6


def test_processors_that_generate(both):
    # a call within a call, on the same model
    _, ours, routed = both

    class Looks(LogitsProcessor):
        def __call__(self, input_ids, scores):
            ahead = ours.generate(input_ids, max_new_tokens=2, eos_token_id=None)
            assert ahead.shape[1] == input_ids.shape[1] + 2
            scores[:, ahead[0, -1]] += 100.0
            return scores

    got = ours.generate(**ONE_ROW, **routed, max_new_tokens=4, logits_processor=[Looks()])
    for at in range(4, got.shape[1]):
        ahead = ours.generate(got[:, :at], max_new_tokens=2, eos_token_id=None)
        assert got[0, at] == ahead[0, -1]


def test_an_error_of_the_callers_code_leaves_the_model_usable(both):
    _, ours, routed = both
    want = ours.generate(**INPUTS, **routed, max_new_tokens=NEW_TOKENS)

    def fail(ids, scores):
        if ids.shape[1] > INPUTS["input_ids"].shape[1] + 1:
            raise KeyError("mine")
        return scores

    with pytest.raises(KeyError, match="mine"):
        ours.generate(**INPUTS, **routed, logits_processor=[fail], max_new_tokens=NEW_TOKENS)
    assert torch.equal(ours.generate(**INPUTS, **routed, max_new_tokens=NEW_TOKENS), want)


def test_right_padding_is_moved_to_the_left(both):
    _, ours, routed = both
    prompts = random_prompts(4, seed=8)
    right = padded(prompts, side="right")
    made = []

    def settings():
        made.append(Recording())
        return {"logits_processor": [made[-1]], "max_new_tokens": NEW_TOKENS, **routed}

    left = ours.generate(**INPUTS, **settings())
    got = ours.generate(**right, **settings())
    width = right["input_ids"].shape[1]
    assert torch.equal(got[:, :width], right["input_ids"])
    assert torch.equal(got[:, width:], left[:, width:])
    assert all(torch.equal(a, b) for a, b in zip(made[0].seen, made[1].seen, strict=True))


# -- token policies --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "kv_fill"),
    [
        ("random-step:2", "copy"),
        ("stochastic:0.5", "mask"),
        ("confidence:top_prob=0.5", "deferred"),
        ("random:3", "project"),
    ],
)
def test_neutral_python_changes_nothing_under_a_policy(policy, kv_fill):
    ours = models("full")[1]
    settings = {"policy": policy, "kv_fill": kv_fill, "seed": 4, "max_new_tokens": NEW_TOKENS}
    want = ours.generate(**INPUTS, **settings)
    seen = []

    def look(ids, scores):
        seen.append(ids.shape)
        return scores

    assert torch.equal(ours.generate(**INPUTS, **settings, logits_processor=[look]), want)
    assert len(seen) == want.shape[1] - INPUTS["input_ids"].shape[1]


def test_policy_of_the_model_itself():
    model = dynkern.accelerate(tiny_opt(seed=1), policy="uniform:4")
    want = models("full")[1].generate(**INPUTS, policy="uniform:4", max_new_tokens=NEW_TOKENS)
    assert torch.equal(model.generate(**INPUTS, max_new_tokens=NEW_TOKENS), want)
