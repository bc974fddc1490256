"""kv_copy_forward of csrc/cpu, and the CUDA body of csrc/cuda on the CPU, against a plain loop."""

from __future__ import annotations

import ctypes
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dynkern.kernels import native
from support.compilers import compile_library, nvcc_report

ROOT = Path(__file__).resolve().parents[2]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
H, T = 3, 7

Arguments = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def plain_loop(k: Tensor, v: Tensor, lane: Tensor, source: Tensor, position: Tensor) -> None:
    for layer in range(lane.shape[0]):
        for row in range(lane.shape[1]):
            s = int(source[layer, row])
            if s == -1 or int(lane[layer, row]) == -1 or int(lane[s, row]) == -1:
                continue
            to, from_, p = int(lane[layer, row]), int(lane[s, row]), int(position[row])
            for head in range(k.shape[1]):
                k[to, head, p] = k[from_, head, p].clone()
                v[to, head, p] = v[from_, head, p].clone()


def nearest_run(route: list[bool]) -> list[int]:
    """Per layer: -1 where it ran, else the nearest layer below that ran, else the nearest above."""
    sources = []
    for layer, runs in enumerate(route):
        below = [other for other in range(layer) if route[other]]
        above = [other for other in range(layer, len(route)) if route[other]]
        sources.append(-1 if runs else below[-1] if below else above[0])
    return sources


ROUTES: dict[str, Callable[[random.Random, int], list[bool]]] = {
    "full": lambda rng, layers: [True] * layers,
    "random": lambda rng, layers: [rng.random() < 0.5 for _ in range(layers)],
    "one_runs": lambda rng, layers: [False] * layers,
    "leading_skips": lambda rng, layers: [layer >= layers // 2 for layer in range(layers)],
    "early_exit": lambda rng, layers: [layer <= layers // 3 for layer in range(layers)],
}


def make_case(
    pattern: str, dtype: torch.dtype, head_size: int, rows: int, layers: int, holes: bool
) -> Arguments:
    """Caches of random bits (NaNs among them), shuffled lanes, positions and sources by route."""
    rng = random.Random(f"{pattern} {head_size} {rows} {layers} {holes}")
    generator = torch.Generator().manual_seed(rng.getrandbits(32))
    lanes = layers * rows + 2
    shape = (lanes, H, T, head_size)
    size = torch.iinfo(BITS[dtype])
    k, v = (
        torch.randint(size.min, size.max, shape, dtype=BITS[dtype], generator=generator).view(dtype)
        for _ in range(2)
    )
    lane = torch.randperm(lanes, generator=generator)[: layers * rows].view(layers, rows)
    source = torch.empty(layers, rows, dtype=torch.int32)
    for row in range(rows):
        route = ROUTES[pattern](rng, layers)
        if not any(route):
            route[rng.randrange(layers)] = True
        source[:, row] = torch.tensor(nearest_run(route))
        if holes:
            lane[rng.randrange(layers), row] = -1
    position = torch.randint(0, T, (rows,), generator=generator)
    return k, v, lane.int().contiguous(), source, position.int()


def bits(tensor: Tensor) -> Tensor:
    return tensor.view(BITS[tensor.dtype])


@pytest.fixture(scope="session")
def cpu_library() -> ctypes.CDLL:
    # compiling all of csrc/cpu takes most of a minute; test_build.py does it, warnings as errors
    if reason := native.cpu_missing():
        pytest.skip(reason)
    return native.cpu_library()


@pytest.fixture(scope="session")
def body_library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    source = ROOT / "tests/csrc/kv_copy_forward_body.cpp"
    library = compile_library([source], tmp_path_factory.mktemp("body") / "body.so")
    library.run_kv_copy_forward_body.argtypes = [
        ctypes.c_void_p,
        ctypes.c_uint64,
        ctypes.POINTER(ctypes.c_int64),
    ]
    library.run_kv_copy_forward_body.restype = None
    return library


def run_body(library: ctypes.CDLL, case: Arguments, seed: int) -> tuple[int, int, int]:
    """Run the CUDA body in block order `seed`; returns accesses, misaligned accesses, bytes."""
    arguments = native._kv_copy_forward_arguments("cpu", *case)
    counts = (ctypes.c_int64 * 3)()
    library.run_kv_copy_forward_body(ctypes.addressof(arguments), seed, counts)
    return counts[0], counts[1], counts[2]


def run_ranges(library: ctypes.CDLL, case: Arguments) -> None:
    """Run the row-range entry over uneven ranges in a shuffled order, as a thread team would."""
    arguments = native._kv_copy_forward_arguments("cpu", *case)
    items = case[2].numel()
    cuts = sorted({0, items, *random.Random(items).sample(range(items + 1), min(items, 5))})
    ranges = list(zip(cuts[:-1], cuts[1:], strict=True))
    random.Random(1).shuffle(ranges)
    for begin, end in ranges:
        library.dynkern_kv_copy_forward_range(ctypes.byref(arguments), begin, end)


@pytest.fixture(params=["cpu", "cpu_ranges", "cuda_body"])
def run(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable:
    if request.param == "cuda_body":
        body = request.getfixturevalue("body_library")
        return lambda *case: run_body(body, case, seed=7)
    library = request.getfixturevalue("cpu_library")
    if request.param == "cpu_ranges":
        return lambda *case: run_ranges(library, case)
    monkeypatch.setattr(native, "cpu_library", lambda: library)
    return native.kv_copy_forward_cpu


def assert_as_plain_loop(run: Callable, case: Arguments) -> None:
    k, v, *indices = case
    expected_k, expected_v = k.clone(), v.clone()
    plain_loop(expected_k, expected_v, *indices)
    run(*case)
    for name, got, expected in (("k", k, expected_k), ("v", v, expected_v)):
        wrong = (bits(got) != bits(expected)).nonzero()
        assert len(wrong) == 0, f"{name} differs first at {wrong[0].tolist()}"


@pytest.mark.parametrize("rows", [1, 2, 7, 33])
@pytest.mark.parametrize("head_size", [5, 8, 60, 64])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("pattern", ROUTES)
def test_bits_equal_plain_loop(run, pattern, dtype, head_size, rows):
    layers = {1: 12, 2: 5, 7: 3, 33: 4}[rows]
    assert_as_plain_loop(run, make_case(pattern, dtype, head_size, rows, layers, holes=False))


@pytest.mark.parametrize("pattern", ROUTES)
def test_rows_without_a_lane_read_and_write_nothing(run, pattern):
    assert_as_plain_loop(run, make_case(pattern, torch.bfloat16, 60, 7, 5, holes=True))


def test_single_layer_and_self_source(run):
    case = make_case("full", torch.float32, 8, 3, 4, holes=False)
    case[3].copy_(torch.arange(4, dtype=torch.int32)[:, None].expand(4, 3))
    before = case[0].clone()
    run(*case)
    assert torch.equal(bits(case[0]), bits(before))
    assert_as_plain_loop(run, make_case("one_runs", torch.float32, 8, 3, 1, holes=False))


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
def test_no_layers_or_no_rows(run, shape):
    k, v = torch.ones(2, H, T, 8), torch.ones(2, H, T, 8)
    empty = torch.empty(shape, dtype=torch.int32)
    run(k, v, empty, empty, torch.zeros(shape[1], dtype=torch.int32))
    assert bool((k == 1).all()) and bool((v == 1).all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_poison_is_neither_spread_nor_left(run, dtype):
    rows, layers, head_size = 7, 6, 60
    k, v, lane, source, position = make_case("random", dtype, head_size, rows, layers, holes=False)
    k.fill_(float("nan"))
    v.fill_(float("nan"))
    for layer in range(layers):
        for row in range(rows):
            if source[layer, row] == -1:
                k[lane[layer, row], :, position[row]] = layer + 1
                v[lane[layer, row], :, position[row]] = -layer - 1
    run(k, v, lane, source, position)
    for layer in range(layers):
        for row in range(rows):
            held = int(lane[layer, row]), slice(None), int(position[row])
            origin = layer if source[layer, row] == -1 else int(source[layer, row])
            assert bool((k[held] == origin + 1).all()) and bool((v[held] == -origin - 1).all())
            k[held] = v[held] = float("nan")
    assert bool(k.isnan().all()) and bool(v.isnan().all())


def test_body_does_not_depend_on_block_order(body_library):
    results = set()
    for seed in range(20):
        case = make_case("random", torch.bfloat16, 60, 7, 12, holes=True)
        run_body(body_library, case, seed)
        results.add(bits(case[0]).numpy().tobytes() + bits(case[1]).numpy().tobytes())
    assert len(results) == 1


@pytest.mark.parametrize(
    ("dtype", "head_size", "offset", "access"),
    [
        (torch.bfloat16, 64, 0, 16),
        (torch.bfloat16, 60, 0, 8),
        (torch.float32, 5, 0, 4),
        (torch.float16, 5, 0, 2),
        (torch.float32, 64, 2, 8),
        (torch.bfloat16, 64, 1, 2),
        (torch.uint8, 5, 0, 1),
    ],
)
@pytest.mark.parametrize("moved_cache", ["k", "v"])
def test_body_access_is_the_widest_aligned_one(
    body_library, dtype, head_size, offset, access, moved_cache
):
    lanes, rows, layers = 12, 3, 4
    caches = []
    for name in ("k", "v"):
        size = lanes * H * T * head_size
        # torch aligns storage to 64 bytes: the offset alone decides the alignment
        start = offset if name == moved_cache else 0
        flat = torch.zeros(size + offset, dtype=dtype)[start : start + size]
        caches.append(flat.view(lanes, H, T, head_size))
    lane = torch.arange(lanes, dtype=torch.int32).view(layers, rows)
    source = torch.zeros(layers, rows, dtype=torch.int32)
    position = torch.arange(rows, dtype=torch.int32)
    for row in range(rows):
        caches[0][row] = row + 1
        caches[1][row] = row + 11
    accesses, misaligned, moved = run_body(body_library, (*caches, lane, source, position), seed=3)
    items = (layers - 1) * rows
    # a load and a store of K and of V per item
    assert moved == 4 * items * H * head_size * caches[0].element_size()
    assert (accesses, misaligned) == (moved // access, 0)
    for row in range(rows):
        assert bool((caches[0][lane[:, row].long(), :, row] == row + 1).all())
        assert bool((caches[1][lane[:, row].long(), :, row] == row + 11).all())


@pytest.mark.parametrize(
    ("name", "index", "value"),
    [
        ("source", (1, 2), 4),
        ("lane", (1, 2), 99),
        ("lane", (0, 2), 99),
        ("position", (2,), T),
        ("position", (2,), -1),
    ],
)
def test_out_of_range_indices(cpu_library, body_library, monkeypatch, name, index, value):
    monkeypatch.setattr(native, "cpu_library", lambda: cpu_library)
    case = make_case("full", torch.float32, 8, 3, 4, holes=False)
    k, _, lane, source, position = case
    source[1] = 0
    {"lane": lane, "source": source, "position": position}[name][index] = value
    before = bits(k).clone()
    with pytest.raises(ValueError, match=r"layer 1, row 2: .* out of range, expected source < 4"):
        native.kv_copy_forward_cpu(*case)
    assert torch.equal(bits(k), before)
    # on a GPU the rows beside it are served
    run_body(body_library, case, seed=0)
    assert torch.equal(bits(k[lane[1, 0], :, position[0]]), bits(k[lane[0, 0], :, position[0]]))


def test_wrong_tensors_raise_before_the_kernel():
    k, v, lane, source, position = make_case("full", torch.float32, 8, 3, 3, holes=False)
    for bad, message in [
        ((k, v[1:], lane, source, position), r"v_cache: got \[10, .*expected \[11, 3, 7, 8\]"),
        ((k[:, :, :, ::2], v[:, :, :, ::2], lane, source, position), "k_cache: got strides"),
        ((k, v.half(), lane, source, position), "v_cache: got .*float16.*expected .*float32"),
        ((k, v, lane.long(), source, position), "lane: got .*int64.*expected .*int32"),
        ((k, v, lane, source.T, position), "source: got strides"),
        ((k, v, lane, source[:2], position), r"source: got \[2, 3\]"),
        ((k, v, lane, source, position[:2]), r"position: got \[2\]"),
        ((k[0], v, lane, source, position), "k_cache: got shape .* expected 4 dimensions"),
        ((k, v, lane[0], source, position), "lane: got shape .* expected 2 dimensions"),
    ]:
        with pytest.raises(ValueError, match=message):
            native.kv_copy_forward_cpu(*bad)
    with pytest.raises(ValueError, match="k_cache: got a tensor on cpu, expected one on cuda"):
        native.kv_copy_forward_cuda(k, v, lane, source, position)


@pytest.mark.parametrize("arch", ["80", "90"])
def test_nvcc_compiles_without_spills_or_stack(tmp_path, arch):
    report = nvcc_report(ROOT / "csrc/cuda/kv_copy_forward.cu", arch, tmp_path)
    # one kernel per access width: 16, 8, 4, 2, 1 bytes
    assert report.stacks == [("0", "0", "0")] * 5
    # 64 registers let an SM hold 8 of its blocks of 128 threads
    assert len(report.registers) == 5 and max(report.registers) <= 64
    assert len(re.findall(r"ld\.global\.v4\.\w+", report.ptx)) == 2
    assert len(re.findall(r"st\.global\.v4\.\w+", report.ptx)) == 2


def test_cuda_launcher_reports_a_missing_device():
    if not native.status()["cuda"]["available"]:
        pytest.skip(f"no CUDA library: {native.status()['cuda']['reason']}")
    if native.cuda_missing() is None:
        pytest.skip("a CUDA device is here: the tests marked gpu launch on it")
    case = make_case("random", torch.float32, 8, 3, 4, holes=False)
    arguments = native._kv_copy_forward_arguments("cpu", *case)
    error = native.cuda_library().dynkern_cuda_kv_copy_forward(ctypes.byref(arguments), 0, None)
    assert error != 0
    assert native.cuda_library().dynkern_cuda_error_string(error)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 33])
@pytest.mark.parametrize("head_size", [5, 60, 64])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("pattern", ROUTES)
def test_cuda_bits_equal_plain_loop(pattern, dtype, head_size, rows):
    if reason := native.cuda_missing():
        pytest.skip(reason)

    def launch(*case: Tensor) -> None:
        on_device = [tensor.cuda() for tensor in case]
        native.kv_copy_forward_cuda(*on_device)
        for tensor, result in zip(case, on_device, strict=True):
            tensor.copy_(result)

    assert_as_plain_loop(launch, make_case(pattern, dtype, head_size, rows, 6, holes=True))
