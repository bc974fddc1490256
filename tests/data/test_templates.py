"""Prompts: the templates to the letter, BOS once, and truncation that never cuts the template."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynkern.data import (
    TEMPLATES,
    Record,
    encode_prompt,
    load_records,
    prompt_cap,
    prompt_text,
    response_text,
)
from support.errors import one_line_error

BOS = 2
HEAD = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request. ### Instruction:"
)
RECORD = Record("0", "Add the numbers.", "1 and 2", "3", ("3",))


def ids_of(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_alpaca_text():
    assert prompt_text(RECORD, "alpaca") == (
        HEAD + "<SEP>Add the numbers.\n### Input:1 and 2\n### Response:<SEP>"
    )
    for blank in ("", " \n"):
        assert prompt_text(replace(RECORD, input=blank), "alpaca", sep="|") == (
            HEAD + "|Add the numbers.\n### Response:|"
        )


def test_plain_text():
    assert prompt_text(RECORD, "plain") == (
        "### Instruction:\nAdd the numbers.\n### Input:\n1 and 2\n### Response:\n"
    )
    assert prompt_text(replace(RECORD, input=""), "plain") == (
        "### Instruction:\nAdd the numbers.\n### Input:\n\n### Response:\n"
    )


def test_response_text():
    assert response_text(RECORD) == "3"


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("input", ["", "1 and 2", " \tleading", "東京 😀"])
def test_untruncated_is_the_whole_text_tokenised_at_once(tiny_tokenizer, template, input):
    record = replace(RECORD, input=input)
    prompt = encode_prompt(tiny_tokenizer, record, template, 1000, BOS)
    assert prompt.ids == [BOS, *ids_of(tiny_tokenizer, prompt_text(record, template))]
    assert not prompt.truncated


def test_separator_of_the_tokenizer(tiny_tokenizer_with_sep):
    tokenizer = tiny_tokenizer_with_sep
    prompt = encode_prompt(tokenizer, RECORD, "alpaca", 1000, BOS)
    text = prompt_text(RECORD, "alpaca", sep="<sep>")
    assert prompt.ids == [BOS, *ids_of(tokenizer, text)]
    assert prompt.ids.count(tokenizer.sep_token_id) == 2
    assert prompt.ids[-1] == tokenizer.sep_token_id
    plain = encode_prompt(tokenizer, RECORD, "plain", 1000, BOS)
    assert tokenizer.sep_token_id not in plain.ids


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("name", ["tiny_tokenizer", "tiny_tokenizer_with_sep"])
def test_special_tokens_in_user_text_are_text(request, name, template):
    tokenizer = request.getfixturevalue(name)
    record = replace(RECORD, instruction="</s>Say </s> or <sep> or <pad>", input="<s></s>")
    ids = encode_prompt(tokenizer, record, template, 1000, BOS).ids
    assert ids[0] == BOS and ids.count(BOS) == 1
    assert not {0, 1} & set(ids)
    if tokenizer.sep_token:
        assert ids.count(tokenizer.sep_token_id) == (2 if template == "alpaca" else 0)
    assert "</s>Say </s> or <sep> or <pad>" in tokenizer.decode(ids)


def test_default_caps(tiny_tokenizer):
    long = replace(RECORD, input="word " * 400)
    # the tiny tokenizer spends up to a token a letter, so the template takes most of the 128
    alpaca = encode_prompt(tiny_tokenizer, long, "alpaca", bos_token_id=BOS)
    assert alpaca.truncated and 120 < len(alpaca.ids) <= 128
    plain = encode_prompt(tiny_tokenizer, long, "plain", bos_token_id=BOS)
    assert not plain.truncated and len(plain.ids) > 400
    assert (prompt_cap("alpaca", 500), prompt_cap("alpaca", 100)) == (128, 100)
    assert prompt_cap("plain", 500) == 500


def check_cut(tokenizer, record: Record, template: str, cap: int) -> Record:
    """The prompt at `cap` is that of a record with shorter user text, the longest that fits."""
    prompt = encode_prompt(tokenizer, record, template, cap, BOS)
    assert len(prompt.ids) <= cap

    def whole(shorter: Record) -> list[int]:
        return encode_prompt(tokenizer, shorter, template, 10**6, BOS).ids

    assert prompt.truncated == (len(whole(record)) > cap)
    shorter = [replace(record, input=record.input[:n]) for n in range(len(record.input), -1, -1)]
    shorter += [
        replace(record, instruction=record.instruction[:n], input="")
        for n in range(len(record.instruction) - 1, -1, -1)
    ]
    (place, *_) = [i for i, r in enumerate(shorter) if whole(r) == prompt.ids]
    if place:
        assert len(whole(shorter[place - 1])) > cap
    return shorter[place]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("name", ["tiny_tokenizer", "tiny_tokenizer_with_sep"])
def test_input_is_cut_before_instruction(request, name, template):
    tokenizer = request.getfixturevalue(name)
    record = Record("0", "Give three tips, " * 3, "the lazy dog 東京 " * 4, "")
    bare = replace(record, instruction="", input="")
    fixed = len(encode_prompt(tokenizer, bare, template, 1000, BOS).ids)
    whole = len(encode_prompt(tokenizer, record, template, 1000, BOS).ids)
    kept = [check_cut(tokenizer, record, template, cap) for cap in range(fixed, whole + 2)]
    assert kept[0].instruction == kept[0].input == ""
    assert kept[-1] == kept[-2] == record
    for cut in kept:
        assert record.instruction.startswith(cut.instruction) and record.input.startswith(cut.input)
        assert cut.instruction == record.instruction or not cut.input
    assert any(cut.input not in ("", record.input) for cut in kept)


@settings(max_examples=60, deadline=None)
@given(
    instruction=st.text(max_size=40),
    input=st.text(max_size=60),
    template=st.sampled_from(list(TEMPLATES)),
    room=st.integers(0, 60),
)
def test_any_text_fits_its_cap(tiny_tokenizer, instruction, input, template, room):
    record = Record("0", instruction, input, "")
    bare = encode_prompt(tiny_tokenizer, Record("0", "", "", ""), template, 1000, BOS).ids
    prompt = encode_prompt(tiny_tokenizer, record, template, len(bare) + room, BOS)
    assert len(prompt.ids) <= len(bare) + room
    assert prompt.ids[0] == BOS and prompt.ids.count(BOS) == 1
    decoded = tiny_tokenizer.decode(prompt.ids[1:], clean_up_tokenization_spaces=False)
    head, tail = prompt_text(Record("0", "\0", "", ""), template).split("\0")
    assert decoded.startswith(head) and decoded.endswith(tail.rsplit("\n###", 1)[1])


def test_template_that_alone_exceeds_the_cap(tiny_tokenizer):
    bare = len(encode_prompt(tiny_tokenizer, Record("0", "", "", ""), "plain", None, BOS).ids)
    prompt = encode_prompt(tiny_tokenizer, RECORD, "plain", bare, BOS)
    assert prompt.truncated and len(prompt.ids) == bare
    with one_line_error(ValueError, f"max_prompt_tokens: got {bare - 1}, expected {bare} or more"):
        encode_prompt(tiny_tokenizer, RECORD, "plain", bare - 1, BOS)


def test_a_huge_input_is_searched_from_below(tiny_tokenizer):
    record = replace(RECORD, input="the lazy dog " * 40_000)
    tokenised = []

    class Counting:
        sep_token = None

        def __call__(self, text, **options):
            tokenised.append(len(text))
            return tiny_tokenizer(text, **options)

    prompt = encode_prompt(Counting(), record, "plain", 300, BOS)
    assert prompt.truncated and len(prompt.ids) == 300
    # the whole, and from there on little more than twice what fits
    assert len(tiny_tokenizer.decode(prompt.ids)) > 600
    assert sorted(tokenised)[-2] < 3_000


def test_bad_arguments(tiny_tokenizer):
    with one_line_error(ValueError, "template: got 'chat', expected one of alpaca, plain"):
        encode_prompt(tiny_tokenizer, RECORD, "chat", 100, BOS)
    with one_line_error(ValueError, "template: got 'chat'"):
        prompt_text(RECORD, "chat")
    with one_line_error(ValueError, "template: got 'chat'"):
        prompt_cap("chat", 5)
    with one_line_error(ValueError, "tokenizer: got None"):
        encode_prompt(None, RECORD, "plain", 100, BOS)


def test_opt_tokenizer_is_rebuilt(opt_tokenizer):
    text = "Today is a beautiful day and I want"
    assert [BOS, *ids_of(opt_tokenizer, text)] == [2, 5625, 16, 10, 2721, 183, 8, 38, 236]


def test_real_alpaca_prompts_of_opt(opt_tokenizer, shared_dir):
    records = load_records(shared_dir / "data" / "alpaca" / "alpaca.json", limit=200)
    prompts = [encode_prompt(opt_tokenizer, r, "alpaca", None, BOS) for r in records]
    # "Below is an instruction that describes a task. ... ### Instruction:<SEP>"
    head = [2, 45943, 16, 41, 15741, 14, 7448, 10, 3685, 4, 21062, 10, 1263, 14, 16574, 25830, 5]
    head += [2069, 4, 22560, 41241, 35, 41552, 3388, 510, 15698]
    assert all(p.ids[: len(head)] == head and len(p.ids) <= 128 for p in prompts)
    cut = [p for p in prompts if p.truncated]
    assert 0 < len(cut) < 40
    # a cut may free more than one token where the last letters were rare
    assert all(len(p.ids) >= 124 for p in cut)
    tail = ids_of(opt_tokenizer, "\n### Response:<SEP>")
    assert all(p.ids[-len(tail) :] == tail for p in prompts)
    whole = [p.ids for p in prompts if not p.truncated]
    texts = [
        prompt_text(r, "alpaca") for r, p in zip(records, prompts, strict=True) if not p.truncated
    ]
    assert whole == [[BOS, *ids_of(opt_tokenizer, text)] for text in texts]


def test_plain_prompts_of_the_real_model(shared_dir):
    from transformers import AutoTokenizer

    folder = shared_dir / "models" / "opt-nlg-11m"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    bos = json.loads((folder / "config.json").read_text())["bos_token_id"]
    (record,) = load_records(shared_dir / "data" / "nlg" / "test.jsonl", limit=1)
    prompt = encode_prompt(tokenizer, record, "plain", 448, bos)
    assert tokenizer.decode(prompt.ids) == (
        "</s>### Instruction:\nSay this as a restaurant assistant would.\n### Input:\n"
        "inform(name='kiss seafood';pricerange=expensive)\n### Response:\n"
    )
    assert not prompt.truncated
