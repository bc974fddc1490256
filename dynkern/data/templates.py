"""Prompt templates: how a record becomes the ids that a model reads.

The `alpaca` template is that of arXiv 2410.20022; `plain` is what small models trained on
instruction data with a fixed layout read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dynkern.data.records import Record

# stands where the tokenizer's sep_token goes; OPT's tokenizer has none and reads it as plain text
SEP = "<SEP>"

ALPACA_HEAD = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request. ### Instruction:"
)


@dataclass(frozen=True)
class Template:
    """render(instruction, input): texts between which separators go. max_prompt_tokens: cap on a
    prompt, BOS included, where the caller sets none; None is no cap.
    """

    render: Callable[[str, str], tuple[str, ...]]
    max_prompt_tokens: int | None


@dataclass(frozen=True)
class EncodedPrompt:
    """ids: BOS first. truncated: user text was cut to fit the cap."""

    ids: list[int]
    truncated: bool


def _alpaca(instruction: str, input: str) -> tuple[str, ...]:
    section = f"\n### Input:{input}" if input.strip() else ""
    return ALPACA_HEAD, f"{instruction}{section}\n### Response:", ""


def _plain(instruction: str, input: str) -> tuple[str, ...]:
    return (f"### Instruction:\n{instruction}\n### Input:\n{input}\n### Response:\n",)


TEMPLATES: dict[str, Template] = {
    "alpaca": Template(_alpaca, max_prompt_tokens=128),
    "plain": Template(_plain, max_prompt_tokens=None),
}


def prompt_text(record: Record, template: str, sep: str = SEP) -> str:
    """The untruncated prompt as one text, without BOS. ValueError for an unknown template."""
    return sep.join(_template(template).render(record.instruction, record.input))


def response_text(record: Record) -> str:
    """The text that follows the prompt when training; EOS follows it by id."""
    return record.output


def prompt_cap(template: str, room: int) -> int:
    """Most ids a prompt may have where a model leaves `room`: that, or the template's own cap if
    it is lower. ValueError for an unknown template.
    """
    own = _template(template).max_prompt_tokens
    return room if own is None else min(own, room)


def encode_prompt(
    tokenizer: Any,
    record: Record,
    template: str,
    max_prompt_tokens: int | None = None,
    bos_token_id: int = 2,
) -> EncodedPrompt:
    """The record as prompt ids, at most `max_prompt_tokens` of them with BOS.

    tokenizer: of transformers. template: "alpaca" or "plain". max_prompt_tokens: None takes the
    template's own cap (128 for alpaca, none for plain). BOS is put by id, once, and the tokenizer
    adds nothing. In the alpaca template `<SEP>` is the tokenizer's sep_token, and the literal text
    "<SEP>" where it has none. User text that spells a special token ("</s>") is read as plain
    text: data cannot end a sequence or begin another.

    A prompt that is too long becomes that of the same record with its input cut at the end, as
    much of it kept as fits, then, with no input left, with its instruction cut. The template is
    never cut; without any input the alpaca template has no "### Input:" section.

    ValueError without a tokenizer, for an unknown template, and where the template alone exceeds
    the cap.
    """
    chosen = _template(template)
    if tokenizer is None:
        raise ValueError("tokenizer: got None, expected the model's tokenizer to encode a prompt")
    cap = chosen.max_prompt_tokens if max_prompt_tokens is None else max_prompt_tokens

    def encode(instruction: str, input: str) -> list[int]:
        return _encode(tokenizer, chosen.render(instruction, input), bos_token_id)

    instruction, input = record.instruction, record.input
    ids = encode(instruction, input)
    if cap is None or len(ids) <= cap:
        return EncodedPrompt(ids, truncated=False)
    bare = encode(instruction, "")
    if len(bare) <= cap:
        ids = _longest_fit(input, lambda text: encode(instruction, text), bare, cap)
        return EncodedPrompt(ids, truncated=True)
    bare = encode("", "")
    if len(bare) > cap:
        raise ValueError(
            f"max_prompt_tokens: got {cap}, expected {len(bare)} or more, which the {template} "
            "template takes without any text in it"
        )
    ids = _longest_fit(instruction, lambda text: encode(text, ""), bare, cap)
    return EncodedPrompt(ids, truncated=True)


def _longest_fit(
    text: str, encode: Callable[[str], list[int]], bare: list[int], cap: int
) -> list[int]:
    """Ids with the longest beginning of `text` that fits; `bare` fits, all of `text` does not.

    The whole prompt is tokenised anew for each candidate, since merges cross the borders between
    template and text; growing from below keeps that cheap for a text much longer than the cap.
    """
    fits, ids = 0, bare
    too_long = min(cap, len(text))
    while too_long < len(text) and len(grown := encode(text[:too_long])) <= cap:
        fits, ids = too_long, grown
        too_long = min(2 * too_long, len(text))
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        candidate = encode(text[:middle])
        if len(candidate) <= cap:
            fits, ids = middle, candidate
        else:
            too_long = middle
    return ids


def _encode(tokenizer: Any, parts: tuple[str, ...], bos_token_id: int) -> list[int]:
    def plain_ids(text: str) -> list[int]:
        # verbose=False: the length is judged here, not by the tokenizer's own limit
        return tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)[
            "input_ids"
        ]

    if getattr(tokenizer, "sep_token", None) is None:
        return [bos_token_id, *plain_ids(SEP.join(parts))]
    # a special token always splits the text, so encoding part by part changes no merge
    ids = [bos_token_id, *plain_ids(parts[0])]
    for part in parts[1:]:
        ids += [tokenizer.sep_token_id, *(plain_ids(part) if part else [])]
    return ids


def _template(name: str) -> Template:
    if name not in TEMPLATES:
        raise ValueError(f"template: got {name!r}, expected one of {', '.join(TEMPLATES)}")
    return TEMPLATES[name]
