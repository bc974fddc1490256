"""Tokenizers of OPT's kind, made on the fly: byte-level BPE with OPT's special ids."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

# OPT's own order: fairseq keeps the first four ids of a dictionary for these
SPECIAL_TOKENS = ["<s>", "<pad>", "</s>", "<unk>"]


def byte_level(model: models.BPE) -> Tokenizer:
    """An untrained byte-level tokenizer around a model."""
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def wrapped(tokenizer: Tokenizer, **tokens: str) -> PreTrainedTokenizerFast:
    """As transformers would load it; `</s>` is BOS and EOS."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="</s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        **tokens,
    )


def trained(
    sentences: Sequence[str], vocab_size: int, extra_special: Sequence[str] = (), **tokens: str
) -> PreTrainedTokenizerFast:
    """A BPE of `vocab_size` entries learned from a few sentences; any text can be encoded."""
    tokenizer = byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL_TOKENS, *extra_special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences, trainer)
    return wrapped(tokenizer, **tokens)
