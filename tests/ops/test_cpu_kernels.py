"""The ops' CPU kernels beyond agreement: the same bits in any company, and checked indices."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from dynkern import ops
from dynkern.kernels.cpu.rule import FLOATS
from dynkern.llm import LLM
from dynkern.ops import OPS, use_backend
from support.backends import needs_engine
from support.errors import one_line_error
from support.opt import save_opt
from support.samples import samples

pytestmark = needs_engine
I32 = torch.int32
# many stretches of what a kernel packs at a time, in every dtype; odd in every unit
WIDE = 2117
ROWS = 23


@pytest.fixture(autouse=True)
def on_cpu() -> Iterator[None]:
    """Backend "cpu"; fresh memory is NaN; threads as they were."""
    threads = torch.get_num_threads()
    torch.use_deterministic_algorithms(True, warn_only=True)
    with use_backend("cpu"):
        yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


def rows_of(*values: int) -> Tensor:
    return torch.tensor(values, dtype=I32)


# -- the same bits in any company ----------------------------------------------------------------

Run = Callable[[Tensor], list[Tensor]]


def ragged_linear(dtype: torch.dtype) -> Run:
    x, weight = torch.randn(ROWS, WIDE).to(dtype), torch.randn(203, WIDE).to(dtype)
    bias = torch.randn(203).to(dtype)
    return lambda rows: [ops.ragged_linear(x, weight, bias, rows, None, "gelu")]


def lm_head_argmax(dtype: torch.dtype) -> Run:
    x, weight = torch.randn(ROWS, 331).to(dtype), torch.randn(1003, 331).to(dtype)
    return lambda rows: list(ops.lm_head_argmax(x[rows.long()], weight * 0.1))


def ragged_attention_decode(dtype: torch.dtype) -> Run:
    q, k, v = (torch.randn(ROWS, 3, 64).to(dtype) for _ in range(3))
    held = [torch.randn(ROWS, 3, 90, 64).to(dtype) for _ in range(2)]
    lane = torch.randperm(ROWS).to(I32)
    length = torch.randint(90, (ROWS,)).to(I32)

    def run(rows: Tensor) -> list[Tensor]:
        caches = [cache.clone() for cache in held]
        own = [t[rows.long()] for t in (q, k, v)]
        y = ops.ragged_attention_decode(*own, *caches, lane, length, rows, None, 0.125)
        places = lane[rows.long()].long(), slice(None), length[rows.long()].long()
        return [y, *(cache[places] for cache in caches)]

    return run


def ragged_attention_prefill(dtype: torch.dtype) -> Run:
    q, k, v = (torch.randn(ROWS, 9, 2, 20).to(dtype) for _ in range(3))

    def run(rows: Tensor) -> list[Tensor]:
        own = [t[rows.long()].flatten(0, 1) for t in (q, k, v)]
        ends = torch.arange(len(rows) + 1, dtype=I32) * 9
        return [ops.ragged_attention_prefill(*own, ends, 0.25).unflatten(0, (len(rows), 9))]

    return run


def kv_project(dtype: torch.dtype) -> Run:
    x, weight = torch.randn(ROWS, 131).to(dtype), torch.randn(2 * 3 * 28, 131).to(dtype)

    def run(rows: Tensor) -> list[Tensor]:
        caches = [torch.empty(ROWS, 3, 5, 28, dtype=dtype) for _ in range(2)]
        own = torch.arange(len(rows), dtype=I32)
        ops.kv_project(x[rows.long()], weight, None, *caches, own, torch.full_like(own, 2))
        return [cache[: len(rows), :, 2] for cache in caches]

    return run


def residual_bypass_layer_norm(dtype: torch.dtype) -> Run:
    h, delta = torch.randn(ROWS, 331).to(dtype), torch.randn(ROWS, 331).to(dtype)

    def run(rows: Tensor) -> list[Tensor]:
        own = h.clone()
        args = own, delta[rows.long()], rows, None, None, None, rows, None
        return [ops.residual_bypass_layer_norm(*args), own[rows.long()]]

    return run


def gate(dtype: torch.dtype) -> Run:
    h, shapes = torch.randn(ROWS, 331), ((17, 331), (2, 17))
    weights, biases = zip(*((torch.randn(s), torch.randn(s[0])) for s in shapes), strict=True)
    layers = [[t.to(dtype) for t in part] for part in (weights, biases)]
    return lambda rows: list(ops.gate(h.to(dtype)[rows.long()], *layers))


def embed(dtype: torch.dtype) -> Run:
    tokens, places, project = (torch.randn(*s).to(dtype) for s in ((50, 83), (25, 95), (95, 83)))
    ids = torch.randint(50, (ROWS,))
    return lambda rows: [ops.embed(ids[rows.long()], rows.long(), tokens, places, project)]


def sample(dtype: torch.dtype) -> Run:
    logits, history = torch.randn(ROWS, 1003).to(dtype), torch.randint(-1, 1003, (ROWS, 7))

    def run(rows: Tensor) -> list[Tensor]:
        i = rows.long()
        return [ops.sample(logits[i], history[i], i, i, 3, 0.9, 40, 0.8, 1.2)]

    return run


BATCHED = [
    ragged_linear,
    lm_head_argmax,
    ragged_attention_decode,
    ragged_attention_prefill,
    kv_project,
    residual_bypass_layer_norm,
    gate,
    embed,
    sample,
]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("make", BATCHED, ids=lambda make: make.__name__)
def test_a_row_has_the_same_bits_in_any_company(make, dtype, isa):
    run = make(dtype)
    torch.set_num_threads(1)
    alone = [run(rows_of(i)) for i in range(ROWS)]
    for count in (2, 5, 7, 13, ROWS):
        torch.set_num_threads(random.randint(1, 4))
        members = random.sample(range(ROWS), count)
        together = run(rows_of(*members))
        for place, i in enumerate(members):
            for one, row in zip(alone[i], together, strict=True):
                assert not one.isnan().any()
                assert torch.equal(one[0], row[place]), (i, members, torch.get_num_threads())


@pytest.mark.parametrize("format", ["float32", "bfloat16"])
def test_a_linear_has_the_bits_that_it_has_on_packed_weights(format, isa, tmp_path):
    # several stretches of groups, the last one cut short, and half a bfloat16 group
    model = save_opt(tmp_path, word_embed_proj_dim=165, vocab_size=203)
    dtype = getattr(torch, format)
    hidden, weight = torch.randn(ROWS, 165).to(dtype), model.lm_head.weight.detach().to(dtype)
    head = LLM(tmp_path, backend="cpu", dtype=format).engine.executor.head
    single = ops.lm_head_argmax(hidden, weight)
    for ours, packed in zip(single, head.argmax(hidden, None), strict=True):
        assert torch.equal(ours, packed)
    if format == "float32":
        assert torch.equal(ops.ragged_linear(hidden, weight), head.logits(hidden, None))


@pytest.mark.parametrize("rows", [0, 1, 600])
def test_counts_of_rows_at_the_edge(rows, isa):
    # 600: more rows than a linear takes at once
    x, weight = torch.randn(rows, 67), torch.randn(70, 67)
    y = ops.ragged_linear(x, weight)
    assert y.shape == (rows, 70)
    assert torch.allclose(y, x @ weight.T, rtol=1e-4, atol=1e-4)
    token = ops.lm_head_argmax(x, weight)[0]
    assert torch.equal(token, y.argmax(dim=1))


def test_no_weight_is_read_for_no_rows():
    weight = torch.full((9, 8), float("nan"))
    y = ops.ragged_linear(torch.randn(4, 8), weight, None, None, torch.tensor(0, dtype=I32))
    assert y.isnan().all() and y.shape == (4, 9)


def test_a_row_that_is_asked_for_twice_gets_its_sum_once():
    h, delta = torch.randn(5, 48), torch.randn(2, 48)
    expected = h.clone()
    expected[[3, 1]] += delta
    rows = rows_of(3, 3, 0, 1, 3)
    y = ops.residual_bypass_layer_norm(
        h, delta, rows_of(3, 1), None, None, None, rows, None, "none"
    )
    assert torch.equal(h, expected) and torch.equal(y, expected[rows.long()])


# -- indices ---------------------------------------------------------------------------------------

# op, place of an index, the index, where in it, what is put there, the message
OUT_OF_RANGE = [
    ("embed", 0, 0, 50, "token_ids: got 50 at 0, expected 0 to 49"),
    ("embed", 0, 6, -1, "token_ids: got -1 at 6, expected 0 to 49"),
    ("embed", 1, 2, 30, "positions: got 30 at 2, expected 0 to 29"),
    ("residual_bypass_layer_norm", 2, 0, 7, "delta_rows: got 7 at 0, expected 0 to 6"),
    ("residual_bypass_layer_norm", 6, 1, -1, "row_index: got -1 at 1, expected 0 to 6"),
    ("residual_bypass_layer_norm", 3, None, 8, "n_delta: got 8 at 0, expected 0 to 7"),
    ("residual_bypass_layer_norm", 7, None, -1, "n_active: got -1 at 0, expected 0 to 7"),
    ("ragged_linear", 3, 2, 7, "row_index: got 7 at 2, expected 0 to 6"),
    ("ragged_linear", 4, None, 8, "n_active: got 8 at 0, expected 0 to 7"),
    ("ragged_attention.prefill", 3, 0, 1, "cu_seqlens: got 1 at 0, expected 0 to 0"),
    ("ragged_attention.prefill", 3, -1, 22, "cu_seqlens: got 22 at 3, expected 23 to 23"),
    ("ragged_attention.prefill", 3, 1, 7, "cu_seqlens: got 6 at 2, expected 7 to 23"),
    ("ragged_attention.decode", 5, None, 9, "lane: got 9 at"),
    ("ragged_attention.decode", 6, None, 9, "length: got 9 at"),
    ("ragged_attention.decode", 6, None, -1, "length: got -1 at"),
    ("ragged_attention.decode", 7, 0, 7, "row_index: got 7 at 0, expected 0 to 6"),
    ("ragged_attention.decode", 8, None, 9, "n_active: got 9 at 0, expected 0 to 7"),
    ("kv_project", 5, 1, 8, "lane: got 8 at 1, expected 0 to 7"),
    ("kv_project", 6, 2, -2, "position: got -2 at 2, expected 0 to 10"),
    ("kv_project", 7, None, 8, "n_active: got 8 at 0, expected 0 to 7"),
    ("lm_head_argmax", 2, None, 99, "n_active: got 99 at 0, expected 0 to 7"),
    ("sample", 1, (6, 2), 131, "history: got 131 at 56, expected"),
]


def of_seven_rows(label: str):
    """The first sample of seven rows, or of 5, 1 and 17 tokens; with a history where one counts."""
    for s in samples(label):
        if s.name.startswith(("7x", "7/", "pre-7", "none-7", "(5, 1", "7-(0.7")):
            return s
    raise AssertionError(label)


@pytest.mark.parametrize(
    ("label", "place", "at", "value", "message"),
    OUT_OF_RANGE,
    ids=[c[-1][:30] for c in OUT_OF_RANGE],
)
def test_an_index_out_of_range_is_one_line_and_nothing_is_written(label, place, at, value, message):
    sample_of = of_seven_rows(label)
    args = sample_of.to("cpu", torch.float32)
    if label == "ragged_linear" and place == 3:
        args[3] = torch.arange(7, dtype=I32)
    if at is None:
        args[place].fill_(value)
    else:
        args[place][at] = value
    before = [args[i].clone() for i in sample_of.mutated]
    with one_line_error(ValueError, f"^{re.escape(message)}"):
        OPS[label].torch_op(*args)
    for i, held in zip(sample_of.mutated, before, strict=True):
        assert torch.equal(args[i].nan_to_num(3.0), held.nan_to_num(3.0))


def test_rows_to_add_to_are_distinct():
    h, delta = torch.zeros(4, 8), torch.ones(3, 8)
    with one_line_error(ValueError, "^delta_rows: got 2 again at 1, expected distinct rows"):
        ops.residual_bypass_layer_norm(
            h, delta, rows_of(2, 2, 1), None, None, None, rows_of(0), None
        )
    assert not h.any()


def test_indices_behind_the_count_are_not_looked_at():
    x, weight = torch.randn(3, 8), torch.randn(5, 8)
    y = ops.ragged_linear(x, weight, None, rows_of(2, 99, -7), torch.tensor(1, dtype=I32))
    assert torch.allclose(y[0], weight @ x[2], atol=1e-5) and y[1:].isnan().all()


def test_a_row_without_a_lane_may_skip():
    q = k = v = torch.randn(2, 1, 4)
    caches = [torch.zeros(1, 1, 3, 4) for _ in range(2)]
    args = rows_of(-1, 0), rows_of(9, 1), rows_of(1, 0), torch.tensor(1, dtype=I32)
    y = ops.ragged_attention_decode(q, k, v, *caches, *args, 1.0)
    assert torch.equal(caches[0][0, :, 1], k[0]) and not y[0].isnan().any()
