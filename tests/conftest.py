"""Fixtures for every room: real input where it is at hand, and a tokenizer made on the fly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

# the models here are tiny: a second thread gains nothing, and its spinning barriers made tests up
# to ten times slower beside any other process on two cores
torch.set_num_threads(1)

# OPT's own order: fairseq keeps the first four ids of a dictionary for these
SPECIAL_TOKENS = ["<s>", "<pad>", "</s>", "<unk>"]
SENTENCES = [
    "### Instruction:\nGive three tips for staying healthy.\n### Input:\n\n### Response:\n",
    "Below is an instruction that describes a task. Write a response that completes the request.",
    "The quick brown fox jumps over the lazy dog; pack my box with five dozen liquor jugs.",
]


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of models and data that lies beside the repository, outside of it."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("real models and data: no folder `shared` beside the repository")
    return folder


def _opt_tokenizer(model: models.Model, trainer: trainers.Trainer | None) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if trainer is not None:
        tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


def _wrapped(tokenizer: Tokenizer, **tokens: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="</s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        **tokens,
    )


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 400 entries with OPT's special ids; any text can be encoded."""
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    return _wrapped(_opt_tokenizer(models.BPE(), trainer))


@pytest.fixture(scope="session")
def tiny_tokenizer_with_sep() -> PreTrainedTokenizerFast:
    """The same kind with a separator among its special tokens."""
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[*SPECIAL_TOKENS, "<sep>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    return _wrapped(_opt_tokenizer(models.BPE(), trainer), sep_token="<sep>")


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
    tokenizer = _opt_tokenizer(model, None)
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    return _wrapped(tokenizer)
