"""A whole tiny checkpoint, tokenizer included, and a data set for it."""

from __future__ import annotations

import json
from pathlib import Path

from support.opt import save_opt
from support.tokenizer import trained

SENTENCES = (
    "the restaurant is near the river and serves cheap food",
    "Today is a beautiful day and I want to walk by the river",
    "### Instruction: say this as an assistant would ### Input: ### Response:",
    "what is the capital of France? the capital is Paris",
)


def save_checkpoint(directory: Path, num_layers: int = 12, **overrides) -> Path:
    """A random model of `num_layers` with its tokenizer, in `directory`."""
    settings = {"vocab_size": 320, "max_position_embeddings": 160, **overrides}
    save_opt(directory, num_hidden_layers=num_layers, **settings)
    trained(SENTENCES, settings["vocab_size"]).save_pretrained(directory)
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
