"""Philox: known answers, and draws that depend on nothing but their counter."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dynkern import rng

STREAMS = (rng.STREAM_PLAN, rng.STREAM_STEP, rng.STREAM_GATE, rng.STREAM_SAMPLE)
ONES = 0xFFFFFFFF
# kat_vectors of Random123, philox4x32 with 10 rounds: counter, key, words
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def words(counter: tuple, seed: int) -> tuple[int, ...]:
    return tuple(int(word) for word in rng.philox(counter, seed))


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_known_answers(counter, key, expected):
    assert words(counter, key[0] | key[1] << 32) == expected


def test_known_answers_in_one_call():
    counters = torch.tensor([counter for counter, _, _ in KNOWN_ANSWERS]).T
    drawn = torch.stack(rng.philox(tuple(counters), 0))
    assert drawn[:, 0].tolist() == list(KNOWN_ANSWERS[0][2])
    assert drawn.dtype == torch.int64
    assert drawn.min() >= 0 and drawn.max() <= ONES


@settings(max_examples=50, deadline=None)
@given(
    counter=st.tuples(*[st.integers(-(2**40), 2**40)] * 4),
    seed=st.integers(0, 2**64 - 1),
)
def test_counters_are_taken_modulo_32_bits(counter, seed):
    assert words(counter, seed) == words(tuple(c % 2**32 for c in counter), seed)


@pytest.mark.parametrize("seed", [-1, 2**64, -(2**70)])
def test_bad_seeds(seed):
    with pytest.raises(ValueError, match=f"^seed: got {seed}, expected .*$"):
        rng.philox((0, 0, 0, 0), seed)
    with pytest.raises(ValueError, match="^seed: "):
        rng.uniform(seed, 0, 0, 0, rng.STREAM_PLAN)


def test_a_draw_is_the_same_in_any_batch_and_order():
    request = torch.tensor([7, 3, 3, 90001, 0])
    token = torch.tensor([1, 5, 6, 2, 1])
    drawn = rng.layer_uniforms(11, request, token, 9, rng.STREAM_STEP)
    assert drawn.shape == (9, 5)
    order = torch.tensor([4, 2, 0, 3, 1])
    shuffled = rng.layer_uniforms(11, request[order], token[order], 9, rng.STREAM_STEP)
    assert torch.equal(shuffled, drawn[:, order])
    for row in range(5):
        for layer in range(9):
            alone = rng.uniform(11, int(request[row]), int(token[row]), layer, rng.STREAM_STEP)
            assert alone == drawn[layer, row]


def test_one_token_counter_serves_all_rows():
    request = torch.arange(6)
    shared = rng.layer_uniforms(2, request, 4, 5, rng.STREAM_PLAN)
    each = rng.layer_uniforms(2, request, torch.full((6,), 4), 5, rng.STREAM_PLAN)
    assert torch.equal(shared, each)


def test_fewer_layers_are_a_prefix_of_more():
    request, token = torch.arange(4), torch.arange(4)
    deep = rng.layer_uniforms(5, request, token, 24, rng.STREAM_STEP)
    assert torch.equal(rng.layer_uniforms(5, request, token, 6, rng.STREAM_STEP), deep[:6])


def test_every_part_of_the_counter_matters():
    base = {"seed": 3, "request": 1, "token": 2, "layer": 4, "stream": rng.STREAM_STEP}
    drawn = {float(rng.uniform(**base))}
    changes = {"seed": 3 + 2**32, "request": 2, "token": 1, "layer": 5, "stream": rng.STREAM_GATE}
    drawn |= {float(rng.uniform(**{**base, name: value})) for name, value in changes.items()}
    assert len(drawn) == 1 + len(changes)


def test_streams_are_distinct_and_uncorrelated():
    assert len(set(STREAMS)) == len(STREAMS)
    request = torch.arange(512)
    drawn = torch.stack([rng.layer_uniforms(1, request, 3, 8, s).flatten() for s in STREAMS])
    correlation = torch.corrcoef(drawn) - torch.eye(len(STREAMS))
    # 4096 pairs: standard error 1/64
    assert correlation.abs().max() < 5 / 64


def test_moments_and_range():
    drawn = rng.layer_uniforms(9, torch.arange(2000), 1, 24, rng.STREAM_STEP).flatten()
    count = drawn.numel()
    assert drawn.dtype == torch.float32
    assert 0.0 <= drawn.min() and drawn.max() < 1.0
    assert torch.equal(drawn * 2**24, (drawn * 2**24).round())
    drawn = drawn.double()
    assert abs(drawn.mean() - 1 / 2) < 5 * (1 / 12 / count) ** 0.5
    assert abs(drawn.var() - 1 / 12) < 5 * (1 / 180 / count) ** 0.5
    cells = torch.histc(drawn, 64, 0, 1)
    chi_square = ((cells - count / 64) ** 2 / (count / 64)).sum()
    # 63 degrees of freedom: 121 is exceeded once in 75,000
    assert chi_square < 121


@pytest.mark.parametrize("vocab_size", [1, 3, 4, 5, 131])
def test_vocabulary_draws_have_a_finite_logarithm(vocab_size):
    request, token = torch.tensor([5, 6, 6]), torch.tensor([1, 1, 2])
    drawn = rng.vocabulary_uniforms(8, request, token, vocab_size)
    assert drawn.shape == (3, vocab_size)
    assert drawn.log().isfinite().all() and (drawn < 1).all()
    wider = rng.vocabulary_uniforms(8, request, token, vocab_size + 6)
    assert torch.equal(wider[:, :vocab_size], drawn)
    assert torch.equal(
        rng.vocabulary_uniforms(8, request[1:2], token[1:2], vocab_size)[0], drawn[1]
    )


def test_vocabulary_entries_take_the_four_words_of_a_block():
    drawn = rng.vocabulary_uniforms(8, torch.tensor([5]), torch.tensor([7]), 10)[0]
    for entry in range(10):
        word = words((5, 7, entry // 4, rng.STREAM_SAMPLE), 8)[entry % 4]
        assert drawn[entry] == torch.tensor(((word >> 8) + 0.5) * 2.0**-24, dtype=torch.float32)


def test_vocabulary_draws_are_uniform():
    drawn = rng.vocabulary_uniforms(1, torch.arange(40), torch.zeros(40, dtype=torch.int64), 1001)
    assert len(drawn.unique()) > 0.99 * drawn.numel()
    assert abs(drawn.mean() - 0.5) < 5 * (1 / 12 / drawn.numel()) ** 0.5


def test_no_vocabulary_draw_reaches_0_or_1(monkeypatch):
    # the extreme words, which chance brings once in 2**24 draws
    for word in (0, 0xFFFFFFFF):
        words = tuple(torch.full((1, 3), word) for _ in range(4))
        monkeypatch.setattr(rng, "philox", lambda counter, seed, words=words: words)
        draw = rng.vocabulary_uniforms(0, torch.zeros(1).long(), torch.zeros(1).long(), 12)
        assert draw.dtype == torch.float32 and (draw > 0).all() and (draw < 1).all()
        assert (-(-draw.log()).log()).isfinite().all()
