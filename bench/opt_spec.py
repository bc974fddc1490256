"""The structure of OPT from 125m on (all but 350m), at any size."""

from __future__ import annotations

from dynkern.models.spec import DecoderSpec


def opt_spec(
    vocab_size: int, num_layers: int, hidden_size: int, num_heads: int, ffn_size: int
) -> DecoderSpec:
    """Pre-norm, biases, tied head, 2048 positions."""
    return DecoderSpec(
        vocab_size=vocab_size,
        num_layers=num_layers,
        hidden_size=hidden_size,
        num_heads=num_heads,
        ffn_size=ffn_size,
        max_positions=2048,
        embed_size=hidden_size,
        pre_norm=True,
        activation="relu",
        bias=True,
        norm_affine=True,
        final_norm=True,
        tied_head=True,
        bos_token_id=2,
        eos_token_id=2,
        pad_token_id=1,
    )
