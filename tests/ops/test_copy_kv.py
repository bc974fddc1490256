"""copy_kv: a prompt's K/V to lanes and to tensors of its own, as indexing says, nothing else."""

from __future__ import annotations

import random

import pytest
import torch

from dynkern.kernels import native
from dynkern.kernels.cpu import copy_kv as module

DTYPES = (torch.float32, torch.bfloat16, torch.float64)


def _case(dtype: torch.dtype):
    draw = random.Random()
    layers, lanes = draw.randint(1, 9), draw.randint(1, 14)
    tokens, heads, size = draw.randint(1, 70), draw.randint(1, 9), draw.randint(1, 40)
    start = draw.randint(0, 3)
    whole = torch.randn(2, layers, start + tokens + 2, heads, size).to(dtype)
    source = tuple(whole[:, :, start : start + tokens])
    target = torch.full((2, lanes, heads, tokens + draw.randint(0, 9), size), torch.nan).to(dtype)
    kept = draw.sample(range(layers), draw.randint(1, min(layers, lanes)))
    return source, target, kept, draw.sample(range(lanes), len(kept))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("built", [True, False], ids=["native", "torch"])
def test_it_is_indexing(dtype, built, monkeypatch):
    if built and native.cpu_missing() is not None:
        pytest.skip(f"csrc/cpu: {native.cpu_missing()}")
    if not built:
        monkeypatch.setattr(module.native, "cpu_missing", lambda: "not built")
    for _ in range(30):
        source, lanes, kept, places = _case(dtype)
        tokens = source[0].shape[1]
        expected = lanes.clone()
        for whole, part in zip(expected, source, strict=True):
            whole[places, :, :tokens] = part[kept].transpose(1, 2)
        target = tuple(part[:, :, :tokens].transpose(1, 2) for part in lanes)
        assert module.copies(source, target) == built
        module.copy_kv(source, target, kept, places)
        assert torch.equal(lanes.nan_to_num(7e7), expected.nan_to_num(7e7))


def test_what_the_library_does_not_take_is_copied_by_torch():
    source, lanes, kept, places = _case(torch.float32)
    target = tuple(
        torch.full((len(lanes[0]), *part.shape[1:]), torch.nan, dtype=torch.float64)
        for part in source
    )
    assert not module.copies(source, target)
    module.copy_kv(source, target, kept, places)
    for whole, part in zip(target, source, strict=True):
        assert torch.equal(whole[places], part[kept].double())
