"""Training data: The paper's sequences (BOS, prompt, response, EOS), their split and their batches.

The prompt is the one that generation reads (dynkern.data), the response is encoded apart from it,
as it will be continued, and only response and EOS carry a loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from dynkern.data import Record, alpaca_indices, encode_prompt, load_records, prompt_cap
from dynkern.data.records import ALPACA

# labels that carry no loss, as in transformers
IGNORED = -100


@dataclass(frozen=True)
class Example:
    """ids: the whole sequence. prompt_length: ids ahead of the response, BOS included. record: its
    place in the data, which random draws of its training go by.
    """

    ids: list[int]
    prompt_length: int
    record: int = 0


class Examples(Dataset):
    """Encoded sequences, and how many of their prompts and responses were cut to fit."""

    def __init__(self, items: Sequence[Example], cut_prompts: int, cut_responses: int) -> None:
        self.items = list(items)
        self.cut_prompts, self.cut_responses = cut_prompts, cut_responses

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Example:
        return self.items[index]

    @property
    def response_tokens(self) -> int:
        """Tokens that carry a loss."""
        return sum(len(item.ids) - item.prompt_length for item in self.items)


def load_split(
    data: str, limit: int | None = None, validation: str | None = None
) -> tuple[list[Record], list[Record], list[Record]]:
    """Training, validation and test records.

    Without a `validation` source of its own, the data is cut as arXiv 2410.20022 cuts Alpaca: 30 %
    held out with seed 42 and halved with seed 42. With one, all of `data` is trained on and there
    are no test records. limit: first records of each source, before any cut.

    ValueError, one line, for data that cannot be read or split, or holds a blank response.
    """
    if validation is not None:
        trained, held = (load_records(source, "train", limit) for source in (data, validation))
        parts = trained, held, []
    elif data == ALPACA:
        names = "train", "validation", "test"
        parts = tuple(load_records(data, name, limit) for name in names)
    else:
        records = load_records(data, "train", limit)
        if len(records) < 4:
            raise ValueError(f"data: {data} has {len(records)} records, expected at least 4")
        parts = tuple(
            [records[place] for place in alpaca_indices(len(records), name)]
            for name in ("train", "validation", "test")
        )
    for part in parts:
        for record in part:
            if not record.output.strip():
                raise ValueError(
                    f"data: record {record.id!r} has a blank output, expected a response"
                )
    return parts


def check_lengths(template: str, max_length: int, max_positions: int) -> int:
    """Most ids of a prompt within sequences of max_length; ValueError over the model's limit."""
    if not 8 <= max_length <= max_positions:
        raise ValueError(
            f"max_length: got {max_length}, expected 8 to the model's {max_positions} positions"
        )
    # half is left for the response where the template has no cap of its own
    return prompt_cap(template, max_length // 2)


def encode_examples(
    tokenizer: Any,
    records: Sequence[Record],
    template: str,
    max_length: int,
    max_prompt: int,
    bos_token_id: int = 2,
    eos_token_id: int = 2,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Examples:
    """The records as sequences of at most max_length ids.

    User text is cut to max_prompt as when generating. A response that does not fit is cut at the
    end and goes without EOS, since it has not ended there.
    """
    items, cut_prompts, cut_responses = [], 0, 0
    for done, record in enumerate(records, 1):
        prompt = encode_prompt(tokenizer, record, template, max_prompt, bos_token_id)
        response = tokenizer(
            record.output, add_special_tokens=False, split_special_tokens=True, verbose=False
        )["input_ids"]
        ids = [*prompt.ids, *response, eos_token_id]
        cut_prompts += prompt.truncated
        cut_responses += len(ids) > max_length
        items.append(Example(ids[:max_length], len(prompt.ids), done - 1))
        report(done, len(records))
    return Examples(items, cut_prompts, cut_responses)


@dataclass(frozen=True)
class Collator:
    """Examples to a batch, padded on the right, where causal attention never looks.

    input_ids, labels: int64 [B, T], labels IGNORED outside of response and EOS; prompt_length,
    record: int64 [B].
    """

    pad_token_id: int

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        width = max(len(example.ids) for example in examples)
        input_ids = torch.full((len(examples), width), self.pad_token_id)
        labels = torch.full((len(examples), width), IGNORED)
        for row, example in enumerate(examples):
            ids = torch.tensor(example.ids)
            input_ids[row, : len(ids)] = ids
            labels[row, example.prompt_length : len(ids)] = ids[example.prompt_length :]
        return {
            "input_ids": input_ids,
            "labels": labels,
            "prompt_length": torch.tensor([example.prompt_length for example in examples]),
            "record": torch.tensor([example.record for example in examples]),
        }
