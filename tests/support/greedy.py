"""Greedy ids against transformers': equal, up to a pass that rounding alone may decide."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import zip_longest

import torch
from torch import Tensor

from support.tolerances import LOGITS


def new_tokens(ids: Tensor, width: int, eos: Iterable[int]) -> list[list[int]]:
    """Generated ids of each row of a padded batch [B, width + new], up to the first EOS."""
    ends = set(eos)
    rows = []
    for row in ids[:, width:].tolist():
        stop = next((i + 1 for i, token in enumerate(row) if token in ends), len(row))
        rows.append(row[:stop])
    return rows


def assert_same_greedy(
    module, prompts: list[list[int]], actual: list[list[int]], expected: list[list[int]]
) -> None:
    """actual, expected: generated ids of each row. module: transformers', on the unpadded row.

    The first difference of a row must lie in a pass whose two largest logits are nearer than both
    sides may err; what follows it is not compared, since the row's texts differ from there on.
    """
    for row, (prompt, got, want) in enumerate(zip(prompts, actual, expected, strict=True)):
        if got == want:
            continue
        pairs = enumerate(zip_longest(got, want))
        at, (ours, theirs) = next((i, pair) for i, pair in pairs if pair[0] != pair[1])
        where = f"row {row}, new token {at}: got {ours}, expected {theirs}"
        assert None not in (ours, theirs), f"{where}: one stopped earlier"
        with torch.no_grad():
            logits = module(torch.tensor([prompt + want[:at]])).logits[0, -1]
        margin = logits.max() - logits[[ours, theirs]].min()
        allowed = 2 * LOGITS[logits.dtype] * logits.abs().max()
        assert margin <= allowed, f"{where}, margin {margin:.3g} > {allowed:.3g}"
