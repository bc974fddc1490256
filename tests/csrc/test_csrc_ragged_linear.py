"""The CUDA body of ragged_linear on the CPU against the reference, and what nvcc makes of it."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dynkern.kernels import native
from dynkern.kernels.reference.ragged_linear import ragged_linear as reference
from support.compilers import compile_library, nvcc_report
from support.samples import Sample, samples
from support.tolerances import assert_as_good

ROOT = Path(__file__).resolve().parents[2]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    source = ROOT / "tests/csrc/ragged_linear_body.cpp"
    built = compile_library([source], tmp_path_factory.mktemp("linear") / "body.so")
    pointer = ctypes.c_void_p
    built.run_ragged_linear_body.argtypes = [pointer, ctypes.c_uint64, pointer]
    built.run_ragged_linear_body.restype = ctypes.c_bool
    built.run_number.argtypes = [ctypes.c_int32, pointer, pointer, ctypes.c_int64, pointer]
    return built


def run(library: ctypes.CDLL, args: list, seed: int = 1) -> tuple[Tensor, list[int]]:
    """Output (NaN where nothing was stored), and accesses, misaligned ones and bytes."""
    x, weight, _, row_index, *_ = args
    rows = len(x if row_index is None else row_index)
    out = torch.full((rows, len(weight)), float("nan"), dtype=x.dtype)
    arguments = native._ragged_linear_arguments(*args, out)
    counts = (ctypes.c_int64 * 3)()
    assert library.run_ragged_linear_body(ctypes.addressof(arguments), seed, counts)
    return out, list(counts)


def few_rows(seed: int) -> list[Sample]:
    """Samples of the op that the kernel takes."""
    made = samples("ragged_linear", seed)
    return [s for s in made if len(s.args[0]) <= native.RAGGED_LINEAR_ROWS]


def drawn(rows: int, k: int, n: int, dtype: torch.dtype, seed: int = 0) -> list:
    make = torch.Generator().manual_seed(seed)
    x, weight, bias = (torch.randn(shape, generator=make) for shape in ((rows, k), (n, k), (n,)))
    return [x.to(dtype), (weight * k**-0.5).to(dtype), bias.to(dtype), None, None, "none"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_body_agrees_with_the_reference(library, dtype):
    checked = 0
    for sample in few_rows(seed=5):
        out, _ = run(library, sample.to("cpu", dtype))
        results = reference(*sample.to("cpu", dtype)), reference(*sample.to("cpu", torch.float64))
        assert_as_good(*(t[: sample.rows] for t in (out, *results)))
        # rows from n_active on were poisoned in x; nothing is stored for them
        assert out[sample.rows :].isnan().all(), sample.name
        checked += 1
    assert checked >= 9


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 8])
def test_aligned_rows_are_read_by_16_bytes(library, rows, dtype):
    # 2 steps of a warp and a tail for 16-bit numbers, 4 and one for float32
    args = drawn(rows, 520 if dtype != torch.float32 else 516, 19, dtype, seed=rows)
    out, (accesses, misaligned, moved) = run(library, args)
    double = [a.double() if isinstance(a, Tensor) else a for a in args]
    assert_as_good(out, reference(*args), reference(*double))
    assert misaligned == 0
    # all but bias and output come in pieces of 16 bytes
    single = 2 * out.numel()
    assert moved - single * out.element_size() == 16 * (accesses - single)


@pytest.mark.parametrize("moved", ["x", "weight"])
def test_an_unaligned_operand_is_read_one_by_one(library, moved):
    args = drawn(3, 64, 9, torch.bfloat16)
    place = 0 if moved == "x" else 1
    held = torch.zeros(args[place].numel() + 1, dtype=torch.bfloat16)[1:]
    expected, _ = run(library, args)
    args[place] = held.copy_(args[place].flatten()).view(args[place].shape)
    out, (accesses, misaligned, bytes_moved) = run(library, args)
    assert misaligned == 0 and bytes_moved == 2 * accesses
    assert torch.equal(out.isnan(), expected.isnan())
    assert (out.float() - expected.float()).abs().max() < 2e-2 * expected.float().abs().max()


def test_no_weight_is_read_without_active_rows(library):
    args = drawn(5, 64, 40, torch.bfloat16)
    args[4] = torch.zeros(1, dtype=torch.int32)
    out, (accesses, _, _) = run(library, args)
    assert out.isnan().all()
    # the count alone, by every thread of 5 blocks
    assert accesses == 5 * 128


def test_neither_order_nor_other_rows_change_a_bit(library):
    args = drawn(8, 136, 33, torch.float32)
    outputs = {run(library, args, seed)[0].numpy().tobytes() for seed in range(5)}
    assert len(outputs) == 1
    together = run(library, args)[0]
    for j in (0, 7):
        assert torch.equal(run(library, [args[0][j : j + 1], *args[1:]])[0][0], together[j])
    swapped = torch.tensor([7, 0, 3], dtype=torch.int32)
    gathered = run(library, [*args[:3], swapped, None, "none"])[0]
    assert torch.equal(gathered, together[swapped.long()])


@pytest.mark.parametrize(("number", "dtype"), [(1, torch.bfloat16), (2, torch.float16)])
def test_numbers_convert_as_torch_converts_them(library, number, dtype):
    make = torch.Generator().manual_seed(number)
    patterns = torch.randint(-(1 << 31), 1 << 31, (200_000,), generator=make)
    every = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(dtype)
    # random bits, and the middle between each two neighbours
    halves = every.float()
    middles = (halves[:-1].double() + halves[1:].double()).div(2).float()
    values = torch.cat([patterns.to(torch.int32).view(torch.float32), halves, middles])
    wide, rounded = torch.empty(65536), torch.empty(len(values), dtype=torch.int16)
    places = values.data_ptr(), len(values), rounded.data_ptr()
    library.run_number(number, wide.data_ptr(), *places)
    same = wide == every.float()
    assert bool((same | (wide.isnan() & every.isnan())).all())
    expected, got = values.to(dtype), rounded.view(dtype)
    equal = got.view(torch.int16) == expected.view(torch.int16)
    assert bool((equal | (got.isnan() & expected.isnan())).all())


def test_more_rows_or_other_dtypes_are_refused():
    args = drawn(9, 8, 8, torch.float32)
    assert native.ragged_linear_cuda_refuses(*args) == "got 9 rows, expected up to 8"
    index = torch.zeros(8, dtype=torch.int32)
    assert native.ragged_linear_cuda_refuses(*args[:3], index, None, "none") is None
    double = [a.double() if isinstance(a, Tensor) else a for a in drawn(1, 8, 8, torch.float32)]
    assert "torch.float64, expected float32" in native.ragged_linear_cuda_refuses(*double)


@pytest.mark.parametrize("arch", ["80", "90"])
def test_nvcc_compiles_without_spills_or_stack(tmp_path, arch):
    report = nvcc_report(ROOT / "csrc/cuda/ragged_linear.cu", arch, tmp_path)
    # three dtypes, four numbers of rows, two widths
    assert report.stacks == [("0", "0", "0")] * 24
    # 128 registers let an SM hold 4 of its blocks of 128 threads
    assert len(report.registers) == 24 and max(report.registers) <= 128
    entries = re.findall(r"\.entry (\S+?)\((.*?)\n}", report.ptx, re.DOTALL)
    wide = [len(re.findall(r"ld\.global(?:\.nc)?\.v4", body)) for _, body in entries]
    assert len(wide) == 24 and sum(count > 0 for count in wide) == 12
