"""Models from scratch: OPT shapes by name, and a byte-level BPE learned from the data."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from dynkern.data import Record, prompt_text

# layers, hidden, heads; published OPT sizes in the pre-norm form
SHAPES = {
    "opt-125m": (12, 768, 12),
    "opt-1.3b": (24, 2048, 32),
    "opt-2.7b": (32, 2560, 32),
    "opt-6.7b": (32, 4096, 32),
}
# OPT's own order; </s> begins and ends a sequence
SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>")
_PATTERN = re.compile(r"([1-9]\d{0,2})x([1-9]\d{0,4})")


def shape_config(name: str, vocab_size: int, max_positions: int) -> Any:
    """OPTConfig of a shape: one of SHAPES, or "12x256" for 12 layers of width 256.

    Heads of such a shape are 32 wide below a width of 512 and 64 from there on. ValueError for
    another name, or a width that heads do not divide.
    """
    from transformers import OPTConfig

    match = _PATTERN.fullmatch(name)
    if name in SHAPES:
        layers, hidden, heads = SHAPES[name]
    elif match:
        layers, hidden = int(match[1]), int(match[2])
        size = 32 if hidden < 512 else 64
        if hidden % size:
            raise ValueError(f"config: got {name!r}, expected a width that is a multiple of {size}")
        heads = hidden // size
    else:
        raise ValueError(
            f"config: got {name!r}, expected LAYERSxWIDTH such as 12x256, or one of "
            f"{', '.join(SHAPES)}"
        )
    return OPTConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        ffn_dim=4 * hidden,
        max_position_embeddings=max_positions,
        word_embed_proj_dim=hidden,
        dropout=0.0,
        attention_dropout=0.0,
    )


def train_tokenizer(records: Iterable[Record], template: str, vocab_size: int) -> Any:
    """A byte-level BPE of vocab_size entries over prompts and responses, with OPT's special ids.

    ValueError where vocab_size cannot hold 256 bytes and the special tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    least = 256 + len(SPECIAL_TOKENS)
    if vocab_size < least:
        raise ValueError(f"vocab_size: got {vocab_size}, expected {least} or more")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = (prompt_text(record, template) + record.output for record in records)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="</s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
    )
