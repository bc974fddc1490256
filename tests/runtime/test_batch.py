"""What a batch keeps of its rows, and what passes report of theirs."""

from __future__ import annotations

import pytest
import torch

from dynkern.runtime.batch import DecodeBatch, Passes, PassResult
from dynkern.runtime.cells import cells


def a_pass(layers=3, slots=4):
    return PassResult(
        torch.randint(0, 99, (slots,)),
        torch.rand(layers, slots) < 0.5,
        torch.randint(0, 9, (layers,)),
        torch.tensor(7),
    )


def same(one, other):
    names = ("token", "ran", "filled", "head_rows")
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)


@pytest.mark.parametrize("count", [1, 3])
def test_passes_are_those_that_they_were_made_of(count):
    results = [a_pass() for _ in range(count)]
    passes = Passes.of(results)
    assert len(passes) == count and Passes.of(passes) is passes
    assert all(same(one, other) for one, other in zip(passes, results, strict=True))
    assert same(passes[-1], results[-1])
    cut = passes[1:]
    assert isinstance(cut, Passes) and len(cut) == count - 1
    with pytest.raises(IndexError):
        passes[count]


def test_cells_are_the_tensors_own():
    for dtype in (torch.int64, torch.int32, torch.bool):
        tensor = torch.zeros(2, 3, dtype=dtype)
        cells(tensor)[1, 2] = 1
        cells(tensor)[:, 0] = True
        assert tensor.tolist() == [[1, 0, 0], [1, 0, 1]]


def test_rows_come_and_go_in_tensors_that_stay():
    batch = DecodeBatch(3, 4, "project", None, 0, torch.device("cpu"))
    names = ("token", "position", "request", "step", "alive", "route")
    places = [getattr(batch, name).data_ptr() for name in names]
    route = torch.tensor([True, False, True])
    batch.admit(2, 5, 6, 7, route)
    batch.admit(0, 8, 9, 10, None)
    assert batch.token.tolist() == [8, 0, 5, 0] and batch.position.tolist() == [9, 0, 6, 0]
    assert batch.request.tolist() == [10, 0, 7, 0] and batch.step.tolist() == [1, 0, 1, 0]
    assert batch.alive.tolist() == [True, False, True, False]
    assert torch.equal(batch.route[:, 2], route) and batch.route[:, 0].all()
    assert batch.planned_rows().union == [True, True, True]
    batch.retire(0)
    assert not batch.alive[0] and not batch.route[:, 0].any()
    assert batch.planned_rows().union == route.tolist()
    assert [getattr(batch, name).data_ptr() for name in names] == places
