"""The drop-in's streamers, its policies, and what it leaves to transformers' own loop."""

from __future__ import annotations

import pytest
import torch
import transformers
from transformers import GenerationConfig

import dynkern
from dynkern.llm import LLM
from support.errors import one_line_error
from support.greedy import new_tokens
from support.opt import random_prompts, save_opt
from support.twins import EOS, padded, twins

NEW_TOKENS = 16


@pytest.fixture(scope="module")
def pair():
    return twins(seed=1)


# -- streamer ------------------------------------------------------------------------------------


class Recorder:
    """Notes the calls of a streamer."""

    def __init__(self):
        self.calls = []

    def put(self, value):
        self.calls.append((tuple(value.shape), value.dtype, value.tolist()))

    def end(self):
        self.calls.append("end")


@pytest.mark.parametrize("inputs", [padded([[2, 40, 41]]), padded([[2, 40], [2] * 4])])
def test_streamer_gets_the_same_calls(pair, inputs):
    one_row = {name: tensor[:1] for name, tensor in inputs.items()}
    recorders = Recorder(), Recorder()
    for module, recorder in zip(pair, recorders, strict=True):
        module.generate(**one_row, streamer=recorder, max_new_tokens=5)
    theirs, ours = recorders
    assert ours.calls == theirs.calls
    assert ours.calls[-1] == "end" and len(ours.calls) == 7


def test_streamer_under_a_policy(pair):
    recorder = Recorder()
    ids = torch.tensor([[2, 40, 41]])
    got = pair[1].generate(ids, policy="uniform:2", streamer=recorder, max_new_tokens=5)
    assert [call[2] for call in recorder.calls[:1]] == [ids.tolist()]
    assert [call[2][0] for call in recorder.calls[1:-1]] == got[0, 3:].tolist()


# -- policies ------------------------------------------------------------------------------------

POLICIES = [
    ("full", {}),
    ("uniform:3", {}),
    ("early_exit:2", {"prefill": "routed"}),
    ("random:3", {"seed": 4}),
    ("random-step:2", {"seed": 4, "kv_fill": "copy"}),
    ("stochastic:0.5", {"kv_fill": "mask"}),
    ("confidence:top_prob=0.5", {"kv_fill": "deferred"}),
]


@pytest.mark.parametrize(("policy", "options"), POLICIES, ids=str)
def test_equals_llm_under_the_same_policy(tmp_path, policy, options):
    save_opt(tmp_path, seed=3)
    ours = dynkern.OPTForCausalLM.from_pretrained(tmp_path).eval()
    prompts = random_prompts(4, seed=2)
    inputs = padded(prompts)
    got = ours.generate(**inputs, policy=policy, max_new_tokens=NEW_TOKENS, **options)
    want = LLM(tmp_path).generate(prompts, policy, max_new_tokens=NEW_TOKENS, **options)
    width = inputs["input_ids"].shape[1]
    assert new_tokens(got, width, [EOS]) == [c.token_ids for c in want]


def test_a_policy_changes_the_text(pair):
    inputs = padded(random_prompts(4, seed=2))
    texts = {
        str(pair[1].generate(**inputs, policy=policy, max_new_tokens=8).tolist())
        for policy in ("full", "uniform:5", "uniform:2", "early_exit:0")
    }
    assert len(texts) == 4


def test_policy_objects(pair):
    ids = torch.tensor([[2, 40, 41]])
    by_name = pair[1].generate(ids, policy="uniform:2", max_new_tokens=5)
    policy = dynkern.policy("uniform:2")
    assert torch.equal(pair[1].generate(ids, policy=policy, max_new_tokens=5), by_name)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"policy": "uniform"}, "^policy 'uniform': malformed"),
        ({"policy": "uniform:7"}, "^uniform budget: got 7, expected 1 to 6"),
        ({"policy": 3}, "^policy: got int, expected"),
        ({"kv_fill": "paint"}, "^kv_fill: got 'paint', expected one of"),
        ({"prefill": "half"}, "^prefill: got 'half', expected one of"),
        ({"seed": -1}, "^seed: got -1, expected"),
        ({"policy": "stochastic:0.5", "prefill": "routed"}, "^prefill: 'routed' needs a planned"),
    ],
)
def test_bad_policies(pair, options, expected):
    with one_line_error(ValueError, expected):
        pair[1].generate(torch.tensor([[2, 40]]), **options)


# -- what greedy decoding does not serve ---------------------------------------------------------

NOT_SERVED = {
    "do_sample": True,
    "num_beams": 3,
    "repetition_penalty": 1.3,
    "no_repeat_ngram_size": 2,
    "min_new_tokens": 4,
    "bad_words_ids": [[5]],
    "suppress_tokens": [5, 6],
    "forced_eos_token_id": 2,
    "output_scores": True,
    "return_dict_in_generate": True,
    "logits_processor": transformers.LogitsProcessorList(),
    "stopping_criteria": transformers.StoppingCriteriaList(),
    "position_ids": torch.tensor([[0, 1, 2]]),
}


@pytest.mark.parametrize(("setting", "value"), NOT_SERVED.items(), ids=NOT_SERVED)
def test_settings_not_served_under_a_policy(pair, setting, value):
    with one_line_error(NotImplementedError, f"^generate: {setting}.* is not served under a"):
        pair[1].generate(torch.tensor([[2, 40, 41]]), policy="uniform:3", **{setting: value})


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 3},
        {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.5},
        {"do_sample": True, "top_k": 20, "temperature": 0.8},
        {"repetition_penalty": 1.5},
        {"no_repeat_ngram_size": 1},
        {"min_new_tokens": 3, "eos_token_id": list(range(4, 131))},
        {"suppress_tokens": list(range(4, 100))},
        {"generation_config": GenerationConfig(do_sample=True, max_new_tokens=6)},
    ],
    ids=str,
)
def test_full_depth_falls_back_to_transformers(pair, settings):
    inputs = padded(random_prompts(3, seed=5))
    settings = {"max_new_tokens": 8, **settings}
    if "generation_config" in settings:
        del settings["max_new_tokens"]
    generated = []
    for module in pair:
        torch.manual_seed(3)
        generated.append(module.generate(**inputs, **settings))
    assert torch.equal(*generated)
    greedy = pair[1].generate(**inputs, max_new_tokens=8)
    assert not torch.equal(generated[1], greedy)


def test_full_depth_returns_scores(pair):
    ids = torch.tensor([[2, 40, 41]])
    settings = {"return_dict_in_generate": True, "output_scores": True, "max_new_tokens": 4}
    theirs, ours = (module.generate(ids, **settings) for module in pair)
    assert torch.equal(ours.sequences, theirs.sequences) and len(ours.scores) == 4
    assert torch.equal(torch.stack(ours.scores), torch.stack(theirs.scores))


def test_a_model_that_samples_by_default():
    theirs, ours = twins(seed=6)
    ids = torch.tensor([[2, 40, 41]])
    theirs.generation_config.do_sample = ours.generation_config.do_sample = True
    generated = []
    for module in (theirs, ours):
        torch.manual_seed(0)
        generated.append(module.generate(ids, max_new_tokens=8))
    assert torch.equal(*generated)
    with one_line_error(NotImplementedError, "^generate: do_sample=True is not served"):
        ours.generate(ids, policy="uniform:3")
    assert ours.generate(ids, policy="uniform:3", do_sample=False).shape == (1, 23)


def test_a_streamer_with_two_rows(pair):
    inputs = padded([[2, 40], [2, 41]])
    with one_line_error(NotImplementedError, "^generate: streamer with 2 rows is not served"):
        pair[1].generate(**inputs, policy="uniform:3", streamer=Recorder())


def test_unknown_arguments_raise_as_in_transformers(pair):
    for module in pair:
        with pytest.raises(ValueError, match="kv_filling"):
            module.generate(torch.tensor([[2, 40]]), kv_filling="copy")
