"""Muon's step beside torch's own, and what it makes of singular values."""

from __future__ import annotations

import math

import pytest
import torch

from dynkern.training.pretraining.muon import SharedMuon, polar_factors
from support.tolerances import MUON_STEPS, POLAR_FACTORS, POLAR_SHARES

SHAPES = [(17, 17), (17, 40), (40, 17), (17, 40), (1, 5)]
SETTINGS = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.9}
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(torch.seed())


def matrices(generator, dtype):
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in SHAPES]


def parameters(values):
    return [torch.nn.Parameter(value.clone()) for value in values]


@pytest.mark.parametrize("shape", sorted(set(SHAPES)))
def test_singular_vectors_stay_and_values_go_through_the_polynomial(generator, shape):
    stack = torch.randn((3, *shape), generator=generator, dtype=torch.float64)
    found = polar_factors(stack, COEFFICIENTS, 5)
    u, values, v = torch.linalg.svd(stack, full_matrices=False)
    values = values / values.norm(dim=1, keepdim=True)
    a, b, c = COEFFICIENTS
    for _ in range(5):
        values = a * values + b * values**3 + c * values**5
    assert (found - u * values[:, None] @ v).abs().max() < POLAR_FACTORS
    # of one direction after five steps: short of 1 by no more than this
    assert 0.6 < values.max() < 1.3


def test_a_matrix_of_zeros_stays():
    assert not polar_factors(torch.zeros(2, 3, 4), COEFFICIENTS, 5).any()


@pytest.mark.parametrize("dtype", MUON_STEPS)
def test_steps_are_those_of_torch(generator, dtype):
    start = matrices(generator, torch.float32)
    ours, theirs = parameters(start), parameters(start)
    one = SharedMuon(ours, dtype, **SETTINGS)
    other = torch.optim.Muon(theirs, adjust_lr_fn="match_rms_adamw", **SETTINGS)
    for step in range(4):
        for place, gradient in enumerate(matrices(generator, torch.float32)):
            # one is left out now and then, as dropped layers are
            left_out = place == step
            for parameter in (ours[place], theirs[place]):
                parameter.grad = None if left_out else gradient.clone()
        one.step()
        other.step()
        for mine, its, shape in zip(ours, theirs, SHAPES, strict=True):
            # of the length of a step
            length = SETTINGS["lr"] * 0.2 * math.sqrt(max(shape))
            assert (mine - its).abs().max() < MUON_STEPS[dtype] * length * (step + 1)
    assert not torch.allclose(ours[0], start[0])
    assert len(one.state_dict()["state"]) == len(SHAPES)


def test_a_state_that_was_kept_goes_on_to_the_same_bits(generator):
    start = matrices(generator, torch.float32)
    gradients = [matrices(generator, torch.float32) for _ in range(3)]
    ends = []
    for kept in (False, True):
        held = parameters(start)
        optimizer = SharedMuon(held, **SETTINGS)
        for gradient in gradients:
            if kept:
                state = optimizer.state_dict()
                optimizer = SharedMuon(held, **SETTINGS)
                optimizer.load_state_dict(state)
            for parameter, value in zip(held, gradient, strict=True):
                parameter.grad = value.clone()
            optimizer.step()
        ends.append(held)
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_no_gradient_no_step(generator):
    start = matrices(generator, torch.float32)
    held = parameters(start)
    SharedMuon(held, **SETTINGS).step()
    assert all(torch.equal(a, b) for a, b in zip(held, start, strict=True))


@pytest.mark.parametrize("size", [2, 3, 8])
def test_shares_make_up_the_whole(generator, size):
    """Each of the processes finds its matrices, none finds another's."""
    given = matrices(generator, torch.float32)

    class Alone:
        def __init__(self, rank: int) -> None:
            self.rank, self.size, self.found = rank, size, None

        def add_up(self, numbers: torch.Tensor) -> None:
            self.found = numbers.clone()

    group = {"ns_coefficients": COEFFICIENTS, "ns_steps": 5}
    parts = []
    for rank in range(size):
        alone = Alone(rank)
        SharedMuon(parameters(given), ranks=alone)._orthogonal(given, group)
        parts.append(alone.found)
    whole = torch.cat(
        [m.flatten() for m in SharedMuon(parameters(given))._orthogonal(given, group)]
    )
    assert torch.allclose(sum(parts), whole, rtol=0, atol=POLAR_SHARES)
    assert ((torch.stack(parts) != 0).sum(0) <= 1).all()
