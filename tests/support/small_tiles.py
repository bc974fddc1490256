"""A pytest plugin: tiles so small that the samples fill many of them.

    python -m pytest -p support.interpreter -p support.small_tiles ...

Splits, tall products, several steps of every loop and launches for many rows are then met at the
sizes of tests/support/samples.py.
"""

from __future__ import annotations

from dynkern.kernels.triton import kv_copy_forward, route_compact, sample, tuning
from dynkern.kernels.triton.tuning import DecodeAttention, PrefillAttention, Tile

tuning.SKINNY_ROWS = 8
tuning.SCANNED_ROWS = 8
tuning.TARGET_PROGRAMS = 1 << 20
_SMALL = {8: Tile(4, 32, 16, 4, 1)}
for _size in (2, 4):
    tuning._SKINNY[_size] = _SMALL
    tuning._TALL[_size] = Tile(2, 64, 32, 4, 1)
    tuning._HEAD[_size] = {8: Tile(4, 64, 32, 4, 1)}
tuning.decode_attention = lambda *sizes: DecodeAttention(4, 4)
tuning.prefill_attention = lambda *sizes: PrefillAttention(8, 4, 4, 1)
route_compact._MAX_BLOCK = 16
kv_copy_forward._PIECE = 8
sample._BLOCK = 64
