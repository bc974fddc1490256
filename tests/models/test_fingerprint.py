"""Fingerprints: every change shows, and nothing but the bytes counts."""

from __future__ import annotations

import pytest
import torch

from dynkern.models import fingerprint as room
from dynkern.models.fingerprint import _CHUNK, fingerprint, fingerprints


@pytest.fixture(autouse=True, params=["native", "torch"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "torch":
        monkeypatch.setattr(room, "_kernel", lambda: None)
    elif room._kernel() is None:
        pytest.skip("csrc/cpu has no fingerprint")


SIZES = [0, 1, 2, 3, 7, 131, 2 * _CHUNK - 1, 2 * _CHUNK + 5]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.uint8])
@pytest.mark.parametrize("size", SIZES)
def test_every_single_change_shows(size, dtype):
    tensor = torch.arange(size).to(dtype)
    before = fingerprint(tensor)
    assert before == fingerprint(tensor.clone())
    for at in {0, 1, size // 2, size - 1} & set(range(size)):
        changed = tensor.clone()
        changed.view(torch.uint8)[at * tensor.element_size()] ^= 1
        assert fingerprint(changed) != before


def test_order_and_sign_show():
    torch.manual_seed(0)
    weight = torch.randn(48, 96)
    edits = [
        weight.flip(0),
        weight.flip(1),
        weight[torch.randperm(48)],
        weight[:, torch.randperm(96)],
        -weight,
        weight * 2,
        weight.roll(2, 1),
        weight.roll(1, 0),
        torch.nextafter(weight, torch.tensor(9.0)),
        torch.zeros_like(weight),
    ]
    marks = {fingerprint(weight), *(fingerprint(edit) for edit in edits)}
    assert len(marks) == len(edits) + 1


def test_only_the_bytes_count():
    base = torch.randn(40, 33)
    whole = fingerprint(base)
    assert fingerprint(base.T.contiguous().T) == whole
    assert fingerprint(base.view(-1)) == whole
    # views that start in the middle of a word, or of a storage
    for start in range(5):
        part = base.view(-1)[start : start + 301]
        assert fingerprint(part) == fingerprint(part.clone())
    half = base.bfloat16().view(-1)
    for start in range(5):
        part = half[start : start + 301]
        assert fingerprint(part) == fingerprint(part.clone())


@pytest.mark.parametrize("threads", [1, 2])
def test_many_at_once(threads):
    held = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        tensors = [torch.randn(n + 1) for n in range(20)]
        assert fingerprints(tensors) == [fingerprint(tensor) for tensor in tensors]
    finally:
        torch.set_num_threads(held)
