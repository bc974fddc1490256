"""What the agreement tests do not ask of the Triton kernels. Run by test_triton.py, interpreted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime import interpreter

from dynkern import rng
from dynkern.kernels.invariance import batch_invariant
from dynkern.kernels.triton import common, tuning
from dynkern.kernels.triton.sample import philox, uniforms
from dynkern.llm import LLM
from dynkern.ops import (
    lm_head_argmax,
    ragged_attention_decode,
    ragged_attention_prefill,
    ragged_linear,
    residual_bypass_layer_norm,
    residual_bypass_linear,
    sample,
    use_backend,
)
from dynkern.runtime.engine import Engine
from support.graphs import on_graphs
from support.opt import random_prompts, save_opt

I32 = torch.int32


@pytest.fixture(autouse=True)
def on_triton():
    with use_backend("triton"):
        yield


@pytest.fixture
def read_addresses(monkeypatch) -> list[np.ndarray]:
    """Addresses that kernels load from."""
    found: list[np.ndarray] = []
    load = interpreter.InterpreterBuilder.create_masked_load

    def noting(builder, pointers, mask, *rest):
        found.append(pointers.data[mask.data].ravel())
        return load(builder, pointers, mask, *rest)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_masked_load", noting)
    return found


def reads(addresses: list[np.ndarray], tensor: Tensor) -> int:
    start = tensor.data_ptr()
    end = start + tensor.numel() * tensor.element_size()
    return sum(int(((a >= start) & (a < end)).sum()) for a in addresses)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@triton.jit
def _draw(
    words_ptr, uniforms_ptr, request, step, low, high, BLOCK: tl.constexpr, STREAM: tl.constexpr
):
    k = tl.arange(0, BLOCK)
    c2 = (k // 4).to(tl.uint32)
    c0 = c2 * 0 + request.to(tl.uint32)
    c1 = c2 * 0 + step.to(tl.uint32)
    w0, w1, w2, w3 = philox(c0, c1, c2, c2 * 0 + STREAM, low.to(tl.uint32), high.to(tl.uint32))
    word = tl.where(k % 4 < 2, tl.where(k % 4 == 0, w0, w1), tl.where(k % 4 == 2, w2, w3))
    tl.store(words_ptr + k, word.to(tl.int64))
    drawn = uniforms(0, request, step, low.to(tl.uint32), high.to(tl.uint32), BLOCK)
    tl.store(uniforms_ptr + k, drawn)


@pytest.mark.parametrize("seed", [0, 1, 0xFFFFFFFF, (1 << 63) - 12345])
@pytest.mark.parametrize(
    ("request_id", "step"), [(0, 0), (5, 18180), ((1 << 40) + 3, (1 << 32) - 1)]
)
def test_draws_are_those_of_rng(seed, request_id, step):
    words, got = torch.empty(64, dtype=torch.int64), torch.empty(64)
    low, high = seed & 0xFFFFFFFF, seed >> 32
    sizes = {"BLOCK": 64, "STREAM": rng.STREAM_SAMPLE}
    _draw[(1,)](words, got, request_id, step, low, high, **sizes)
    counter = torch.tensor([request_id]), torch.tensor([step])
    expected = rng.philox((*counter, torch.arange(16), rng.STREAM_SAMPLE), seed)
    assert torch.equal(words, torch.stack(expected, dim=-1).flatten())
    # bit for bit
    assert torch.equal(got, rng.vocabulary_uniforms(seed, *counter, 64)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("top_k", "top_p"), [(1, 1.0), (5, 1.0), (60, 1.0), (0, 1e-9), (0, 0.5), (7, 0.6), (40, 0.999)]
)
def test_cuts_through_ties_are_those_of_the_reference(top_k, top_p, dtype):
    make = torch.Generator().manual_seed(top_k)
    # five values over 70 ids: every cut falls among ties; zeros of both signs among them
    logits = (torch.randint(-2, 3, (6, 70), generator=make) * 0.5).to(dtype)
    logits[:, ::7] *= -1.0
    history = torch.randint(-1, 70, (6, 5), generator=make)
    counters = torch.arange(6), torch.arange(6) + 100
    args = logits, history, *counters, 3, 0.7, top_k, top_p, 1.25
    token = sample(*args)
    with use_backend("reference"):
        assert torch.equal(token, sample(*args))


def test_the_upper_half_of_the_seeds():
    request = torch.arange(16)
    draw = rng.vocabulary_uniforms(2**64 - 5, request, request, 40)
    got = sample(torch.zeros(16, 40), None, request, request, 2**64 - 5)
    assert torch.equal(got, (-(-draw.log()).log()).argmax(dim=-1))


@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize("rows", [7, 20])
def test_without_active_rows_no_weight_is_read(read_addresses, rows, activation):
    x, weight, bias, n = normal(rows, 40), normal(33, 40), normal(33), torch.zeros(1, dtype=I32)
    order = torch.arange(rows, dtype=I32)
    held = normal(rows, 40)
    ragged_linear(x, weight, bias, order, n, activation)
    lm_head_argmax(x, weight, n)
    residual_bypass_linear(held, None, None, None, None, None, order, n, "pre", 1e-5, weight, bias)
    assert reads(read_addresses, n) >= 3
    assert reads(read_addresses, weight) == reads(read_addresses, bias) == 0
    assert reads(read_addresses, x) == 0
    n.fill_(3)
    ragged_linear(x, weight, bias, order, n, activation)
    assert reads(read_addresses, weight) >= weight.numel()
    assert reads(read_addresses, x[3:]) == 0


def test_a_row_may_be_asked_for_twice():
    h, delta = normal(5, 12), normal(5, 12, seed=1)
    rows = torch.tensor([3, 1, 3, 0], dtype=I32)
    targets = torch.tensor([3, 4, 0, 1, 2], dtype=I32)
    n = torch.tensor([2], dtype=I32)
    expected = h.clone()
    with use_backend("reference"):
        want = residual_bypass_layer_norm(expected, delta, targets, n, None, None, rows, None)
    got = residual_bypass_layer_norm(h, delta, targets, n, None, None, rows, None)
    assert torch.allclose(got, want, atol=1e-5) and torch.equal(got[0], got[2])
    assert torch.equal(h, expected)


def test_splits_add_up_in_their_own_order_and_leave_no_ticket(monkeypatch):
    monkeypatch.setattr(tuning, "TARGET_PROGRAMS", 1 << 20)
    x, weight = normal(7, 4096), normal(40, 4096)
    tile = tuning.linear(7, 40, 4096, 4)
    assert tile.splits == tuning.MAX_SPLITS
    # programs come in another order each time (support.interpreter), the last one to come combines
    outputs = {ragged_linear(x, weight).numpy().tobytes() for _ in range(6)}
    assert len(outputs) == 1
    held = common.tickets(x, 1)
    assert held.numel() >= 1 << 16 and not held.any()


def test_a_relu_hands_a_nan_on():
    x = torch.tensor([[float("nan")], [-1.0], [2.0]])
    y = ragged_linear(x, torch.ones(1, 1), activation="relu")
    assert y[0].isnan() and y[1:].flatten().tolist() == [0.0, 2.0]


def test_no_rows_at_all():
    empty = torch.empty(0, 8)
    assert ragged_linear(empty, normal(3, 8)).shape == (0, 3)
    token, *measures = lm_head_argmax(empty, normal(3, 8))
    assert token.shape == (0,) and all(m.shape == (0,) for m in measures)


# -- batch_invariant -----------------------------------------------------------------------------
# rows of a batch, and one of them alone, each with the capacity that it would have


def linear_rows(x: Tensor, rows: list[int]) -> list[Tensor]:
    weight, bias = normal(70, x.shape[1], seed=1).to(x.dtype), normal(70, seed=2).to(x.dtype)
    index = torch.tensor(rows, dtype=I32)
    return [ragged_linear(x, weight, bias, index, None, "relu")]


def bypass_linear_rows(x: Tensor, rows: list[int]) -> list[Tensor]:
    weight, bias = normal(70, x.shape[1], seed=1).to(x.dtype), normal(70, seed=2).to(x.dtype)
    norm = normal(x.shape[1], seed=3).to(x.dtype), normal(x.shape[1], seed=4).to(x.dtype)
    delta = normal(*x.shape, seed=5).to(x.dtype)
    count = torch.tensor([len(rows)], dtype=I32)
    order = torch.arange(len(rows), dtype=I32)
    h, d = x[rows], delta[rows]
    lists = d, order, count, *norm, order, count, "pre", 1e-5
    return list(residual_bypass_linear(h, *lists, weight, bias, "none"))


def attention_rows(x: Tensor, rows: list[int]) -> list[Tensor]:
    # as much room as the longest row of the batch needs
    heads, size = 2, 16
    lengths = [(7 * row) % 45 for row in rows]
    positions = max(lengths) + 3
    shape = len(x), heads, 48, size
    cache = [
        normal(*shape, seed=s).to(x.dtype)[rows][:, :, :positions].contiguous() for s in (6, 7)
    ]
    qkv = [normal(len(x), heads, size, seed=s).to(x.dtype)[rows] for s in (8, 9, 10)]
    order = torch.arange(len(rows), dtype=I32)
    length = torch.tensor(lengths, dtype=I32)
    return [ragged_attention_decode(*qkv, *cache, order, length, order, None, size**-0.5)]


def head_rows(x: Tensor, rows: list[int]) -> list[Tensor]:
    weight = normal(131, x.shape[1], seed=11).to(x.dtype)
    return list(lm_head_argmax(x[rows], weight, torch.tensor([len(rows)], dtype=I32)))


@pytest.fixture
def products_in_float64(monkeypatch):
    """The interpreter multiplies tiles by numpy, whose BLAS sums a row by its place in the tile on
    some processors (Zen 3), as no tensor core does; what float64 sums differ by is rounded away.
    """
    matmul = np.matmul

    def wide(a, b, dtype=None):
        return matmul(a, b, dtype=np.float64).astype(dtype or a.dtype)

    monkeypatch.setattr(interpreter.np, "matmul", wide)


@pytest.mark.usefixtures("products_in_float64")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("run", [linear_rows, bypass_linear_rows, attention_rows, head_rows])
def test_a_row_is_bitwise_the_same_alone_and_in_any_batch(monkeypatch, run, dtype):
    # splits at this size too, and more rows than one kernel's tile
    monkeypatch.setattr(tuning, "TARGET_PROGRAMS", 16)
    x = normal(140, 300).to(dtype)
    everyone = list(range(140)) if run is not attention_rows else list(range(20))
    with batch_invariant():
        if run is linear_rows:
            assert tuning.linear(1, 70, 300, x.element_size()).splits > 1
        batch = run(x, everyone)
        for rows in ([3], [19, 3], [11, 0, 3, 7, 5]):
            few = run(x, rows)
            for got, want in zip(few, batch, strict=True):
                assert torch.equal(got, want[rows])
    assert torch.allclose(run(x, everyone)[-1].float(), batch[-1].float(), rtol=3e-2, atol=3e-1)


def test_long_products_in_parts_of_rows(monkeypatch):
    monkeypatch.setattr(tuning, "INVARIANT_ROWS", 64)
    x, weight = normal(150, 40), normal(33, 40)
    index = torch.randperm(150).to(I32)
    with batch_invariant():
        for rows in (None, index):
            assert torch.equal(
                ragged_linear(x, weight, None, rows)[3],
                ragged_linear(
                    x[3:4] if rows is None else x, weight, None, None if rows is None else rows[3:4]
                )[0],
            )


def test_prompts_attend_the_same_alone_and_packed():
    q, k, v = (normal(60, 2, 16, seed=s) for s in range(3))
    ends = torch.tensor([0, 17, 18, 60], dtype=I32)
    with batch_invariant():
        packed = ragged_attention_prefill(q, k, v, ends, 0.25)
        for start, end in ((0, 17), (17, 18), (18, 60)):
            alone = [t[start:end].contiguous() for t in (q, k, v)]
            one = torch.tensor([0, end - start], dtype=I32)
            assert torch.equal(ragged_attention_prefill(*alone, one, 0.25), packed[start:end])


@pytest.mark.parametrize(
    "spec", ["random:2", "uniform:2", "stochastic:0.5", "confidence:margin=0.3"]
)
def test_captured_passes_on_these_kernels_pick_the_reference_s_tokens(tmp_path, spec):
    save_opt(tmp_path, num_hidden_layers=3, vocab_size=101)
    prompts = random_prompts(2, seed=2, longest=4, vocab_size=101)
    options = {"max_new_tokens": 4, "seed": 3, "force_length": True, "kv_fill": "deferred"}
    want = LLM(tmp_path, backend="reference").generate(prompts, spec, **options)
    llm = LLM(tmp_path, backend="reference")
    llm.engine = Engine(llm.spec, llm.engine.weights, "triton")
    executor = on_graphs(llm)
    got = llm.generate(prompts, spec, **options)
    assert executor.replays == 3
    assert [(c.token_ids, c.layers_run) for c in got] == [(c.token_ids, c.layers_run) for c in want]
