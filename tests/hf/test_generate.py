"""The drop-in's greedy generate against transformers' own, token for token."""

from __future__ import annotations

import pytest
import torch
import transformers
from support.errors import one_line_error
from support.greedy import assert_same_greedy, new_tokens
from support.opt import VARIANTS, random_prompts, save_opt, tiny_opt
from transformers import GenerationConfig

import dynkern
from dynkern.llm import LLM

PAD, EOS = 1, 2
NEW_TOKENS = 16


def twins(seed: int = 0, **overrides):
    """The same random weights in transformers' class and in dynkern's."""
    theirs = tiny_opt(seed, **overrides)
    ours = dynkern.OPTForCausalLM(theirs.config).eval()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


@pytest.fixture(scope="module")
def pair():
    return twins(seed=1)


def padded(prompts: list[list[int]], side: str = "left"):
    """input_ids and attention_mask."""
    width = max(map(len, prompts))
    ids, mask = torch.full((len(prompts), width), PAD), torch.zeros(len(prompts), width).long()
    for row, prompt in enumerate(prompts):
        at = slice(width - len(prompt), width) if side == "left" else slice(len(prompt))
        ids[row, at], mask[row, at] = torch.tensor(prompt), 1
    return {"input_ids": ids, "attention_mask": mask}


def check_equal(theirs, ours, inputs: dict, eos=(EOS,), **kwargs) -> torch.Tensor:
    """Same ids, echo and padding; returns ours."""
    want = theirs.generate(**inputs, **kwargs)
    got = ours.generate(**inputs, **kwargs)
    ids = inputs["input_ids"]
    width = ids.shape[1]
    assert got.dtype == torch.int64 and got.device == ids.device
    assert torch.equal(got[:, :width], ids)
    mask = inputs.get("attention_mask", ids != PAD).bool()
    prompts = [row[keep].tolist() for row, keep in zip(ids, mask, strict=True)]
    rows = new_tokens(got, width, eos), new_tokens(want, width, eos)
    assert_same_greedy(theirs, prompts, *rows)
    if rows[0] == rows[1]:
        assert torch.equal(got, want)
    return got


# -- rows --------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("with_mask", [True, False])
def test_equals_transformers(variant, with_mask):
    theirs, ours = twins(seed=2, **VARIANTS[variant])
    inputs = padded(random_prompts(5, seed=4))
    assert (inputs["input_ids"] == PAD).any()
    if not with_mask:
        del inputs["attention_mask"]
    got = check_equal(theirs, ours, inputs, max_new_tokens=NEW_TOKENS)
    assert len(got[:, -NEW_TOKENS:].unique()) > 10


@pytest.mark.parametrize("length", [1, 2, 17])
def test_one_row(pair, length):
    ids = torch.tensor([[2, *range(40, 40 + length - 1)]])
    got = check_equal(*pair, {"input_ids": ids}, max_new_tokens=NEW_TOKENS)
    assert got.shape == (1, length + NEW_TOKENS)


def test_inputs_by_position(pair):
    theirs, ours = pair
    ids = torch.tensor([[2, 40, 41]])
    assert torch.equal(ours.generate(ids), ours.generate(input_ids=ids))
    assert torch.equal(ours.generate(ids), theirs.generate(ids))
    given = GenerationConfig(max_new_tokens=3)
    assert torch.equal(ours.generate(ids, given), theirs.generate(ids, given))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.bool, torch.float32])
def test_mask_dtypes(pair, dtype):
    inputs = padded([[2, 40, 41], [2, 50]])
    want = pair[1].generate(**inputs, max_new_tokens=4)
    mask = inputs["attention_mask"].to(dtype)
    got = pair[1].generate(inputs["input_ids"].int(), attention_mask=mask, max_new_tokens=4)
    assert torch.equal(got, want) and got.dtype == torch.int64


@pytest.mark.parametrize("with_mask", [True, False])
def test_right_padding_equals_the_unpadded_row(pair, with_mask):
    prompts = random_prompts(4, seed=6)
    inputs = padded(prompts, side="right")
    width = inputs["input_ids"].shape[1]
    if not with_mask:
        del inputs["attention_mask"]
    got = pair[1].generate(**inputs, max_new_tokens=NEW_TOKENS)
    assert torch.equal(got[:, :width], inputs["input_ids"])
    want = [pair[0].generate(torch.tensor([p]), max_new_tokens=NEW_TOKENS) for p in prompts]
    expected = [row[0, len(p) :].tolist() for row, p in zip(want, prompts, strict=True)]
    assert_same_greedy(pair[0], prompts, new_tokens(got, width, ()), expected)


def test_padding_on_both_sides(pair):
    ids = torch.tensor([[1, 1, 2, 40, 1], [2, 50, 51, 52, 53]])
    got = pair[1].generate(ids, attention_mask=(ids != PAD).long(), max_new_tokens=6)
    alone = pair[1].generate(torch.tensor([[2, 40]]), max_new_tokens=6)
    assert got[0, 5:].tolist() == alone[0, 2:].tolist()


def test_pad_tokens_that_the_mask_keeps_are_read(pair):
    ids = torch.tensor([[2, 40, 1, 41]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    check_equal(*pair, inputs, max_new_tokens=6)


BAD_INPUTS = {
    "hole": ([[2, 5, 6, 7]], [[1, 0, 1, 1]], "^attention_mask: row 0 has a hole"),
    "hole in the second row": (
        [[2, 5, 6, 7]] * 2,
        [[0, 0, 1, 1], [1, 0, 0, 1]],
        "^attention_mask: row 1 has a hole",
    ),
    "hole of pad tokens": ([[2, 1, 6, 7]], None, "^attention_mask: row 0 has a hole"),
    "empty row": ([[2, 5], [2, 6]], [[1, 1], [0, 0]], "^attention_mask: row 1 has no token"),
    "row of pad tokens": ([[1, 1], [2, 6]], None, "^attention_mask: row 0 has no token"),
    "short mask": ([[2, 5]], [[1]], r"^attention_mask: got shape \(1, 1\), expected \(1, 2\)$"),
    "flat mask": ([[2, 5]], [1, 1], r"^attention_mask: got shape \(2,\), expected \(1, 2\)$"),
    "flat ids": ([2, 5], None, r"^input_ids: got \(2,\), expected a tensor \[rows, tokens\]"),
    "no tokens": ([[], []], None, r"^input_ids: got \(2, 0\), expected a tensor"),
    "floats": ([[2.0, 5.0]], None, "^input_ids: got dtype torch.float32, expected int64$"),
    "large id": ([[2, 131]], None, "token id 131, expected 0 to 130$"),
    "negative id": ([[2, -1]], [[1, 1]], "token id -1, expected 0 to 130$"),
    "too long": ([[5] * 95], None, "too long, 95 tokens and 16 new ones exceed .* 96 positions$"),
}


@pytest.mark.parametrize(("ids", "mask", "expected"), BAD_INPUTS.values(), ids=BAD_INPUTS)
def test_bad_inputs(pair, ids, mask, expected):
    mask = None if mask is None else torch.tensor(mask)
    with one_line_error(ValueError, expected):
        pair[1].generate(torch.tensor(ids), attention_mask=mask, max_new_tokens=NEW_TOKENS)


def test_no_inputs(pair):
    with one_line_error(ValueError, "^input_ids: got None, expected a tensor"):
        pair[1].generate()


# -- settings of greedy decoding -----------------------------------------------------------------


def test_default_length(pair):
    got = check_equal(*pair, padded([[2, 40, 41], [2, 50]]))
    assert got.shape[1] == 3 + 20


def test_the_default_length_ends_at_the_last_position(pair):
    got = check_equal(*pair, {"input_ids": torch.tensor([[2, *[40] * 84]])})
    assert got.shape[1] == 96


LENGTHS = [
    {"max_length": 4},
    {"max_length": 12},
    {"max_length": 5, "max_new_tokens": 9},
    {"max_new_tokens": 1},
    {"generation_config": GenerationConfig(max_new_tokens=7)},
    {"generation_config": GenerationConfig(max_length=7)},
    {"generation_config": GenerationConfig(max_new_tokens=3), "max_new_tokens": 5},
]


@pytest.mark.parametrize("settings", LENGTHS, ids=str)
def test_lengths(pair, settings):
    check_equal(*pair, padded([[2, 40, 41], [2, 50]]), **settings)


@pytest.mark.parametrize("max_length", [0, 2, 3])
def test_a_max_length_within_the_prompt(pair, max_length):
    with one_line_error(ValueError, f"^max_length: got {max_length} for a prompt of 3 tokens"):
        pair[1].generate(torch.tensor([[2, 40, 41]]), max_length=max_length)


def test_no_new_tokens(pair):
    with one_line_error(ValueError, "^max_new_tokens: got 0, expected 1 or more$"):
        pair[1].generate(torch.tensor([[2, 40, 41]]), max_new_tokens=0)


@pytest.fixture(scope="module")
def stopping(pair):
    """A batch, and the ids that its rows generate as tokens 3 and 8."""
    inputs = padded(random_prompts(4, seed=8))
    ids = pair[0].generate(**inputs, max_new_tokens=NEW_TOKENS)[:, -NEW_TOKENS:]
    return inputs, [int(ids[0, 3]), int(ids[1, 8])]


@pytest.mark.parametrize("pad", [PAD, 0, 77])
def test_rows_are_padded_after_their_eos(pair, stopping, pad):
    inputs, stops = stopping
    settings = {"eos_token_id": stops[0], "pad_token_id": pad, "max_new_tokens": NEW_TOKENS}
    got = check_equal(*pair, inputs, eos=stops[:1], **settings)[0, -NEW_TOKENS:].tolist()
    end = got.index(stops[0]) + 1
    assert end <= 4 and got[end:] == [pad] * (NEW_TOKENS - end)


def test_several_eos(pair, stopping):
    inputs, stops = stopping
    got = check_equal(*pair, inputs, eos=stops, eos_token_id=stops, max_new_tokens=NEW_TOKENS)
    rows = new_tokens(got, inputs["input_ids"].shape[1], stops)
    assert rows[0][-1] in stops and rows[1][-1] in stops
    config = GenerationConfig(eos_token_id=stops, max_new_tokens=NEW_TOKENS)
    check_equal(*pair, inputs, eos=stops, generation_config=config)


def test_generation_ends_with_the_last_row(pair, stopping):
    inputs, _ = stopping
    everything = list(range(131))
    got = check_equal(*pair, inputs, eos=everything, eos_token_id=everything, max_new_tokens=9)
    assert got.shape[1] == inputs["input_ids"].shape[1] + 1


def test_an_eos_in_the_prompt_stops_nothing(pair, stopping):
    inputs, stops = stopping
    ids = torch.tensor([[2, 40, 2, 2, 41, 2]])
    got = check_equal(*pair, {"input_ids": ids}, max_new_tokens=8)
    assert got.shape[1] == 14


@pytest.mark.parametrize("with_mask", [True, False])
def test_without_pad_token(stopping, with_mask):
    theirs, ours = twins(seed=1)
    theirs.generation_config.pad_token_id = ours.generation_config.pad_token_id = None
    inputs, stops = stopping
    settings = {"eos_token_id": stops[0], "max_new_tokens": NEW_TOKENS}
    if with_mask:
        check_equal(theirs, ours, inputs, eos=stops[:1], **settings)
    # then padding cannot be told from tokens: token 0 and the pad token are tokens
    ids = torch.tensor([[0, 2, 40], [1, 2, 41]])
    whole = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    want = theirs.generate(ids, **settings)
    assert torch.equal(ours.generate(ids, **settings), want)
    check_equal(theirs, ours, whole, eos=stops[:1], **settings)


def test_without_eos_token(pair):
    inputs = padded(random_prompts(3, seed=8))
    got = check_equal(*pair, inputs, eos=(), eos_token_id=None, max_new_tokens=NEW_TOKENS)
    assert got.shape[1] == inputs["input_ids"].shape[1] + NEW_TOKENS


def test_a_pad_token_that_is_an_eos_is_no_padding(pair):
    ids = torch.tensor([[2, 2, 40], [2, 41, 42]])
    settings = {"pad_token_id": 2, "max_new_tokens": 6}
    want = pair[0].generate(ids, **settings)
    assert torch.equal(pair[1].generate(ids, **settings), want)


def test_the_models_own_generation_config():
    theirs, ours = twins(seed=5)
    for module in (theirs, ours):
        module.generation_config.max_new_tokens = 5
        module.generation_config.eos_token_id = list(range(0, 131, 5))
    inputs = padded(random_prompts(4, seed=1))
    check_equal(theirs, ours, inputs, eos=range(0, 131, 5))
    config = GenerationConfig(max_new_tokens=9)
    check_equal(theirs, ours, inputs, eos=range(0, 131, 5), generation_config=config)
    assert config.max_new_tokens == 9 and config.eos_token_id is None


def test_neutral_settings_are_served(pair, monkeypatch):
    refuse = lambda *a, **k: pytest.fail("fell back")  # noqa: E731
    monkeypatch.setattr(transformers.OPTForCausalLM, "generate", refuse)
    got = pair[1].generate(
        torch.tensor([[2, 40, 41]]),
        do_sample=False,
        num_beams=1,
        temperature=0.7,
        top_p=0.9,
        repetition_penalty=1.0,
        use_cache=True,
        return_dict_in_generate=False,
        logits_processor=None,
        max_new_tokens=4,
    )
    assert got.shape == (1, 7)


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
    "num_return_sequences": 2,
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
