"""Triton kernels under triton's interpreter, and what needs neither it nor a GPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dynkern.kernels import triton as triton_kernels
from dynkern.kernels.invariance import batch_invariant, is_batch_invariant
from dynkern.ops import OPS, BackendUnavailable, backends, use_backend
from dynkern.ops.backends import Kernel, forget_choices, resolve
from support.errors import one_line_error
from support.samples import samples

ROOT = Path(__file__).resolve().parents[2]
AGREEMENT = "tests/ops/test_agreement.py"
SMALL = "triton and agrees and (float32 or bfloat16)"
# what a process runs, and the least number of tests in it
RUNS = {
    "samples": ([AGREEMENT, "-k", "triton"], 50),
    "small tiles": (["-p", "support.small_tiles", AGREEMENT, "-k", SMALL], 26),
    "special": (["tests/kernels/interpreted_triton.py"], 49),
}


@pytest.fixture(scope="module")
def processes():
    """Started together: each uses one core."""
    pytest.importorskip("triton")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("DYNKERN_BACKEND", None)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["-p", "support.interpreter"]
    started = {
        name: subprocess.Popen(
            [*command, *arguments],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for name, (arguments, _) in RUNS.items()
    }
    yield started
    for process in started.values():
        process.kill()


@pytest.mark.interpreter
@pytest.mark.parametrize("name", RUNS)
def test_interpreted(processes, name):
    printed, _ = processes[name].communicate()
    assert processes[name].returncode == 0, printed[-8000:]
    passed = re.search(r"(\d+) passed", printed)
    assert passed and int(passed[1]) >= RUNS[name][1], printed[-2000:]


def test_without_triton_the_reason_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    assert triton_kernels.missing() == "triton is not installed (pip install 'dynkern[gpu]')"


def test_a_triton_that_does_not_import_is_named(monkeypatch, tmp_path):
    (tmp_path / "triton.py").write_text("raise OSError('libtriton.so: cannot open\\nmore')")
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert triton_kernels.missing() == "triton does not import: libtriton.so: cannot open"
    sys.modules.pop("triton", None)


@pytest.mark.parametrize(
    ("capability", "works"), [((7, 5), False), ((8, 0), True), ((12, 0), True)]
)
def test_a_gpu_is_needed_and_an_old_one_is_not_enough(monkeypatch, capability, works):
    pytest.importorskip("triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert triton_kernels.missing() == "no CUDA device"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    expected = None if works else "compute capability 7.5, expected 8.0 or more"
    assert triton_kernels.missing() == expected


@pytest.fixture
def gpu_kernels(monkeypatch):
    """As if every kernel could run on a GPU."""
    for op in OPS.values():
        for backend in ("triton", "cuda"):
            if backend in op.kernels:
                kernel = op.kernels[backend]
                able = Kernel(kernel.function, refuses=kernel.refuses)
                monkeypatch.setitem(op.kernels, backend, able)
    forget_choices()
    yield
    monkeypatch.undo()
    forget_choices()


def test_the_choice_on_a_gpu(gpu_kernels):
    chosen = {label: resolve(op, "cuda").backend for label, op in OPS.items()}
    assert chosen.pop("kv_copy_forward") == "cuda"
    assert set(chosen.values()) == {"triton"}
    # CUDA C++ where it was measured faster, and it was not measured
    choice = resolve(OPS["ragged_linear"], "cuda")
    assert choice.reason == "cuda: not measured against triton yet"
    with use_backend("cuda"):
        assert resolve(OPS["ragged_linear"], "cuda").backend == "cuda"


def test_arguments_beyond_a_kernel_go_to_the_reference_or_are_refused(monkeypatch, caplog):
    def never(*args):
        pytest.fail("the kernel ran")

    caplog.set_level("INFO", "dynkern")
    op = OPS["ragged_linear"]
    monkeypatch.setitem(op.kernels, "cpu", Kernel(never, refuses=triton_kernels.refuses))
    forget_choices()
    args = samples("ragged_linear")[0].to("cpu", torch.float64)
    y = op.torch_op(*args)
    op.torch_op(*args)
    with use_backend("reference"):
        assert torch.equal(op.torch_op(*args), y)
    said = "ragged_linear: cpu: got float64, expected float32, bfloat16 or float16; falling back"
    assert [record.getMessage() for record in caplog.records] == [said]
    with use_backend("cpu"), pytest.raises(BackendUnavailable, match="got float64, expected"):
        op.torch_op(*args)
    forget_choices()


@pytest.mark.parametrize("rows", [1, 8, 64])
def test_a_layer_is_at_most_five_launches(rows):
    """The layer of a pre-norm model in a decode pass, on tensors without memory."""
    pytest.importorskip("triton")
    from dynkern.kernels.triton.common import recording

    hidden, heads, ffn = 2048, 32, 8192

    def floats(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.bfloat16, device="meta")

    def ints(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.int32, device="meta")

    def run(label: str, *args):
        return OPS[label].kernels["triton"].function(*args)

    index, n = ints(rows), ints(1)
    norm = floats(hidden), floats(hidden)
    cache = floats(rows, heads, 2048, 64), floats(rows, heads, 2048, 64)
    with recording() as launches:
        lists = floats(rows, hidden), index, n, *norm, index, n, "pre", 1e-5
        qkv = floats(3 * hidden, hidden), floats(3 * hidden), "none"
        h, y = run("residual_bypass_linear", floats(rows, hidden), *lists, *qkv)
        q, k, v = y.view(rows, 3, heads, 64).unbind(1)
        places = ints(rows), ints(rows), index, n
        y = run("ragged_attention.decode", q, k, v, *cache, *places, 0.125)
        delta = run("ragged_linear", y, floats(hidden, hidden), floats(hidden), None, n, "none")
        lists = delta, index, n, *norm, index, n, "pre", 1e-5
        fc1 = floats(ffn, hidden), floats(ffn), "relu"
        h, y = run("residual_bypass_linear", h, *lists, *fc1)
        delta = run("ragged_linear", y, floats(hidden, ffn), floats(hidden), None, n, "none")
    assert len(launches) == 5
    assert h.shape == delta.shape == (rows, hidden)


def test_under_batch_invariant_tiles_know_nothing_of_rows():
    pytest.importorskip("triton")
    from dynkern.kernels.triton import tuning

    sizes = (6144, 2048, 2), (2048, 8192, 2), (96, 60, 4)
    counts = (1, 2, 7, 16, 33, 128, 129, 512)

    def choices() -> list[set]:
        linears = [{tuning.linear(rows, *size) for rows in counts} for size in sizes]
        heads = [{tuning.head(rows, size) for rows in counts} for size in (2, 4)]
        rooms = (40, 300, 2048)
        attention = {tuning.decode_attention(n, 32, room, 64, 2) for n in counts for room in rooms}
        return [*linears, *heads, attention, {tuning.is_tall(rows) for rows in counts}]

    with batch_invariant():
        assert [len(found) for found in choices()] == [1] * 7
    # and without the mode they do
    assert all(len(found) > 1 for found in choices())


def test_batch_invariant_keeps_to_one_kernel_family(gpu_kernels, monkeypatch):
    monkeypatch.setattr(backends, "_UNMEASURED", set())
    op = OPS["ragged_linear"]
    assert resolve(op, "cuda").backend == "cuda"
    why = "its sums may depend on the number of rows, and batch_invariant is on"
    with batch_invariant():
        choice = resolve(op, "cuda")
        assert (choice.backend, choice.reason) == ("triton", f"cuda: {why}")
        with use_backend("cuda"), pytest.raises(BackendUnavailable, match=why):
            resolve(op, "cuda")
    assert resolve(op, "cuda").backend == "cuda"


def test_the_mode_by_environment(monkeypatch):
    assert not is_batch_invariant()
    monkeypatch.setenv("DYNKERN_BATCH_INVARIANT", "1")
    assert is_batch_invariant()
    with batch_invariant(False):
        assert not is_batch_invariant()
        with batch_invariant(None):
            assert not is_batch_invariant()
    monkeypatch.setenv("DYNKERN_BATCH_INVARIANT", "yes")
    with one_line_error(ValueError, "^DYNKERN_BATCH_INVARIANT: got 'yes', expected 0 or 1$"):
        is_batch_invariant()
