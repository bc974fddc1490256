"""Which dtype and which layout a checkpoint's weights get, and why."""

from __future__ import annotations

import logging

import pytest
import torch

from dynkern.kernels import native
from dynkern.llm import LLM
from dynkern.models.storage import choose_storage
from dynkern.ops.backends import BackendUnavailable, use_backend
from support.backends import needs_engine
from support.errors import one_line_error
from support.opt import save_opt

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def engine_here(monkeypatch):
    monkeypatch.setattr(native, "cpu_missing", lambda: None)


@pytest.fixture
def no_engine(monkeypatch):
    monkeypatch.setattr(native, "cpu_missing", lambda: "_cpu.so was never built")


@pytest.mark.parametrize(
    ("dtype", "stored", "device", "backend", "expected"),
    [
        ("auto", "float32", CPU, "auto", ("float32", True)),
        ("auto", "bfloat16", CPU, "auto", ("bfloat16", True)),
        ("auto", "float16", CPU, "auto", ("bfloat16", True)),
        ("auto", "torch.float16", CPU, "cpu", ("bfloat16", True)),
        ("auto", "float16", CPU, "reference", ("float32", False)),
        ("auto", "bfloat16", CPU, "reference", ("bfloat16", False)),
        ("auto", "float16", CUDA, "auto", ("float16", False)),
        ("auto", "torch.bfloat16", CUDA, "auto", ("bfloat16", False)),
        ("auto", None, CUDA, "auto", ("float32", False)),
        ("auto", "int8", CPU, "auto", ("float32", True)),
        ("int8", "float32", CPU, "auto", ("int8", True)),
        ("int8", "float16", CPU, "cpu", ("int8", True)),
        ("float16", "float32", CPU, "auto", ("float16", False)),
        ("float32", "bfloat16", CUDA, "auto", ("float32", False)),
    ],
)
def test_with_the_engine(engine_here, dtype, stored, device, backend, expected):
    storage = choose_storage(dtype, stored, device, backend)
    assert (storage.dtype, storage.packed) == expected
    assert storage.reason and "\n" not in storage.reason


@pytest.mark.parametrize(
    ("dtype", "stored", "expected"),
    [
        ("auto", "float32", "float32"),
        ("auto", "bfloat16", "bfloat16"),
        ("auto", "float16", "float32"),
        ("float16", "float32", "float16"),
    ],
)
def test_without_the_engine(no_engine, dtype, stored, expected):
    storage = choose_storage(dtype, stored, CPU, "auto")
    assert (storage.dtype, storage.packed) == (expected, False)
    assert "never built" in storage.reason


def test_the_backend_in_force_counts(engine_here, monkeypatch):
    with use_backend("reference"):
        assert not choose_storage("auto", "float32", CPU, "auto").packed
        assert choose_storage("auto", "float32", CPU, "cpu").packed
    monkeypatch.setenv("DYNKERN_BACKEND", "reference")
    assert not choose_storage("auto", "float32", CPU, "auto").packed


def test_what_is_refused(engine_here, monkeypatch):
    with one_line_error(ValueError, "^dtype: got 'int4', expected one of auto, float32, .*int8$"):
        choose_storage("int4", None, CPU, "auto")
    with one_line_error(ValueError, "^dtype: got 'int8', expected one of float32, .*is cuda"):
        choose_storage("int8", None, CUDA, "auto")
    with one_line_error(ValueError, "^dtype: got 'int8', .*'reference' is asked for"):
        choose_storage("int8", None, CPU, "reference")
    with one_line_error(BackendUnavailable, "^backend: 'cpu' cannot run here: it has no float16"):
        choose_storage("float16", None, CPU, "cpu")
    with one_line_error(BackendUnavailable, "^backend: 'cpu' cannot run here: the device is cuda"):
        choose_storage("float32", None, CUDA, "cpu")
    with one_line_error(ValueError, "^backend: got 'metal', expected one of auto"):
        choose_storage("float32", None, CPU, "metal")
    monkeypatch.setattr(native, "cpu_missing", lambda: "_cpu.so was never built")
    with one_line_error(BackendUnavailable, "^backend: 'cpu' cannot run here: _cpu.so was never"):
        choose_storage("float32", None, CPU, "cpu")


def test_the_choice_is_told(tmp_path, caplog):
    save_opt(tmp_path)
    with caplog.at_level(logging.INFO, logger="dynkern"):
        llm = LLM(tmp_path, backend="reference")
    (message,) = [r.getMessage() for r in caplog.records if r.getMessage().startswith("weights:")]
    assert message.startswith("weights: float32, eager executor")
    assert "backend 'reference' is asked for" in message
    assert llm.describe()["executor"] == "eager"


@needs_engine
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_a_packed_model_says_so(tmp_path, dtype):
    save_opt(tmp_path)
    llm = LLM(tmp_path, dtype=dtype)
    seen = llm.describe()
    assert (seen["dtype"], seen["executor"], seen["isa"]) == (dtype, "native", native.cpu_isa())
    assert llm.dtype == getattr(torch, dtype)
    with use_backend("reference"), one_line_error(BackendUnavailable, "^backend: got 'reference'"):
        llm.generate([[2, 5]], max_new_tokens=2)
