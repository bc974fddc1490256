"""Tile shapes of the Triton kernels: fixed tables by shape, chosen on the host without a device.

They were chosen by what compiles without spills for sm_80 to sm_100 (bench/aot.py) and by counting
bytes in flight; none was timed yet, since no kernel has run on a GPU. Choices depend on capacities,
never on n_active, which only the device knows; under batch_invariant on the model's sizes alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from dynkern.kernels.invariance import is_batch_invariant

# programs that fill an H100's 132 SMs twice; a smaller grid splits its reduction
TARGET_PROGRAMS = 264
MAX_SPLITS = 16
# rows up to which the weights, not the rows, are the tall operand of a tile
SKINNY_ROWS = 128
# rows up to which one program a row finds its places by a scan over all row lists
SCANNED_ROWS = 1024
# rows of one launch under batch_invariant, where sums of every split are kept: 64 MiB at most for
# 4096 outputs in 4 splits
INVARIANT_ROWS = 1024
# programs that share a row's head under batch_invariant, whatever the rows and the room
INVARIANT_SPLITS = 8


@dataclass(frozen=True)
class Tile:
    """Block shape of a matrix product (rows of x, outputs, inputs) and how it runs."""

    rows: int
    outputs: int
    inputs: int
    num_warps: int
    num_stages: int
    splits: int = 1


# rows up to -> tile; 16-bit dtypes, then float32, whose products run on plain FMA units
_SKINNY = {
    2: {16: Tile(16, 64, 128, 4, 3), 32: Tile(32, 64, 128, 4, 3), 128: Tile(64, 64, 64, 4, 4)},
    4: {16: Tile(16, 64, 32, 4, 3), 32: Tile(32, 64, 32, 4, 3), 128: Tile(64, 64, 16, 4, 3)},
}
_TALL = {2: Tile(128, 128, 64, 8, 3), 4: Tile(64, 64, 16, 4, 3)}
_HEAD = {
    2: {16: Tile(16, 128, 64, 4, 4), 32: Tile(32, 128, 64, 4, 4), 128: Tile(64, 128, 64, 8, 3)},
    4: {16: Tile(16, 64, 32, 4, 3), 32: Tile(32, 64, 32, 4, 3), 128: Tile(64, 64, 16, 4, 3)},
}


def is_tall(rows: int) -> bool:
    """Whether ragged_linear's kernel is the one for many rows."""
    return rows > SKINNY_ROWS and not is_batch_invariant()


def linear(rows: int, n_out: int, n_in: int, itemsize: int) -> Tile:
    """The tile of ragged_linear for `rows` rows of capacity."""
    if is_tall(rows):
        return _TALL[itemsize]
    table = _SKINNY[itemsize]
    if is_batch_invariant():
        tile = table[max(table)]
        rows = tile.rows  # one tile of them decides how the inputs are split
    else:
        tile = _up_to(table, rows)
    programs = ceil_div(n_out, tile.outputs) * ceil_div(rows, tile.rows)
    # a split shorter than two steps of the loop has nothing to overlap
    most = max(1, n_in // (2 * tile.inputs))
    splits = min(MAX_SPLITS, most, max(1, TARGET_PROGRAMS // max(1, programs)))
    splits = 1 << (splits.bit_length() - 1)
    return replace(tile, splits=splits)


def bypass_linear(rows: int, n_out: int, n_in: int, itemsize: int) -> Tile:
    """The tile of residual_bypass_linear, whose rows pass through registers: 16 at a time."""
    return linear(min(rows, 16), n_out, n_in, itemsize)


def head(rows: int, itemsize: int) -> Tile:
    """The tile of lm_head_argmax: the vocabulary fills a GPU without splits."""
    most = max(_HEAD[itemsize])
    return _up_to(_HEAD[itemsize], most if is_batch_invariant() else min(rows, most))


@dataclass(frozen=True)
class DecodeAttention:
    """Cache entries of a step, and programs that share one row's head."""

    entries: int
    splits: int
    num_warps: int = 4


def decode_attention(
    rows: int, heads: int, positions: int, block_size: int, itemsize: int
) -> DecodeAttention:
    """block_size: the head size, padded to a power of two. positions: a lane's capacity."""
    # a step loads 8 KiB of K and of V, 64 bytes each a thread; twice as much spills on sm_80
    entries = min(128, max(16, 8192 // (itemsize * block_size)))
    if is_batch_invariant():
        return DecodeAttention(entries, INVARIANT_SPLITS)
    most = max(1, ceil_div(positions, 2 * entries))
    splits = min(MAX_SPLITS, most, max(1, TARGET_PROGRAMS // max(1, rows * heads)))
    return DecodeAttention(entries, 1 << (splits.bit_length() - 1))


@dataclass(frozen=True)
class PrefillAttention:
    """Queries and keys of a step."""

    queries: int
    keys: int
    num_warps: int
    num_stages: int


def prefill_attention(block_size: int, itemsize: int) -> PrefillAttention:
    """block_size: the head size, padded to a power of two."""
    if itemsize == 4:
        return (
            PrefillAttention(32, 32, 4, 1) if block_size <= 64 else PrefillAttention(16, 16, 4, 1)
        )
    if block_size <= 64:
        return PrefillAttention(128, 64, 8, 3)
    if block_size <= 128:
        return PrefillAttention(128, 32, 8, 2)
    return PrefillAttention(64, 32, 8, 2)


def row_warps(block_hidden: int) -> int:
    """Warps of a program that holds one row of `block_hidden` elements: 16 a thread, 1 to 16."""
    return min(16, max(1, block_hidden // 512))


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def _up_to(table: dict[int, Tile], rows: int) -> Tile:
    return next(tile for most, tile in table.items() if rows <= most)
