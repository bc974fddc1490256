"""Fixtures for every room: real input where it is at hand, and a tokenizer made on the fly."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tokenizers import models
from transformers import PreTrainedTokenizerFast

from support.brief import brief
from support.tokenizer import SPECIAL_TOKENS, byte_level, trained, wrapped

# the models here are tiny: a second thread gains nothing, and its spinning barriers made tests up
# to ten times slower beside any other process on two cores
torch.set_num_threads(1)

SENTENCES = [
    "### Instruction:\nGive three tips for staying healthy.\n### Input:\n\n### Response:\n",
    "Below is an instruction that describes a task. Write a response that completes the request.",
    "The quick brown fox jumps over the lazy dog; pack my box with five dozen liquor jugs.",
]


@pytest.fixture(scope="module")
def brief_windows() -> Iterator[None]:
    """Timed windows of one call, whatever else the machine does, where no test looks at a time."""
    with brief():
        yield


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of models and data that lies beside the repository, outside of it."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("real models and data: no folder `shared` beside the repository")
    return folder


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 400 entries with OPT's special ids; any text can be encoded."""
    return trained(SENTENCES, 400)


@pytest.fixture(scope="session")
def tiny_tokenizer_with_sep() -> PreTrainedTokenizerFast:
    """The same kind with a separator among its special tokens."""
    return trained(SENTENCES, 400, ["<sep>"], sep_token="<sep>")


@pytest.fixture(scope="session")
def opt_tokenizer(shared_dir: Path) -> PreTrainedTokenizerFast:
    """OPT's real tokenizer: GPT-2's merges, and its ids by their line in fairseq's dictionary."""
    folder = shared_dir / "data" / "opt_tokenizer"
    pieces = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
    lines = (folder / "fairseq_dict.txt").read_text(encoding="utf-8").splitlines()
    ids = {line.split()[0]: place + len(SPECIAL_TOKENS) for place, line in enumerate(lines)}
    vocabulary = {token: place for place, token in enumerate(SPECIAL_TOKENS)}
    vocabulary |= {piece: ids[str(gpt2_id)] for piece, gpt2_id in pieces.items()}
    merges = (folder / "vocab.bpe").read_text(encoding="utf-8").splitlines()[1:]
    model = models.BPE(vocab=vocabulary, merges=[tuple(merge.split()) for merge in merges])
    tokenizer = byte_level(model)
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    return wrapped(tokenizer)
