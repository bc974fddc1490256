"""sample at its edges: ties, masks, history, counters, and the distribution that it draws from."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dynkern import rng, use_backend
from dynkern.ops import sample
from support.errors import one_line_error

ZERO = torch.zeros(1, dtype=torch.int64)


def drawn(logits: list[float], count: int = 400, **options) -> set[int]:
    """The tokens that `count` requests draw from the same logits."""
    rows = torch.tensor(logits).expand(count, -1)
    step = torch.zeros(count, dtype=torch.int64)
    return set(sample(rows, None, torch.arange(count), step, **options).tolist())


def greedy(logits: list[float], history: list[int], penalty: float) -> int:
    seen = torch.tensor([history])
    options = {"temperature": 0.0, "repetition_penalty": penalty}
    return int(sample(torch.tensor([logits]), seen, ZERO, ZERO, **options))


@pytest.mark.parametrize("temperature", [0.0, 0.5, 2.0])
def test_top_k_of_one_is_greedy(temperature):
    # the second token would be drawn in almost every second row
    assert drawn([0.0, 1.0, 1.1, -1.0], top_k=1, temperature=temperature) == {2}


def test_top_k_keeps_the_lower_ids_of_a_tie():
    assert drawn([1.0, 2.0, 1.0, 2.0, 1.0], top_k=3) == {0, 1, 3}
    assert drawn([1.0] * 9, top_k=4) == {0, 1, 2, 3}


@pytest.mark.parametrize("top_k", [0, 3, 99])
def test_top_k_of_the_whole_vocabulary_or_more_is_off(top_k):
    assert drawn([0.0, 0.1, 0.2], top_k=top_k) == {0, 1, 2}


@pytest.mark.parametrize(
    ("top_p", "kept"),
    # four equal tokens: each has exactly 1/4, also in float32
    [(1e-9, {0}), (0.25, {0}), (0.2500001, {0, 1}), (0.5, {0, 1}), (0.75, {0, 1, 2})],
)
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p, kept):
    assert drawn([3.0] * 4, top_p=top_p) == kept


def test_top_p_counts_the_mass_that_top_k_has_left():
    # of all five, two tokens hold 0.4; of the three that top_k leaves, 2/3
    assert drawn([1.0] * 5, top_k=3, top_p=0.6) == {0, 1}
    assert drawn([1.0] * 5, top_k=3, top_p=0.7) == {0, 1, 2}


@pytest.mark.parametrize(
    ("logits", "history", "penalty", "expected"),
    [
        ([2.0, 1.5, 0.0], [-1, -1], 2.0, 0),  # nothing seen
        ([2.0, 1.5, 0.0], [0, -1], 2.0, 1),  # id 0 is an id as any other
        ([2.0, 1.5, 0.0], [0, 0], 1.2, 0),  # seen twice, penalised once: 2 / 1.2 > 1.5
        ([-1.0, -1.5, -3.0], [0, -1], 2.0, 1),  # negative logits are multiplied
        ([-2.0, -1.5, -3.0], [0, -1], 0.5, 0),  # and a penalty below 1 favours
        ([2.0, 1.5, 0.0], [0, 1], 1.0, 0),  # 1 is off
    ],
)
def test_repetition_penalty(logits, history, penalty, expected):
    assert greedy(logits, history, penalty) == expected


def test_rows_have_histories_of_their_own():
    logits = torch.tensor([[2.0, 1.5], [2.0, 1.5]])
    history = torch.tensor([[-1], [0]])
    pair = torch.tensor([0, 1])
    token = sample(logits, history, pair, pair, temperature=0.0, repetition_penalty=2.0)
    assert token.tolist() == [0, 1]


@pytest.mark.parametrize("options", [{}, {"top_k": 7, "top_p": 0.9, "repetition_penalty": 1.3}])
def test_a_draw_is_the_same_alone_and_in_any_batch(options):
    make = torch.Generator().manual_seed(4)
    logits = torch.randn(33, 131, generator=make)
    history = torch.randint(-1, 131, (33, 6), generator=make)
    request = torch.randperm(1000, generator=make)[:33]
    step = torch.randint(50, (33,), generator=make)
    batch = sample(logits, history, request, step, 5, **options)
    order = torch.randperm(33, generator=make)
    shuffled = sample(logits[order], history[order], request[order], step[order], 5, **options)
    assert torch.equal(shuffled, batch[order])
    for i in range(33):
        row = slice(i, i + 1)
        alone = sample(logits[row], history[row], request[row], step[row], 5, **options)
        assert alone == batch[i], i


def test_seed_request_and_step_each_make_another_draw():
    flat, n = torch.zeros(64, 131), torch.arange(64)
    base = sample(flat, None, n, n, 1)
    assert torch.equal(base, sample(flat, None, n, n, 1))
    for request, step, seed in ((n, n, 2), (n + 64, n, 1), (n, n + 64, 1)):
        # 64 independent draws of 131 agree in half a place on average
        assert (sample(flat, None, request, step, seed) == base).sum() < 8


@pytest.mark.parametrize(("step", "entry"), [(18180, 3001), (20452, 2989)])
def test_the_largest_draw_wins_by_no_more_than_its_size(step, entry):
    """At these counters an entry's random word is the largest there is."""
    logits = torch.zeros(1, 4096)
    logits[0, 7], logits[0, entry] = 50.0, -50.0
    for options in ({}, {"top_k": 1}, {"top_p": 0.5}):
        assert int(sample(logits, None, ZERO, torch.tensor([step]), **options)) == 7
    # with equal logits it does win
    assert int(sample(torch.zeros(1, 4096), None, ZERO, torch.tensor([step]))) == entry


def chi_square(token: Tensor, chance: Tensor) -> float:
    seen = torch.bincount(token, minlength=len(chance)).double()
    expected = chance * len(token)
    assert not seen[chance == 0].any()
    used = chance > 0
    return float(((seen - expected) ** 2 / expected)[used].sum())


@pytest.mark.parametrize("over", ["request", "step"])
@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.5, 0, 1.0), (2.0, 3, 1.0), (1.0, 0, 0.8)]
)
def test_frequencies_are_those_of_the_kept_softmax(temperature, top_k, top_p, over):
    logits, count = torch.tensor([2.0, 0.0, 1.0, -1.0, 0.5]), 20_000
    counter, still = torch.arange(count), torch.full((count,), 3)
    request, step = (counter, still) if over == "request" else (still, counter)
    rows = logits.expand(count, -1)
    token = sample(rows, None, request, step, 3, temperature, top_k, top_p)
    kept = {(2.0, 3, 1.0): [0, 2, 4], (1.0, 0, 0.8): [0, 2, 4]}.get((temperature, top_k, top_p))
    weight = (logits.double() / temperature).exp()
    if kept is not None:
        weight = torch.zeros_like(weight).scatter(0, torch.tensor(kept), weight[kept])
    # 18.5 is exceeded once in a thousand seeds with 4 degrees of freedom, more seldom with 2
    assert chi_square(token, weight / weight.sum()) < 18.5


def test_penalised_logits_are_drawn_from_at_their_temperature():
    logits, count = [1.2, 0.3, -0.4], 20_000
    counter = torch.arange(count)
    history = torch.tensor([[0, -1, 2]]).expand(count, -1)
    rows = torch.tensor(logits).expand(count, -1)
    options = {"temperature": 0.7, "repetition_penalty": 1.5}
    token = sample(rows, history, counter, torch.zeros_like(counter), 3, **options)
    penalised = [1.2 / 1.5, 0.3, -0.4 * 1.5]
    chance = torch.tensor([math.exp(z / 0.7) for z in penalised], dtype=torch.float64)
    # 13.8 is exceeded once in a thousand seeds with 2 degrees of freedom
    assert chi_square(token, chance / chance.sum()) < 13.8


@pytest.mark.parametrize("seed", [2**63 - 1, 2**63, 2**64 - 1])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_every_seed_is_a_key_of_its_own(seed, backend):
    rows, vocab_size = 64, 131
    request = torch.arange(rows)
    with use_backend(backend):
        got = sample(torch.zeros(rows, vocab_size), None, request, request, seed)
    draw = rng.vocabulary_uniforms(seed, request, request, vocab_size)
    assert torch.equal(got, (-(-draw.log()).log()).argmax(dim=-1))


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5])
def test_what_is_no_seed(seed):
    rows = torch.zeros(2, dtype=torch.int64)
    with one_line_error(ValueError, "^seed: got .*, expected an integer from 0 to"):
        sample(torch.zeros(2, 9), None, rows, rows, seed)
