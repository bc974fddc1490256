"""Processors, criteria, streamers and outputs: against transformers' loop, under full depth and a
policy.

The truth of a policy is transformers on a model that only has the policy's layers: under
prefill="routed" no other layer takes part.
"""

from __future__ import annotations

import time
from functools import cache

import pytest
import torch
import transformers
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, StoppingCriteria, WatermarkingConfig

import dynkern
from dynkern import routes
from dynkern.hf import loop
from support.errors import one_line_error
from support.opt import random_prompts, tiny_opt
from support.tolerances import assert_logits_close
from support.twins import PAD, padded, twins

NEW_TOKENS = 8
BUDGET = 4
ROUTED = {"policy": f"uniform:{BUDGET}", "prefill": "routed"}


@cache
def models(variant: str):
    """transformers' model, ours, and the arguments under which they compute the same."""
    theirs, ours = twins(seed=1)
    if variant == "full":
        return theirs, ours, {}
    kept = routes.uniform(theirs.config.num_hidden_layers, BUDGET).nonzero().flatten().tolist()
    smaller = tiny_opt(seed=1)
    layers = smaller.model.decoder.layers
    smaller.model.decoder.layers = torch.nn.ModuleList(layers[i] for i in kept)
    for index, layer in enumerate(smaller.model.decoder.layers):
        layer.self_attn.layer_idx = index
    smaller.config.num_hidden_layers = BUDGET
    return smaller, ours, ROUTED


@pytest.fixture(params=["full", "routed"])
def both(request: pytest.FixtureRequest):
    return models(request.param)


@pytest.fixture
def in_step_only(monkeypatch):
    """The engine's own sampling must not be taken."""
    monkeypatch.setattr(loop, "_plain", lambda *a: pytest.fail("plain"))


def check(both, inputs: dict, make=None, **settings) -> Tensor:
    """Same ids from the same torch seed; make: settings made anew for each side."""
    theirs, ours, routed = both
    results = []
    for module, more in ((theirs, {}), (ours, routed)):
        torch.manual_seed(5)
        own = make() if make is not None else {}
        results.append(
            module.generate(**inputs, **{"max_new_tokens": NEW_TOKENS} | settings | own | more)
        )
    assert torch.equal(results[1], results[0])
    return results[1]


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


class EndsRows(StoppingCriteria):
    """Ends row r once it has 3 + r new tokens; counts its calls."""

    def __init__(self, width):
        self.width, self.calls, self.scores = width, 0, []

    def __call__(self, input_ids, scores, **kwargs):
        self.calls += 1
        self.scores.append(None if scores is None else len(scores))
        return torch.arange(len(input_ids)) + 3 <= input_ids.shape[1] - self.width


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


# -- outputs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampled", [False, True])
def test_scores_and_logits(both, sampled):
    theirs, ours, routed = both
    settings = {
        "return_dict_in_generate": True,
        "output_scores": True,
        "output_logits": True,
        "do_sample": sampled,
        "repetition_penalty": 1.3,
        "max_new_tokens": NEW_TOKENS,
        "eos_token_id": None,
    }
    torch.manual_seed(1)
    want = theirs.generate(**INPUTS, **settings)
    torch.manual_seed(1)
    got = ours.generate(**INPUTS, **settings, **routed)
    assert type(got) is type(want) and torch.equal(got.sequences, want.sequences)
    for name in ("scores", "logits"):
        mine, truth = getattr(got, name), getattr(want, name)
        assert isinstance(mine, tuple) and len(mine) == len(truth) == NEW_TOKENS
        for a, b in zip(mine, truth, strict=True):
            assert a.shape == b.shape and a.dtype == b.dtype and not a.is_inference()
            assert torch.equal(a.isfinite(), b.isfinite())
            assert_logits_close(a[a.isfinite()], b[b.isfinite()], torch.float32)
    mine = ours.compute_transition_scores(got.sequences, got.scores, normalize_logits=True)
    truth = theirs.compute_transition_scores(want.sequences, want.scores, normalize_logits=True)
    torch.testing.assert_close(mine, truth, rtol=1e-4, atol=1e-4)
    assert got.attentions is None and got.hidden_states is None


def test_a_dict_without_scores(both):
    theirs, ours, routed = both
    got = ours.generate(**INPUTS, **routed, return_dict_in_generate=True, max_new_tokens=4)
    want = theirs.generate(**INPUTS, return_dict_in_generate=True, max_new_tokens=4)
    assert torch.equal(got.sequences, want.sequences)
    assert got.scores is None and got.logits is None and list(got) == ["sequences"]
    # asked for, but without a dict to hold them: as in transformers
    ids = ours.generate(**INPUTS, **routed, output_scores=True, max_new_tokens=4)
    assert torch.equal(ids, got.sequences)


def test_scores_of_a_row_that_has_ended(both):
    _, ours, routed = both
    got = ours.generate(
        **INPUTS,
        **routed,
        return_dict_in_generate=True,
        output_logits=True,
        max_new_tokens=6,
        stopping_criteria=[EndsRows(INPUTS["input_ids"].shape[1])],
    )
    assert [step[0].any().item() for step in got.logits] == [True] * 3 + [False] * 3
    assert all(step[3].any() for step in got.logits)


# -- streamers -------------------------------------------------------------------------------------


class Streamer(transformers.generation.streamers.BaseStreamer):
    def __init__(self):
        self.calls = []

    def put(self, value):
        self.calls.append((tuple(value.shape), value.dtype, value.device, value.tolist()))

    def end(self):
        self.calls.append("end")


@pytest.mark.parametrize("settings", [{}, {"repetition_penalty": 1.2}, {"bad_words_ids": [[40]]}])
@pytest.mark.parametrize("inputs", [INPUTS, ONE_ROW], ids=["rows", "row"])
def test_streamers(both, inputs, settings):
    made = []

    def make():
        made.append(Streamer())
        return {"streamer": made[-1], **settings}

    check(both, inputs, make)
    assert made[1].calls == made[0].calls
    assert len(made[1].calls) == NEW_TOKENS + 2 and made[1].calls[-1] == "end"


def test_a_text_streamer_takes_one_row(both, tiny_tokenizer):
    theirs, ours, routed = both
    streamer = transformers.TextStreamer(tiny_tokenizer)
    for module, more in ((theirs, {}), (ours, routed)):
        with one_line_error(ValueError, "TextStreamer only supports batch size 1"):
            module.generate(**INPUTS, streamer=streamer, max_new_tokens=4, **more)


# -- stop strings ----------------------------------------------------------------------------------


@pytest.mark.parametrize("eos", [2, None])
def test_stop_strings(eos, tiny_tokenizer):
    theirs, ours = twins(seed=4, vocab_size=400)
    inputs = padded(random_prompts(3, seed=1, vocab_size=400))
    width = inputs["input_ids"].shape[1]
    words = [tiny_tokenizer.decode([i]) for i in range(len(tiny_tokenizer))]
    odd = [i for i in range(3, 400) if i >= len(words) or not words[i].strip().isalpha()]
    settings = {"suppress_tokens": odd, "no_repeat_ngram_size": 1, "eos_token_id": eos}
    settings["max_new_tokens"] = 12
    plain = theirs.generate(**inputs, **settings)[1, width:]
    # within the text of the row's third and fourth new token
    stop = tiny_tokenizer.decode(plain[2:4])[-2:]
    assert stop not in tiny_tokenizer.decode(plain[:3])
    settings |= {"stop_strings": [stop, "no such text"], "tokenizer": tiny_tokenizer}
    got = check((theirs, ours, {}), inputs, **settings)[1, width:]
    assert torch.equal(got[:4], plain[:4])
    # with an EOS token what follows is padding; without one transformers lets the row run on
    end = PAD if eos is not None else plain[4]
    assert len(got) > 4 and got[4] == end
    alone = {name: tensor[1:2] for name, tensor in inputs.items()}
    assert ours.generate(**alone, **settings).shape[1] == width + 4
    routed = ours.generate(**alone, **settings, policy="uniform:3")[0, width:]
    found = stop in tiny_tokenizer.decode(routed)
    assert found == (len(routed) < 12)
    with one_line_error(ValueError, "There are one or more stop strings"):
        ours.generate(**inputs, stop_strings=[stop], policy="uniform:3")


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
