"""The drop-in's greedy generate against transformers' own, token for token."""

from __future__ import annotations

import pytest
import torch
import transformers
from transformers import GenerationConfig

from support.errors import one_line_error
from support.greedy import assert_same_greedy, new_tokens
from support.opt import VARIANTS, random_prompts
from support.twins import PAD, check_equal, padded, twins

# transformers' advice to name a length; some tests name none on purpose
pytestmark = pytest.mark.filterwarnings("ignore:Using the model-agnostic default")
NEW_TOKENS = 16
# six random post-norm layers forget what they read: every row repeats one token
LIVELY = {"post_norm_projected": {"num_hidden_layers": 2}}


@pytest.fixture(scope="module")
def pair():
    return twins(seed=1)


# -- rows --------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("with_mask", [True, False])
def test_equals_transformers(variant, with_mask):
    theirs, ours = twins(seed=3, init_std=0.6, **VARIANTS[variant], **LIVELY.get(variant, {}))
    inputs = padded(random_prompts(5, seed=4))
    assert (inputs["input_ids"] == PAD).any()
    if not with_mask:
        del inputs["attention_mask"]
    got = check_equal(theirs, ours, inputs, max_new_tokens=NEW_TOKENS)
    assert len(got[:, -NEW_TOKENS:].unique()) > 8


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


def test_no_inputs_is_one_row_of_bos(pair):
    want = pair[0].generate(max_new_tokens=5)
    assert want[0, 0] == 2 and torch.equal(pair[1].generate(max_new_tokens=5), want)
    got = pair[1].generate(policy="uniform:2", max_new_tokens=5)
    assert torch.equal(got, pair[1].generate(want[:, :1], policy="uniform:2", max_new_tokens=5))
    with one_line_error(ValueError, "^input_ids: got None, expected a tensor"):
        twins(bos_token_id=None)[1].generate()


def test_inputs_twice(pair):
    ids = torch.tensor([[2, 40]])
    with one_line_error(ValueError, "^input_ids: got both inputs and input_ids, expected one"):
        pair[1].generate(ids, input_ids=ids)


# -- settings of greedy decoding -----------------------------------------------------------------


def test_default_length(pair):
    got = check_equal(*pair, padded([[2, 40, 41], [2, 50]]))
    assert got.shape[1] == 3 + 20


def test_the_default_length_ends_at_the_last_position(pair):
    got = check_equal(*pair, {"input_ids": torch.tensor([[2, *[40] * 84]])})
    assert got.shape[1] == 96
    with one_line_error(ValueError, "too long, 97 tokens and 1 new ones exceed"):
        pair[1].generate(torch.tensor([[40] * 97]))


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
    with one_line_error(ValueError, "^`max_new_tokens` must be greater than 0, but is 0.$"):
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


def test_without_eos_and_pad_token():
    theirs, ours = twins(seed=1)
    for module in (theirs, ours):
        module.generation_config.pad_token_id = module.generation_config.eos_token_id = None
    ids = torch.tensor([[0, 2, 40], [1, 2, 41]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    got = check_equal(theirs, ours, inputs, eos=(), max_new_tokens=4)
    assert torch.equal(ours.generate(ids, max_new_tokens=4), got)


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
    monkeypatch.setattr(transformers.OPTForCausalLM, "_sample", refuse)
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
