"""DecoderSpec: the numbers and switches of a decoder, all that the runtime knows of a model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DecoderSpec:
    """Shape and switches of a decoder-only transformer with learned positions.

    pre_norm: norm ahead of each sublayer (else after its residual addition, as OPT-350m).
    activation: "relu" or "gelu". embed_size: width of the token embedding, projected to
    hidden_size and back where they differ. position_offset: unused rows ahead of the position
    table (OPT: 2). max_positions: longest row in tokens.
    """

    vocab_size: int
    num_layers: int
    hidden_size: int
    num_heads: int
    ffn_size: int
    max_positions: int
    embed_size: int
    pre_norm: bool
    activation: str
    bias: bool
    norm_affine: bool
    final_norm: bool
    tied_head: bool
    bos_token_id: int
    eos_token_id: int
    pad_token_id: int
    position_offset: int = 2
    norm_eps: float = 1e-5

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def attention_scale(self) -> float:
        """Factor on q·k."""
        return self.head_size**-0.5
