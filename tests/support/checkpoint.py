"""A whole tiny checkpoint, tokenizer included, and a data set for it."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from support.opt import save_opt

SENTENCES = (
    "the restaurant is near the river and serves cheap food",
    "Today is a beautiful day and I want to walk by the river",
    "### Instruction: say this as an assistant would ### Input: ### Response:",
    "what is the capital of France? the capital is Paris",
)


def make_tokenizer(vocab_size: int = 320) -> PreTrainedTokenizerFast:
    """Byte-level BPE with OPT's special ids: <s> 0, <pad> 1, </s> 2 (BOS and EOS), <unk> 3."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="</s>", eos_token="</s>", pad_token="<pad>"
    )


def save_checkpoint(directory: Path, num_layers: int = 12, **overrides) -> Path:
    """A random model of `num_layers` with its tokenizer, in `directory`."""
    settings = {"vocab_size": 320, "max_position_embeddings": 160, **overrides}
    save_opt(directory, num_hidden_layers=num_layers, **settings)
    make_tokenizer().save_pretrained(directory)
    return directory


def save_records(path: Path, count: int = 10) -> Path:
    """A .jsonl data set of `count` records."""
    with path.open("w", encoding="utf-8") as file:
        for i in range(count):
            record = {
                "id": f"r{i}",
                "instruction": "say this as an assistant would",
                "input": " ".join(SENTENCES[i % 2].split()[: 3 + i % 7]),
                "output": "the restaurant is near the river",
                "references": ["the restaurant is near the river", "it serves cheap food"],
            }
            file.write(json.dumps(record) + "\n")
    return path
