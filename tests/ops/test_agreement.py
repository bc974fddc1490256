"""Every backend of every op against the reference in float64, by the tolerance table."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from dynkern.ops import OPS, BackendUnavailable, use_backend
from dynkern.ops.backends import _RUNS_ON, BACKENDS
from support.backends import cpu_isa, isa_levels
from support.choices import SCORES, check_choice
from support.errors import one_line_error
from support.samples import MAKERS, Sample, samples
from support.tolerances import assert_as_good, assert_near

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
CASES = [
    (op.label, backend) for op in OPS.values() for backend in BACKENDS if backend in op.kernels
]
# the CPU kernels once for every instruction set
LEVELS = [
    (label, backend, level)
    for label, backend in CASES
    for level in (isa_levels() if backend == "cpu" else []) or [None]
]


How = tuple[str, torch.dtype]  # backend and dtype of a case


def usable(label: str, backend: str, device: str) -> None:
    """Skip with the reason where this backend cannot run here."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if device not in _RUNS_ON[backend]:
        pytest.skip(f"{backend} does not run on {device} tensors")
    reason = OPS[label].kernels[backend].missing()
    if reason:
        pytest.skip(reason)


def call(label: str, backend: str, sample: Sample, device: str, dtype: torch.dtype):
    """Outputs, and the arguments as the op left them."""
    return run(label, backend, sample.to(device, dtype), sample.mutated)


def run(label: str, backend: str, args: list, mutated: tuple[int, ...]):
    with use_backend(backend):
        result = OPS[label].torch_op(*args)
    outputs = result if isinstance(result, tuple | list) else [] if result is None else [result]
    return [*outputs], [args[place] for place in mutated]


def refused(label: str, backend: str, sample: Sample, device: str, dtype: torch.dtype) -> bool:
    """Whether the backend does not take this dtype: then it says so, and auto takes another."""
    refuses = OPS[label].kernels[backend].refuses
    why = refuses(*sample.to(device, dtype)) if refuses else None
    if why is None:
        return False
    assert dtype == torch.float64 or backend == "cuda"  # which has a limit of rows
    with one_line_error(BackendUnavailable, f"^backend '{backend}' cannot run this {label}: "):
        call(label, backend, sample, device, dtype)
    if dtype != torch.float64:  # auto may have another kernel that takes it
        return True
    results = [call(label, name, sample, device, dtype) for name in ("auto", "reference")]
    for ours, reference in zip(*(outputs + buffers for outputs, buffers in results), strict=True):
        assert torch.equal(ours.nan_to_num(7.0), reference.nan_to_num(7.0)), sample.name
    return True


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("label", "backend", "level"), LEVELS, ids=lambda v: str(v))
def test_agrees_with_the_reference(label, backend, level, dtype, device):
    usable(label, backend, device)
    with cpu_isa(level):
        agrees(label, backend, dtype, device)


def agrees(label: str, backend: str, dtype: torch.dtype, device: str) -> None:
    for sample in samples(label, seed=random.randrange(10**6)):
        if refused(label, backend, sample, device, dtype):
            continue
        actual = call(label, backend, sample, device, dtype)
        plain = call(label, "reference", sample, "cpu", dtype)
        truth = call(label, "reference", sample, "cpu", torch.float64)
        outputs = [sample.specified(result[0]) for result in (actual, plain, truth)]
        # a margin is a difference of probabilities, and no nearer to the truth than they are
        top = outputs[2][1] if sample.unit else torch.zeros(0)
        least = float(top.max()) if top.numel() else 0.0
        for got, base, true in zip(*outputs, strict=True):
            if label in SCORES and not got.is_floating_point():
                scores = SCORES[label](*sample.args)[: len(got)]
                check_choice(sample.name, got, base, scores, dtype)
            else:
                check(sample, got, base, true, (backend, dtype), least)
        untouched = sample.to("cpu", dtype)
        buffers = zip(actual[1], plain[1], truth[1], strict=True)
        for place, (got, base, true) in zip(sample.mutated, buffers, strict=True):
            written = changed(sample.args[place], true)
            check_buffer(sample, written, untouched[place], got, base, true, (backend, dtype))


def check(
    sample: Sample, got: Tensor, base: Tensor, true: Tensor, how: How, least: float = 0.0
) -> None:
    if sample.exact:
        assert got.dtype == base.dtype and torch.equal(got.cpu(), base), sample.name
    elif got.is_floating_point():
        compare(sample, got, base, true, how, least)
    else:
        # tokens drawn in float32 whatever the dtype: the samples' logits are the same in all
        assert torch.equal(got.cpu(), base), sample.name


def compare(
    sample: Sample, got: Tensor, base: Tensor, true: Tensor, how: How, least: float = 0.0
) -> None:
    """A kernel may err twice as much as the reference; the reference has limits of its own."""
    backend, dtype = how
    if backend == "reference" and dtype != torch.float64:
        assert_near(got.cpu(), true, dtype, least=float(sample.unit))
    else:
        assert_as_good(got, base, true, least)


def changed(before: Tensor, after: Tensor) -> Tensor:
    """Where a buffer was written, both in float64: a rounded value may be the old one again."""
    return ~((after == before) | (after.isnan() & before.isnan()))


def check_buffer(
    sample: Sample,
    written: Tensor,
    before: Tensor,
    got: Tensor,
    base: Tensor,
    true: Tensor,
    how: How,
) -> None:
    """Written entries by the table; all others bit for bit as they were, poison included."""
    got = got.cpu()
    assert torch.equal(got[~written].nan_to_num(7.0), before[~written].nan_to_num(7.0)), sample.name
    if sample.exact:
        assert torch.equal(got[written], base[written]), sample.name
    else:
        compare(sample, got[written], base[written], true[written], how)


def test_every_op_has_samples():
    assert set(MAKERS) == set(OPS)
    for label in OPS:
        assert len(samples(label)) >= 3, label


def test_a_choice_may_differ_where_rounding_decides_and_nowhere_else():
    scores = torch.tensor([[1.0, 1.0 + 1e-7, 0.5]], dtype=torch.float64)
    near, base, far = (torch.tensor([choice]) for choice in (0, 1, 2))
    check_choice("three scores", near, base, scores, torch.float32)
    for wrong, dtype in ((near, torch.float64), (far, torch.bfloat16)):
        with pytest.raises(AssertionError, match="three scores"):
            check_choice("three scores", wrong, base, scores, dtype)


# places of an op's counts in its arguments, each with the place of the tensor that it counts
COUNTS = {
    "residual_bypass_layer_norm": ((3, 1), (7, 6)),
    "residual_bypass_layer_norm.gate": ((3, 1), (7, 6)),
    "residual_bypass_linear": ((3, 1), (7, 6)),
    "ragged_linear": ((4, 0),),
    "ragged_attention.decode": ((8, 0),),
    "kv_project": ((7, 0),),
    "lm_head_argmax": ((2, 0),),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("label", "backend"), [case for case in CASES if case[0] in COUNTS], ids=lambda v: str(v)
)
def test_no_count_means_all_rows(label, backend, device):
    usable(label, backend, device)
    for sample in samples(label, seed=random.randrange(10**6)):
        if refused(label, backend, sample, device, torch.float32):
            continue
        results = []
        for given in (True, False):
            args = sample.to(device, torch.float32)
            for place, counted in COUNTS[label]:
                if args[place] is not None:
                    n = len(args[counted])
                    args[place] = torch.full_like(args[place], n) if given else None
            for place, value in enumerate(args):
                # every row is read now, so the poison of inputs goes; that of caches stays
                if isinstance(value, Tensor) and place not in sample.mutated:
                    args[place] = value.nan_to_num(0.5)
            results.append(run(label, backend, args, sample.mutated))
        (counted, counted_buffers), (outputs, buffers) = results
        assert not any(output.isnan().any() for output in outputs), sample.name
        for one, other in zip(counted + counted_buffers, outputs + buffers, strict=True):
            assert torch.equal(one.nan_to_num(7.0), other.nan_to_num(7.0)), sample.name


@pytest.mark.parametrize("label", OPS)
def test_unspecified_rows_do_not_leak(label):
    for sample in samples(label, seed=3):
        outputs, buffers = call(label, "reference", sample, "cpu", torch.float32)
        for output in sample.specified(outputs):
            if output.is_floating_point():
                assert not output.isnan().any(), sample.name
        before = sample.to("cpu", torch.float32)
        for place, after in zip(sample.mutated, buffers, strict=True):
            assert int(after.isnan().sum()) <= int(before[place].isnan().sum()), sample.name
