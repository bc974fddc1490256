"""Training sequences are what generation reads, a response and EOS; only those carry a loss."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dynkern.data import Record, alpaca_indices, encode_prompt, load_records
from dynkern.training.data import (
    IGNORED,
    Collator,
    check_lengths,
    encode_examples,
    load_split,
)
from dynkern.training.shapes import SPECIAL_TOKENS, shape_config, train_tokenizer
from support.checkpoint import save_records


def _record(output: str, input: str = "", id: str = "a") -> Record:
    return Record(id=id, instruction="name a river", input=input, output=output)


@pytest.mark.parametrize("template", ["alpaca", "plain"])
def test_a_sequence_is_the_prompt_the_response_and_eos(tiny_tokenizer, template):
    record = _record("the Rhine, and </s> too")
    prompt = encode_prompt(tiny_tokenizer, record, template, 400).ids
    (example,) = encode_examples(tiny_tokenizer, [record], template, 512, 400).items
    assert example.ids[: example.prompt_length] == prompt
    assert example.ids[-1] == 2 and example.ids[0] == 2
    response = example.ids[example.prompt_length : -1]
    assert 2 not in response, "text that spells </s> must not end a sequence"
    assert tiny_tokenizer.decode(response) == record.output


def test_a_response_that_does_not_fit_goes_without_eos(tiny_tokenizer):
    examples = encode_examples(tiny_tokenizer, [_record("rhine " * 200)], "plain", 96, 48)
    (example,) = examples.items
    assert len(example.ids) == 96 and example.ids[-1] != 2
    assert (examples.cut_prompts, examples.cut_responses) == (0, 1)
    assert examples.response_tokens == 96 - example.prompt_length


def test_a_batch_has_labels_on_response_and_eos_only(tiny_tokenizer):
    records = [_record("yes"), _record("no, " * 9, input="the river Rhine", id="b")]
    examples = encode_examples(tiny_tokenizer, records, "plain", 200, 100).items
    batch = Collator(pad_token_id=1)(examples)
    assert batch["prompt_length"].tolist() == [e.prompt_length for e in examples]
    assert batch["record"].tolist() == [0, 1]
    for row, example in enumerate(examples):
        labelled = (batch["labels"][row] != IGNORED).nonzero().flatten().tolist()
        assert labelled == list(range(example.prompt_length, len(example.ids)))
        assert batch["labels"][row, labelled].tolist() == example.ids[example.prompt_length :]
        assert batch["input_ids"][row, len(example.ids) :].eq(1).all()


def test_a_file_is_split_as_alpaca(tmp_path: Path):
    path = save_records(tmp_path / "data.jsonl", 40)
    records = load_records(path)
    parts = load_split(str(path))
    for part, name in zip(parts, ("train", "validation", "test"), strict=True):
        assert part == [records[place] for place in alpaca_indices(40, name)]
    assert [len(part) for part in parts] == [28, 6, 6]
    trained, validated, rest = load_split(str(path), 10, str(path))
    assert (len(trained), len(validated), rest) == (10, 10, [])


def test_data_that_cannot_be_trained_on_is_said_in_one_line(tmp_path: Path):
    blank = tmp_path / "blank.jsonl"
    rows = [{"instruction": f"i{n}", "input": "", "output": "x" if n else " "} for n in range(9)]
    blank.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match="record '0' has a blank output"):
        load_split(str(blank))
    with pytest.raises(ValueError, match="3 records, expected at least 4"):
        load_split(str(save_records(tmp_path / "few.jsonl", 3)))
    with pytest.raises(ValueError, match="max_length: got 600, expected 8 to the model's 512"):
        check_lengths("alpaca", 600, 512)
    assert check_lengths("alpaca", 512, 2048) == 128
    assert check_lengths("plain", 200, 512) == 100


def test_shapes_and_the_tokenizer_of_a_model_from_scratch(tmp_path: Path):
    config = shape_config("12x256", 4096, 512)
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (
        12,
        256,
        8,
    )
    assert shape_config("opt-1.3b", 50272, 2048).num_attention_heads == 32
    for name in ("12x250", "0x256", "twelve", "12x"):
        with pytest.raises(ValueError, match="config: got"):
            shape_config(name, 400, 64)
    records = load_records(save_records(tmp_path / "data.jsonl", 20))
    tokenizer = train_tokenizer(records, "plain", 300)
    again = train_tokenizer(records, "plain", 300)
    assert tokenizer.get_vocab() == again.get_vocab() and len(tokenizer) == 300
    assert [tokenizer.convert_tokens_to_ids(t) for t in SPECIAL_TOKENS] == [0, 1, 2, 3]
    text = "Grüße, 河!"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    with pytest.raises(ValueError, match="vocab_size: got 100, expected 260"):
        train_tokenizer(records, "plain", 100)
