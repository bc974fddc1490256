"""The op table and its one dispatch: schemas, fakes, contracts, choices."""

from __future__ import annotations

import logging

import pytest
import torch

import dynkern.ops as ops
from dynkern.ops import OPS, BackendUnavailable, use_backend
from dynkern.ops.backends import (
    Kernel,
    check_runnable,
    forget_choices,
    requested_backend,
    resolve,
    table,
)
from support.samples import samples


@pytest.fixture(autouse=True)
def fresh_choices(monkeypatch):
    monkeypatch.delenv("DYNKERN_BACKEND", raising=False)
    forget_choices()
    yield
    forget_choices()


@pytest.mark.parametrize("label", OPS)
def test_opcheck(label):
    checked = 0
    for sample in samples(label):
        # opcheck compares whole outputs and buffers, and NaN is unequal to itself: poison is
        # filled, and samples with unspecified rows are left to the other tests
        args = [_filled(value) for value in sample.to("cpu", torch.float32)]
        outputs = _listed(OPS[label].torch_op(*(_filled(value) for value in args)))
        if sample.rows is not None and any(len(output) > sample.rows for output in outputs):
            continue
        checked += 1
        report = torch.library.opcheck(OPS[label].torch_op, tuple(args))
        assert set(report.values()) == {"SUCCESS"}
    assert checked >= 3


def test_opcheck_of_prefill_without_rows():
    # its result must be no view of q, although both are empty
    q, k, v = (torch.zeros(0, 3, 20) for _ in range(3))
    args = (q, k, v, torch.zeros(1, dtype=torch.int32), 0.5)
    report = torch.library.opcheck(OPS["ragged_attention.prefill"].torch_op, args)
    assert set(report.values()) == {"SUCCESS"}


def _filled(value):
    """A copy without NaN."""
    if isinstance(value, list):
        return [_filled(item) for item in value]
    return value.nan_to_num(0.5) if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("label", OPS)
def test_fake_has_the_shapes_and_dtypes_of_the_result(label):
    from torch._subclasses.fake_tensor import FakeTensorMode

    for sample in samples(label):
        args = sample.to("cpu", torch.bfloat16)
        real = OPS[label].torch_op(*args)
        with FakeTensorMode() as mode:
            fake = OPS[label].torch_op(*(_faked(mode, value) for value in args))
        pairs = zip(_listed(real), _listed(fake), strict=True)
        assert all((r.shape, r.dtype) == (f.shape, f.dtype) for r, f in pairs), sample.name


def _faked(mode, value):
    if isinstance(value, list):
        return [_faked(mode, item) for item in value]
    return mode.from_tensor(value) if isinstance(value, torch.Tensor) else value


def _listed(result):
    return [] if result is None else list(result) if isinstance(result, tuple) else [result]


@pytest.mark.parametrize("label", OPS)
def test_every_op_has_reference_and_contract(label):
    op = OPS[label]
    assert "reference" in op.kernels and op.kernels["reference"].missing() is None
    public = getattr(ops, label.replace(".", "_"))
    assert "[" in public.__doc__ and "Raises ValueError" in public.__doc__


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_table_covers_all_ops_with_reasons(device):
    rows = table(device)
    assert [label for label, _, _ in rows] == list(OPS)
    fit = {"cpu": ("cpu", "reference"), "cuda": ("cuda", "triton", "reference")}[device]
    assert all(backend in fit and why for _, backend, why in rows)
    assert rows == table(device)


def probed(monkeypatch, label="embed", missing=lambda: None):
    """Give an op a "cpu" kernel that counts its calls."""
    calls = []
    reference = OPS[label].kernels["reference"].function

    def kernel(*args):
        calls.append(args)
        return reference(*args)

    monkeypatch.setitem(OPS[label].kernels, "cpu", Kernel(kernel, missing))
    forget_choices()
    return calls


def without_cpu_kernel(monkeypatch, label="embed"):
    """Take an op's "cpu" kernel out of a copy: deleting and restoring would change the order."""
    others = {b: kernel for b, kernel in OPS[label].kernels.items() if b != "cpu"}
    monkeypatch.setattr(OPS[label], "kernels", others)
    forget_choices()


def call_embed():
    return OPS["embed"].torch_op(*samples("embed")[0].to("cpu", torch.float32))


def test_the_dispatch_takes_what_is_asked_for(monkeypatch):
    calls = probed(monkeypatch)
    call_embed()
    assert len(calls) == 1
    with use_backend("reference"):
        call_embed()
        assert len(calls) == 1
        with use_backend("cpu"):
            call_embed()
        call_embed()
    assert len(calls) == 2
    monkeypatch.setenv("DYNKERN_BACKEND", "reference")
    call_embed()
    assert len(calls) == 2
    monkeypatch.setenv("DYNKERN_BACKEND", "cpu")
    call_embed()
    assert len(calls) == 3


def test_use_backend_restores_after_an_exception():
    with pytest.raises(KeyError), use_backend("reference"):
        raise KeyError
    assert requested_backend() == "auto"
    with use_backend("reference"):
        with pytest.raises(KeyError), use_backend("cpu"):
            raise KeyError
        with pytest.raises(ValueError), use_backend("tpu"):
            pass
        assert requested_backend() == "reference"


def test_the_block_wins_over_the_environment(monkeypatch):
    monkeypatch.setenv("DYNKERN_BACKEND", "reference")
    calls = probed(monkeypatch)
    with use_backend("auto"):
        call_embed()
    assert len(calls) == 1 and requested_backend() == "reference"


def test_an_empty_variable_is_no_request(monkeypatch):
    monkeypatch.setenv("DYNKERN_BACKEND", "")
    assert requested_backend() == "auto"


def test_unknown_names_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="use_backend: got 'tpu', expected one of auto"):
        with use_backend("tpu"):
            pass
    monkeypatch.setenv("DYNKERN_BACKEND", "fast")
    with pytest.raises(ValueError, match="DYNKERN_BACKEND: got 'fast'"):
        call_embed()


@pytest.mark.parametrize("backend", ["cpu", "triton", "cuda"])
def test_a_named_backend_that_cannot_run_raises(backend, monkeypatch):
    without_cpu_kernel(monkeypatch)
    with use_backend(backend), pytest.raises(BackendUnavailable) as raised:
        call_embed()
    message = str(raised.value)
    assert "embed" in message and backend in message and "\n" not in message
    with pytest.raises(ValueError, match=f"backend: '{backend}' cannot run"):
        check_runnable(backend, "cpu")


def test_a_kernel_that_does_not_exist_is_no_news(monkeypatch, caplog):
    without_cpu_kernel(monkeypatch)
    with caplog.at_level(logging.WARNING, logger="dynkern"):
        choice = resolve(OPS["embed"], "cpu")
    assert (choice.backend, choice.reason) == ("reference", "cpu: no such kernel")
    assert not caplog.records


def test_auto_falls_back_says_so_once_and_is_deterministic(monkeypatch, caplog):
    calls = probed(monkeypatch, missing=lambda: "no such library here")
    with caplog.at_level(logging.WARNING, logger="dynkern"):
        for _ in range(3):
            call_embed()
            assert resolve(OPS["embed"], "cpu").backend == "reference"
    assert not calls
    assert [r.getMessage() for r in caplog.records] == [
        "embed: cpu: no such library here; falling back"
    ]
    with use_backend("cpu"), pytest.raises(BackendUnavailable, match="no such library here"):
        call_embed()
