"""KVCache: lanes are handed out, filled, taken back; never more than there are."""

from __future__ import annotations

import pytest
import torch

from dynkern.runtime.kv_cache import KVCache


def make(n_slots: int = 3, n_lanes: int = 8) -> KVCache:
    return KVCache(4, n_slots, n_lanes, 2, 5, 9, torch.float32, torch.device("cpu"))


def prompt_kv(tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (4, tokens, 2, 5)
    return torch.randn(shape), torch.randn(shape)


def test_admit_copies_the_kept_layers_and_drops_the_rest():
    cache = make()
    cache.k.fill_(float("nan"))
    cache.v.fill_(float("nan"))
    keys, values = prompt_kv(6)
    layers = torch.tensor([True, False, True, True])
    cache.admit(1, layers, keys, values)
    assert (cache.lane[:, 1] >= 0).tolist() == layers.tolist()
    assert cache.free_lanes == 5
    assert cache.length[:, 1].tolist() == [6] * 4
    for layer in (0, 2, 3):
        lane = int(cache.lane[layer, 1])
        assert torch.equal(cache.k[lane, :, :6], keys[layer].transpose(0, 1))
        assert torch.equal(cache.v[lane, :, :6], values[layer].transpose(0, 1))
        assert cache.k[lane, :, 6:].isnan().all()
    assert (cache.lane[:, [0, 2]] == -1).all()


def test_lanes_are_distinct_and_come_back():
    cache = make()
    keys, values = prompt_kv(2)
    cache.admit(0, torch.ones(4, dtype=torch.bool), keys, values)
    cache.admit(2, torch.ones(4, dtype=torch.bool), keys, values)
    lanes = cache.lane[:, [0, 2]].flatten().tolist()
    assert sorted(lanes) == list(range(8))
    with pytest.raises(RuntimeError, match="0 free"):
        cache.admit(1, torch.tensor([True, False, False, False]), keys, values)
    cache.release(0)
    assert cache.free_lanes == 4 and (cache.lane[:, 0] == -1).all()
    assert cache.length[:, 0].tolist() == [0] * 4
    cache.admit(1, torch.ones(4, dtype=torch.bool), keys, values)
    cache.release_all()
    assert cache.free_lanes == 8


def test_a_taken_slot_is_refused():
    cache = make()
    keys, values = prompt_kv(1)
    cache.admit(0, torch.tensor([True, False, False, False]), keys, values)
    with pytest.raises(RuntimeError, match="slot 0: taken"):
        cache.admit(0, torch.tensor([True, False, False, False]), keys, values)
    assert cache.free_lanes == 7


def test_fits_and_nbytes():
    cache = make()
    assert cache.fits(3, 8, 9)
    assert not cache.fits(4, 8, 9) and not cache.fits(3, 9, 9) and not cache.fits(3, 8, 10)
    assert cache.nbytes == 2 * 8 * 2 * 9 * 5 * 4
