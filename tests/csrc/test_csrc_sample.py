"""csrc/cpu/philox.h, float_math.h and sample.h in every instruction set, against the references."""

from __future__ import annotations

import ctypes
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dynkern import rng
from dynkern.kernels.reference.sample import sample as reference_sample
from dynkern.routes import TokenProgram

SOURCE = Path(__file__).with_name("sample_body.cpp")
FLAGS = {
    "portable": [],
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma"],
}
SEEDS = [0, 1, 0xFFFFFFFF, 1 << 32, (1 << 64) - 1, 0x1234567890ABCDEF]
INF = float("inf")
OFF = {"seed": 99, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}

U64, I64, U32 = ctypes.c_uint64, ctypes.c_int64, ctypes.c_uint32
ADDRESS = ctypes.c_void_p


class SampleRow(ctypes.Structure):
    _fields_ = [
        ("logits", ADDRESS),
        ("vocab", I64),
        ("history", ADDRESS),
        ("history_length", I64),
        ("request", I64),
        ("step", I64),
        ("seed", U64),
        ("temperature", ctypes.c_double),
        ("top_k", I64),
        ("top_p", ctypes.c_double),
        ("repetition_penalty", ctypes.c_double),
    ]


SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "run_philox": (None, [ADDRESS, I64, U64, ADDRESS]),
    "run_layer_uniforms": (None, [U64, I64, I64, I64, U32, ADDRESS]),
    "run_program_keep": (
        None,
        [U64, I64, I64, I64, ADDRESS, I64, ctypes.c_int32, ADDRESS, ADDRESS],
    ),
    "run_draw_chunk": (I64, []),
    "run_vocabulary_uniforms": (None, [U64, I64, I64, I64, ADDRESS]),
    "run_exp": (None, [ADDRESS, I64, ADDRESS]),
    "run_log": (None, [ADDRESS, I64, ADDRESS]),
    "run_scratch_floats": (I64, [I64]),
    "run_scratch_indices": (I64, [I64]),
    "run_sample": (I64, [ctypes.POINTER(SampleRow), ADDRESS, ADDRESS]),
}


def runs_here(isa: str) -> bool:
    capability = torch.backends.cpu.get_cpu_capability()
    return {"avx2": capability in ("AVX2", "AVX512"), "avx512": capability == "AVX512"}[isa]


@pytest.fixture(scope="module", params=FLAGS)
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    isa = request.param
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no g++ to compile csrc with")
    if isa != "portable" and not runs_here(isa):
        pytest.skip(f"this processor has no {isa}")
    output = tmp_path_factory.mktemp("sample") / f"{isa}.so"
    flags = ["-std=c++17", "-O3", "-shared", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
    command = [compiler, *flags, "-Werror", *FLAGS[isa], f"-DDYNKERN_ISA={isa}", str(SOURCE)]
    done = subprocess.run([*command, "-o", str(output)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = ctypes.CDLL(str(output))
    for name, (result, arguments) in SIGNATURES.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, arguments
    return loaded


def test_philox_words_equal_reference(library):
    draw = random.Random(1)
    edges = [0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]
    counters = [[draw.choice([*edges, draw.getrandbits(32)]) for _ in range(4)] for _ in range(500)]
    given = torch.tensor(counters)
    passed = given.to(torch.uint32).contiguous()
    for seed in SEEDS:
        out = torch.zeros(500, 4, dtype=torch.uint32)
        library.run_philox(passed.data_ptr(), 500, seed, out.data_ptr())
        expected = torch.stack(rng.philox(tuple(given.unbind(1)), seed), dim=1)
        assert torch.equal(out.to(torch.int64), expected)


def test_philox_known_answer(library):
    # of the publication's library
    counters = np.array([0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], dtype=np.uint32)
    out = np.zeros(4, dtype=np.uint32)
    library.run_philox(counters.ctypes.data, 1, 0x299F31D0A4093822, out.ctypes.data)
    assert out.tolist() == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


@pytest.mark.parametrize("seed", SEEDS)
def test_uniforms_equal_reference_bit_for_bit(library, seed):
    chunk = library.run_draw_chunk()
    for request, step in [(0, 0), (3, 17), (2**32 - 1, 2**32 + 5), (2**40 + 1, 1023)]:
        counters = torch.tensor([request]), torch.tensor([step])
        out = torch.zeros(24 * chunk)
        library.run_vocabulary_uniforms(seed, request, step, 24, out.data_ptr())
        expected = rng.vocabulary_uniforms(seed, *counters, 24 * chunk)[0]
        assert torch.equal(out, expected)
        for num_layers in (1, 12, 33):
            for stream in (rng.STREAM_PLAN, rng.STREAM_STEP, rng.STREAM_GATE):
                out = torch.zeros(num_layers)
                library.run_layer_uniforms(seed, request, step, num_layers, stream, out.data_ptr())
                expected = rng.layer_uniforms(seed, *counters, num_layers, stream)[:, 0]
                assert torch.equal(out, expected)


def test_largest_uniform_is_below_one(library):
    # a draw whose 24 bits are all ones: without the clamp, the entry would win whatever its logit
    request, entry = 485, 26587
    vocab = 208 * library.run_draw_chunk()
    out = torch.zeros(vocab)
    library.run_vocabulary_uniforms(0, request, 0, 208, out.data_ptr())
    assert float(out[entry]) == 1 - 2.0**-24
    counters = torch.tensor([request]), torch.tensor([0])
    assert torch.equal(out, rng.vocabulary_uniforms(0, *counters, vocab)[0])
    # as a score, 16.6: enough among equals, too little against 20 more
    logits = torch.zeros(1, vocab)
    options = OFF | {"seed": 0}
    assert Sampler(library, vocab)(logits, None, *counters, **options).tolist() == [entry]
    logits[0, 5] = 20.0 + 16.7
    assert Sampler(library, vocab)(logits, None, *counters, **options).tolist() == [5]


def keep_bits(library, program: TokenProgram, seed: int, request: int, step: int, layers: int):
    probability = None
    if program.kind == "bernoulli":
        probability = torch.tensor(program.probability)
    scratch, keep = torch.zeros(layers), torch.full((layers,), 7, dtype=torch.uint8)
    library.run_program_keep(
        seed,
        request,
        step,
        layers,
        None if probability is None else probability.data_ptr(),
        program.budget,
        program.force_first,
        scratch.data_ptr(),
        keep.data_ptr(),
    )
    return keep


def test_program_keep_equals_draw(library):
    draw = random.Random(2)
    for seed in range(300):
        layers = draw.randint(1, 48)
        request, step = draw.getrandbits(draw.choice([3, 31, 40])), draw.getrandbits(10)
        probability = tuple(draw.choice([0.0, 1.0, draw.random()]) for _ in range(layers))
        budget = draw.randint(1, layers)
        for program in (
            TokenProgram("bernoulli", probability=probability),
            TokenProgram("subset", budget=budget),
            TokenProgram("subset", budget=budget, force_first=True),
        ):
            keep = keep_bits(library, program, seed, request, step, layers)
            expected = program.draw(seed, torch.tensor([request]), torch.tensor([step]), layers)
            assert keep.tolist() == expected[:, 0].tolist()


class Sampler:
    """run_sample over rows, with guards behind the scratch and a look at the logits afterwards."""

    GUARD = 8

    def __init__(self, library: ctypes.CDLL, vocab: int) -> None:
        self.library, self.vocab = library, vocab
        self.n_floats = library.run_scratch_floats(vocab)
        self.n_indices = library.run_scratch_indices(vocab)
        self.scratch = torch.full((self.n_floats + self.GUARD,), float("nan"))
        self.index = torch.full((self.n_indices + self.GUARD,), -7, dtype=torch.int32)

    def __call__(
        self, logits: Tensor, history: Tensor | None, request: Tensor, step: Tensor, **options
    ) -> Tensor:
        before = logits.clone()
        tokens = []
        for row in range(logits.shape[0]):
            given = SampleRow(
                logits=logits[row].data_ptr(),
                vocab=self.vocab,
                history=None if history is None else history[row].data_ptr(),
                history_length=0 if history is None else history.shape[1],
                request=int(request[row]),
                step=int(step[row]),
                **options,
            )
            tokens.append(
                self.library.run_sample(
                    ctypes.byref(given), self.scratch.data_ptr(), self.index.data_ptr()
                )
            )
        assert torch.equal(logits, before)
        assert bool(self.scratch[self.n_floats :].isnan().all())
        assert bool((self.index[self.n_indices :] == -7).all())
        return torch.tensor(tokens)


def is_a_matter_of_rounding(
    logits: Tensor,
    history: Tensor | None,
    request: Tensor,
    step: Tensor,
    options: dict[str, Any],
    tokens: list[int],
) -> bool:
    """Whether, in float64, the tokens are within 1e-5 in score, or one within 1e-5 of top_p."""
    scores = logits.double()
    if history is not None and options["repetition_penalty"] != 1.0:
        seen = history[history >= 0].unique()
        penalty = options["repetition_penalty"]
        old = scores[seen]
        scores[seen] = torch.where(old > 0, old / penalty, old * penalty)
    if options["temperature"] == 0.0:
        return bool(scores[tokens[0]] == scores[tokens[1]])
    scores = scores / options["temperature"]
    uniforms = rng.vocabulary_uniforms(options["seed"], request[None], step[None], len(scores))[0]
    perturbed = scores - (-uniforms.double().log()).log()
    scale = max(1.0, float(scores[tokens].abs().max()))
    if abs(float(perturbed[tokens[0]] - perturbed[tokens[1]])) < 1e-5 * scale:
        return True
    if options["top_p"] == 1.0:
        return False
    ranked, order = scores.sort(descending=True, stable=True)
    if options["top_k"]:
        ranked, order = ranked[: options["top_k"]], order[: options["top_k"]]
    chance = ranked.softmax(dim=0)
    before = chance.cumsum(dim=0) - chance
    at = [(order == token).nonzero() for token in tokens]
    return any(len(i) and abs(float(before[i]) - options["top_p"]) < 1e-5 for i in at)


def assert_as_reference(sampler: Sampler, rows: tuple[Tensor, ...], options: dict) -> int:
    """Number of rows that differ by rounding alone; any other difference fails."""
    tokens = sampler(*rows, **options)
    expected = reference_sample(*rows, **options)
    differ = (tokens != expected).nonzero().flatten().tolist()
    for row in differ:
        own = [part if part is None else part[row] for part in rows]
        pair = [int(tokens[row]), int(expected[row])]
        assert is_a_matter_of_rounding(*own, options, pair), (row, pair, options)
    return len(differ)


def make_logits(pattern: str, rows: int, vocab: int, generator: torch.Generator) -> Tensor:
    noise = torch.randn(rows, vocab, generator=generator)
    if pattern == "normal":
        return noise * 3
    if pattern == "ties":
        return noise.round()
    if pattern == "equal":
        return torch.full((rows, vocab), 2.5)
    if pattern == "wide":
        return noise * 10.0 ** torch.randint(-30, 30, (rows, 1), generator=generator)
    if pattern == "peaked":
        return noise - 30 * torch.rand(rows, vocab, generator=generator) ** 0.1
    if pattern == "ascending":
        return torch.arange(vocab, dtype=torch.float32).expand(rows, -1) / 50
    if pattern == "zeros":
        return torch.where(noise > 0, 0.0, -0.0)
    noise[torch.rand(rows, vocab, generator=generator) < 0.6] = -INF
    return noise


PATTERNS = ["normal", "ties", "equal", "wide", "peaked", "ascending", "zeros", "-inf"]


def make_rows(pattern: str, n: int, vocab: int, seed: int, with_history: bool):
    generator = torch.Generator().manual_seed(seed)
    logits = make_logits(pattern, n, vocab, generator).contiguous()
    history = None
    if with_history:
        history = torch.randint(-1, vocab, (n, 40), generator=generator)
    request = torch.randint(0, 2**33, (n,), generator=generator)
    step = torch.randint(0, 2048, (n,), generator=generator)
    return logits, history, request, step


@pytest.mark.parametrize("vocab", [2, 3, 127, 128, 129, 1000])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_tokens_equal_reference(library, pattern, vocab):
    sampler, draw = Sampler(library, vocab), random.Random(f"{pattern} {vocab}")
    differences = 0
    for seed in range(40):
        options = {
            "seed": draw.choice([seed, draw.getrandbits(64)]),
            "temperature": draw.choice([1.0, 0.7, 0.1, 3.0, 0.0]),
            "top_k": draw.choice([0, 0, 1, 5, 40, vocab // 2, vocab - 1, vocab, vocab + 9]),
            "top_p": draw.choice([1.0, 1.0, 0.9, 0.5, 0.05, draw.random()]),
            "repetition_penalty": draw.choice([1.0, 1.3, 0.8]),
        }
        rows = make_rows(pattern, 8, vocab, seed, draw.random() < 0.7)
        differences += assert_as_reference(sampler, rows, options)
    assert differences <= 6  # of 320


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 0.0, "repetition_penalty": 1.2},
        {"top_k": 50},
        {"top_k": 3000},
        {"top_p": 0.9},
        {"top_p": 0.2},
        {"top_k": 200, "top_p": 0.8, "temperature": 1.5, "repetition_penalty": 1.1},
    ],
    ids=str,
)
def test_tokens_of_a_large_vocabulary_equal_reference(library, options):
    vocab = 50272
    sampler = Sampler(library, vocab)
    options = OFF | options
    for pattern in ("normal", "peaked", "ties"):
        rows = make_rows(pattern, 12, vocab, 5, True)
        assert assert_as_reference(sampler, rows, options) <= 1


@pytest.mark.parametrize("vocab", [2, 4, 10, 24, 100, 640])
def test_top_p_that_equal_scores_meet_exactly(library, vocab):
    sampler = Sampler(library, vocab)
    logits = torch.full((60, vocab), -1.25)
    request, step = torch.arange(60), torch.arange(60) % 7
    for k in range(1, 21):
        options = OFF | {"seed": k, "top_p": (k * vocab // 21 + 1) / vocab}
        expected = reference_sample(logits, None, request, step, **options)
        assert torch.equal(sampler(logits, None, request, step, **options), expected)


@pytest.mark.parametrize("top_p", [1.0, 0.5, 1e-9])
@pytest.mark.parametrize("top_k", [0, 1, 3])
def test_rows_without_a_finite_choice(library, top_k, top_p):
    sampler = Sampler(library, 300)
    logits = torch.full((3, 300), -INF)
    logits[1, 277] = 0.5
    # overflows on the way
    logits[2] = -1e38
    logits[2, 150:] = 1e38
    options = OFF | {"temperature": 0.01, "top_k": top_k, "top_p": top_p}
    rows = logits, None, torch.arange(3), torch.arange(3)
    assert sampler(*rows, **options).tolist() == [0, 277, 150]
    assert reference_sample(*rows, **options).tolist() == [0, 277, 150]


def ulps(got: np.ndarray, exact: np.ndarray) -> np.ndarray:
    return np.abs(got.astype(np.float64) - exact) / np.spacing(np.abs(exact).astype(np.float32))


def applied(function, x: np.ndarray) -> np.ndarray:
    out = np.zeros_like(x)
    function(x.ctypes.data, x.size, out.ctypes.data)
    return out


def test_exp_is_accurate(library):
    dense = np.linspace(-87.3, 88.0, 2_000_001, dtype=np.float32)
    around_zero = np.concatenate([np.geomspace(1e-38, 1.0, 100_001)] * 2).astype(np.float32)
    around_zero[: around_zero.size // 2] *= -1
    for x in (dense, around_zero, np.zeros(3, dtype=np.float32)):
        assert ulps(applied(library.run_exp, x), np.exp(x.astype(np.float64))).max() <= 2.0
    assert (applied(library.run_exp, np.zeros(3, dtype=np.float32)) == 1.0).all()
    below = np.array([-INF, -3e38, -1e4, -104.0, -88.0, -87.31], dtype=np.float32)
    assert (applied(library.run_exp, below) == 0.0).all()


def test_log_is_accurate(library):
    tiny, huge = np.finfo(np.float32).tiny, np.finfo(np.float32).max
    # all floats next to 1, where the logarithm loses its leading bits
    near_one = np.arange(0x3F700000, 0x3F900000, dtype=np.uint32).view(np.float32)
    normal = np.geomspace(tiny, huge, 2_000_001).astype(np.float32).clip(tiny, huge)
    draws = ((np.arange(0, 1 << 24, 7) + 0.5) * 2.0**-24).astype(np.float32)
    draws = draws.clip(None, 1 - 2.0**-24).astype(np.float32)
    for x in (near_one, normal, draws):
        got, exact = applied(library.run_log, x), np.log(x.astype(np.float64))
        assert ulps(got, exact).max() <= 2.0
    assert applied(library.run_log, np.ones(1, dtype=np.float32))[0] == 0.0
