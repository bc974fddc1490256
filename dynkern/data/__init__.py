"""Records and prompts: what a model is asked, and what a good answer looks like."""

from __future__ import annotations

from dynkern.data.records import Record, alpaca_indices, load_records
from dynkern.data.templates import (
    TEMPLATES,
    EncodedPrompt,
    encode_prompt,
    prompt_cap,
    prompt_text,
    response_text,
)

__all__ = [
    "TEMPLATES",
    "EncodedPrompt",
    "Record",
    "alpaca_indices",
    "encode_prompt",
    "load_records",
    "prompt_cap",
    "prompt_text",
    "response_text",
]
