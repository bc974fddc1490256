"""Every backend of every op against the reference in float64, by the tolerance table."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from dynkern.ops import OPS, use_backend
from dynkern.ops.backends import BACKENDS
from support.samples import MAKERS, Sample, samples
from support.tolerances import assert_as_good, assert_near

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
CASES = [
    (op.label, backend) for op in OPS.values() for backend in BACKENDS if backend in op.kernels
]


How = tuple[str, torch.dtype]  # backend and dtype of a case


def usable(label: str, backend: str, device: str) -> None:
    """Skip with the reason where this backend cannot run here."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if (backend == "cpu" and device != "cpu") or (
        backend in ("triton", "cuda") and device == "cpu"
    ):
        pytest.skip(f"{backend} does not run on {device} tensors")
    reason = OPS[label].kernels[backend].missing()
    if reason:
        pytest.skip(reason)


def call(label: str, backend: str, sample: Sample, device: str, dtype: torch.dtype):
    """Outputs, and the arguments as the op left them."""
    args = sample.to(device, dtype)
    with use_backend(backend):
        result = OPS[label].torch_op(*args)
    outputs = result if isinstance(result, tuple | list) else [] if result is None else [result]
    return [*outputs], [args[place] for place in sample.mutated]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("label", "backend"), CASES, ids=lambda v: str(v))
def test_agrees_with_the_reference(label, backend, dtype, device):
    usable(label, backend, device)
    for sample in samples(label, seed=random.randrange(10**6)):
        actual = call(label, backend, sample, device, dtype)
        plain = call(label, "reference", sample, "cpu", dtype)
        truth = call(label, "reference", sample, "cpu", torch.float64)
        for got, base, true in zip(actual[0], plain[0], truth[0], strict=True):
            n = true.shape[0] if sample.rows is None else sample.rows
            check(sample, got[:n], base[:n], true[:n], (backend, dtype))
        untouched = sample.to("cpu", dtype)
        buffers = zip(actual[1], plain[1], truth[1], strict=True)
        for place, (got, base, true) in zip(sample.mutated, buffers, strict=True):
            check_buffer(sample, untouched[place], got, base, true, (backend, dtype))


def check(sample: Sample, got: Tensor, base: Tensor, true: Tensor, how: How) -> None:
    if sample.exact:
        assert got.dtype == base.dtype and torch.equal(got.cpu(), base), sample.name
    elif got.is_floating_point():
        compare(sample, got, base, true, how)
    else:
        # tokens and bits: rounding decides them, so they are those of the same dtype
        assert torch.equal(got.cpu(), base), sample.name


def compare(sample: Sample, got: Tensor, base: Tensor, true: Tensor, how: How) -> None:
    """A kernel may err twice as much as the reference; the reference has limits of its own."""
    backend, dtype = how
    if backend == "reference":
        assert_near(got.cpu(), true, dtype, least=float(sample.unit))
    else:
        assert_as_good(got, base, true)


def check_buffer(
    sample: Sample, before: Tensor, got: Tensor, base: Tensor, true: Tensor, how: How
) -> None:
    """Written entries by the table; all others bit for bit as they were, poison included."""
    got = got.cpu()
    written = ~((base == before) | (base.isnan() & before.isnan()))
    assert torch.equal(got[~written].nan_to_num(7.0), before[~written].nan_to_num(7.0)), sample.name
    if sample.exact:
        assert torch.equal(got[written], base[written]), sample.name
    else:
        compare(sample, got[written], base[written], true[written], how)


def test_every_op_has_samples():
    assert set(MAKERS) == set(OPS)
    for label in OPS:
        assert len(samples(label)) >= 3, label


@pytest.mark.parametrize("label", OPS)
def test_unspecified_rows_do_not_leak(label):
    for sample in samples(label, seed=3):
        outputs, buffers = call(label, "reference", sample, "cpu", torch.float32)
        for output in outputs:
            n = output.shape[0] if sample.rows is None else sample.rows
            if output.is_floating_point():
                assert not output[:n].isnan().any(), sample.name
        before = sample.to("cpu", torch.float32)
        for place, after in zip(sample.mutated, buffers, strict=True):
            assert int(after.isnan().sum()) <= int(before[place].isnan().sum()), sample.name
