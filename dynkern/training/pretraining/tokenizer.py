"""The task suite's own BPE: byte-level, words and numbers that come apart where answers need it."""

from __future__ import annotations

from itertools import islice
from typing import Any

from dynkern.data import TEMPLATES
from dynkern.tasks import FAMILIES, records
from dynkern.training.shapes import SPECIAL_TOKENS

# a heading of the `plain` template may become one token, digits stand alone, and so do letters and
# signs: with the suite's few words, most are a token each
_PIECES = (
    r"[\n ]?### (?:Instruction|Input|Response):\n"
    r"| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s"
)
# of the stream, apart from those of training
_SEED = 1


def task_text(record: dict[str, Any]) -> tuple[str, str]:
    """Prompt and response of a record of the suite, as the `plain` template writes them."""
    (prompt,) = TEMPLATES["plain"].render(record["instruction"], record["input"])
    return prompt, record["output"]


def train_task_tokenizer(vocab_size: int, count: int) -> Any:
    """A BPE of vocab_size entries over `count` training records, with OPT's special ids.

    A word at the start of a line is the token that it is behind a space: the text gets a space
    there, and loses it in decoding. Spelling is left out: its letters would become merges.
    ValueError where vocab_size cannot hold 256 bytes and the special tokens.
    """
    from tokenizers import (
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        trainers,
    )
    from transformers import PreTrainedTokenizerFast

    least = 256 + len(SPECIAL_TOKENS)
    if vocab_size < least:
        raise ValueError(f"vocab_size: got {vocab_size}, expected {least} or more")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(Regex(r"\n(?=[\p{L}\p{N}])"), "\n "),
            normalizers.Prepend(" "),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteLevel(), decoders.Replace("\n ", "\n"), decoders.Strip(" ", 1, 0)]
    )
    families = [name for name in FAMILIES if name != "spell"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    stream = islice(records("train", seed=_SEED, families=families), count)
    tokenizer.train_from_iterator(("".join(task_text(record)) for record in stream), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="</s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
    )
