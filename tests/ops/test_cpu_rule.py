"""Which calls the ops' CPU kernels take, and how they round; the C ABI that they go through."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dynkern import ops
from dynkern.kernels import native
from dynkern.kernels.cpu import structs
from dynkern.ops import OPS, BackendUnavailable, use_backend
from dynkern.ops.backends import Kernel, forget_choices
from support.backends import needs_engine
from support.errors import one_line_error

pytestmark = needs_engine
I32 = torch.int32


@pytest.fixture(autouse=True)
def on_cpu() -> Iterator[None]:
    with use_backend("cpu"):
        yield


def rows_of(*values: int) -> Tensor:
    return torch.tensor(values, dtype=I32)


# -- which calls they take -------------------------------------------------------------------------


def refused() -> list[tuple[str, str, list]]:
    """(op, reason, arguments) of calls beyond the rule."""
    x, w = torch.randn(3, 8), torch.randn(5, 8)
    zeros = torch.zeros(3, dtype=torch.int64)
    draw = [None, zeros, zeros, 0, 0.0, 0, 1.0, 1.0]
    h, rows = torch.randn(1, 8).expand(3, 8), rows_of(0, 1)
    bypass = [None, None, None, None, None, rows, None, "pre", 1e-5]
    caches = [torch.randn(2, 3, 4, 5).transpose(1, 2) for _ in range(2)]
    copies = [*caches, rows[None], torch.full((1, 2), -1, dtype=I32), rows]
    rest = [None, None, None, "none"]
    return [
        ("ragged_linear", "x has dtype torch.float64", [x.double(), w.double(), *rest]),
        ("ragged_linear", "weight has strides", [x, torch.randn(8, 5).T, *rest]),
        ("ragged_linear", "x requires a gradient", [x.clone().requires_grad_(), w, *rest]),
        ("route_compact", "keep has strides", [torch.ones(3, 4, dtype=torch.bool).T]),
        ("sample", "logits has dtype torch.int32", [torch.ones(3, 4, dtype=I32), *draw]),
        ("residual_bypass_layer_norm", "h has strides", [h, *bypass]),
        ("kv_copy_forward", "k_cache has strides", copies),
        (
            "gate",
            "weights has strides",
            [x, [torch.randn(8, 2).T], [torch.zeros(2)], None],
        ),
    ]


@pytest.mark.parametrize("case", refused(), ids=lambda case: f"{case[0]}: {case[1]}")
def test_a_call_beyond_the_rule_goes_to_the_reference_or_says_why(case):
    label, reason, args = case
    op = OPS[label]
    with one_line_error(BackendUnavailable, f"^backend 'cpu' cannot run this {label}: {reason}"):
        op.torch_op(*args)
    results = []
    for backend in ("auto", "reference"):
        with use_backend(backend):  # nothing is written by any of these
            results.append(op.torch_op(*args))
    for ours, reference in zip(*(r if isinstance(r, tuple) else [r] for r in results), strict=True):
        assert ours is None and reference is None or torch.equal(ours, reference)


def test_gradients_flow_under_auto_and_without_a_warning(recwarn):
    x, w = torch.randn(3, 8, requires_grad=True), torch.randn(5, 8, requires_grad=True)
    with use_backend("auto"):
        ops.ragged_linear(x, w, None, rows_of(2, 0), None, "relu").square().sum().backward()
    ours = x.grad.clone(), w.grad.clone()
    x.grad = w.grad = None
    torch.relu(x[[2, 0]] @ w.T).square().sum().backward()
    for got, expected in zip(ours, (x.grad, w.grad), strict=True):
        assert torch.allclose(got, expected, atol=1e-5)
    assert not [w for w in recwarn if "autograd" in str(w.message)]
    with torch.no_grad():
        assert not ops.ragged_linear(x, w).requires_grad


def test_no_kernel_gets_a_call_that_wants_a_gradient(monkeypatch):
    """Whatever it says of other calls: what a kernel writes has no history."""
    op = OPS["ragged_linear"]
    monkeypatch.setitem(op.kernels, "cpu", Kernel(lambda *args: pytest.fail("the kernel ran")))
    forget_choices()
    x, w = torch.randn(3, 8), torch.randn(5, 8, requires_grad=True)
    with use_backend("auto"):
        ops.ragged_linear(x, w).sum().backward()
    assert torch.allclose(w.grad, x.sum(0).expand(5, 8), atol=1e-5)
    with one_line_error(BackendUnavailable, "weight requires a gradient; use 'auto'$"):
        ops.ragged_linear(x, w)
    monkeypatch.undo()
    forget_choices()


def test_rows_may_lie_apart():
    """As the eager executor hands over q, k and v, and rows of a wider matrix."""
    qkv = torch.randn(7, 3, 2, 20)
    q, k, v = qkv.unbind(1)
    ends = rows_of(0, 3, 7)
    apart = ops.ragged_attention_prefill(q, k, v, ends, 0.3)
    whole = ops.ragged_attention_prefill(*(t.contiguous() for t in (q, k, v)), ends, 0.3)
    assert torch.equal(apart, whole)
    lanes = torch.randn(2, 9, 2, 6, 20)
    caches = [lanes.clone()[i, 1::2] for i in range(2)]
    index = rows_of(0, 1, 2, 3), rows_of(0, 5, 2, 1), rows_of(3, 0, 1), None
    apart = ops.ragged_attention_decode(q[:3], k[:3], v[:3], *caches, *index, 0.3)
    dense = [lanes[i, 1::2].contiguous() for i in range(2)]
    own = [t[:3].contiguous() for t in (q, k, v)]
    assert torch.equal(apart, ops.ragged_attention_decode(*own, *dense, *index, 0.3))
    assert all(torch.equal(a, b) for a, b in zip(caches, dense, strict=True))
    weight, x = torch.randn(5, 40)[:, 3:36], torch.randn(7, 50)[::2, 9:42]
    apart = ops.ragged_linear(x, weight)
    assert torch.equal(apart, ops.ragged_linear(x.contiguous(), weight.contiguous()))


# -- roundings -------------------------------------------------------------------------------------


def every_value(dtype: torch.dtype) -> Tensor:
    return torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(dtype)[None]


def added(h: Tensor, delta: Tensor | None) -> Tensor:
    rows = torch.zeros(1, dtype=I32)
    h = h.clone()
    on = (None, None) if delta is None else (delta, rows)
    return ops.residual_bypass_layer_norm(h, *on, None, None, None, rows, None, "none")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_value_of_16_bits_comes_back(dtype, isa):
    values = every_value(dtype)
    got, number = added(values, None), ~values.isnan()
    assert torch.equal(got.view(torch.int16)[number], values.view(torch.int16)[number])
    assert got[~number].isnan().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sums_are_rounded_to_the_nearest_even(dtype, isa):
    values = every_value(dtype)
    for shift in (1, 77, 4099, 1 << 14):
        other = values.roll(shift, dims=1)
        expected = (values.float() + other.float()).to(dtype)
        got, number = added(values, other), ~expected.isnan()
        assert torch.equal(got[number], expected[number]) and got[~number].isnan().all()


# -- the C ABI -------------------------------------------------------------------------------------


def test_the_structs_are_those_of_the_header():
    header = Path(native.__file__).resolve().parents[2] / "csrc" / "cpu" / "ops.h"
    if not header.is_file():
        pytest.skip("no csrc beside the package")
    text = re.sub(r"//.*", "", header.read_text())
    found = re.findall(r"struct (\w+) {(.*?)};", text, re.DOTALL)
    assert len(found) == 11
    plain = {"int64_t": ctypes.c_int64, "uint64_t": ctypes.c_uint64, "double": ctypes.c_double}
    for name, body in found:
        members = [member.split() for member in body.split(";") if member.strip()]
        mirrored = getattr(structs, name.removesuffix("Op"))._fields_
        assert [field for field, _ in mirrored] == [words[-1].lstrip("*") for words in members]
        for (field, kind), words in zip(mirrored, members, strict=True):
            pointers = (ctypes.c_void_p, ctypes.c_char_p)
            assert kind in (pointers if "*" in "".join(words) else (plain[words[0]],)), field
