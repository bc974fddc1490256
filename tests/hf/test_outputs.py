"""Scores, logits, streamers and stop strings, under full depth and a policy."""

from __future__ import annotations

import pytest
import torch
import transformers

from support.errors import one_line_error
from support.opt import random_prompts
from support.routed import NEW_TOKENS, EndsRows, check, models
from support.tolerances import assert_logits_close
from support.twins import PAD, padded, twins

INPUTS = padded(random_prompts(4, seed=8))
ONE_ROW = {"input_ids": torch.tensor([[2, 40, 41, 42]])}


@pytest.fixture(params=["full", "routed"])
def both(request: pytest.FixtureRequest):
    return models(request.param)


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
