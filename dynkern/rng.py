"""Counter-based randomness: Philox-4x32-10 over (request, token, layer, stream) under a seed.

A draw depends on nothing but its counter, so it is the same on every backend, in every batch, in
any order of evaluation. Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
SC 2011; the tests hold the known-answer vectors of that publication's library.
"""

from __future__ import annotations

import torch
from torch import Tensor

STREAM_PLAN = 0  # random planned routes, one draw a sequence (token = 0)
STREAM_STEP = 1  # routes redrawn in every pass
STREAM_GATE = 2  # sampled controller gates
STREAM_SAMPLE = 3  # token sampling; the layer counter carries the block of the vocabulary

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF
_ROUNDS = 10


def philox(counter: tuple[Tensor | int, ...], seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four 32-bit words (as int64 tensors) for every counter.

    counter: four int64 tensors or ints that broadcast together, each taken modulo 2**32.
    seed: 0 <= seed < 2**64, the key. Raises ValueError outside that range.
    """
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"seed: got {seed}, expected an integer from 0 to 2**64 - 1")
    device = next((c.device for c in counter if isinstance(c, Tensor)), None)
    # a number is filled in on the device: copied there, it could not be captured in a graph
    full = (torch.full((), c, device=device) if isinstance(c, int) else c.long() for c in counter)
    words = torch.broadcast_tensors(*full)
    c0, c1, c2, c3 = (w & _MASK for w in words)
    k0, k1 = seed & _MASK, seed >> 32
    for _ in range(_ROUNDS):
        # int64 products wrap modulo 2**64, which leaves both 32-bit halves intact
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        high0, low0 = (p0 >> 32) & _MASK, p0 & _MASK
        high1, low1 = (p1 >> 32) & _MASK, p1 & _MASK
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def uniform(
    seed: int,
    request: Tensor | int,
    token: Tensor | int,
    layer: Tensor | int,
    stream: int,
) -> Tensor:
    """float32 uniforms in [0, 1), one for each broadcast counter, exact multiples of 2**-24."""
    word = philox((request, token, layer, stream), seed)[0]
    return (word >> 8).to(torch.float32) * 2.0**-24


def layer_uniforms(
    seed: int, request: Tensor, token: Tensor | int, num_layers: int, stream: int
) -> Tensor:
    """Uniforms [num_layers, B] for request ids [B] and token counters [B] (or one int)."""
    layer = torch.arange(num_layers, device=request.device)[:, None]
    token = token[None, :] if isinstance(token, Tensor) else token
    return uniform(seed, request[None, :], token, layer, stream)


def vocabulary_uniforms(seed: int, request: Tensor, token: Tensor, vocab_size: int) -> Tensor:
    """Uniforms in (0, 1) for every vocabulary entry: [B, vocab_size], four entries a counter."""
    blocks = torch.arange((vocab_size + 3) // 4, device=request.device)[None, :]
    words = philox((request[:, None], token[:, None], blocks, STREAM_SAMPLE), seed)
    return open_uniforms(torch.stack(words, dim=-1).flatten(1)[:, :vocab_size])


def open_uniforms(words: Tensor) -> Tensor:
    """float32 uniforms in (0, 1) of words of philox."""
    bits = words >> 8
    # half a step off zero: the logarithm of a draw must be finite. The largest draw would round to
    # 1 and its Gumbel value to infinity: with 50,272 entries, three tokens in a thousand would be
    # such an entry, whatever its logit
    return ((bits.to(torch.float32) + 0.5) * 2.0**-24).clamp(max=1 - 2.0**-24)
