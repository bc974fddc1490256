"""Checks of GPU acceptance that time nothing: host syncs, errors of logits, compute-sanitizer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.acceptance_passes import decode_run, random_prompts
from dynkern import routes
from dynkern.ops import use_backend
from dynkern.runtime.batch import DecodeBatch
from dynkern.runtime.engine import Engine
from dynkern.runtime.executors import EagerExecutor
from dynkern.runtime.kv_cache import KVCache
from dynkern.runtime.request import SamplingParams
from dynkern.runtime.sampling import TokenPicker

ROOT = Path(__file__).resolve().parent.parent
# calls that wait for the device, and calls that launch
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaMemcpy", "cudaMalloc", "cudaFree")
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")
OTHERS = ("cudaGraphLaunch", "cudaEventSynchronize", "cudaMemcpyAsync")


def calls_of_passes(engine: Engine, spec: str, rows: int, few: int, many: int) -> dict[str, int]:
    """Runtime calls of many - few decode passes: what runs of two lengths differ by in a trace."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if engine.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    counts = []
    for passes in (few, many):
        run = decode_run(engine, spec, rows, passes + 1)
        # the cache of the longer run from the start on, and everything captured
        layers = engine.spec.num_layers
        engine.give_back(engine.take_cache(rows, rows * layers, 64 + many + 1))
        run()
        with torch.profiler.profile(activities=activities) as profile:
            run()
        counts.append(Counter({e.key: e.count for e in profile.key_averages()}))
    return {name: counts[1][name] - counts[0][name] for name in (*WAITS, *LAUNCHES, *OTHERS)}


def check_calls(calls: dict[str, int], passes: int) -> None:
    """AssertionError where passes wait for the device, or launch one kernel after another."""
    waits = {name: n for name, n in calls.items() if name in WAITS and n > 0}
    launches = sum(calls[name] for name in LAUNCHES)
    # drawing ahead and what comes once a run may differ by a few launches, a pass has dozens
    if waits or launches > passes or calls["cudaGraphLaunch"] < passes:
        raise AssertionError(f"{passes} more passes made these calls: {calls}")


class _Forced(TokenPicker):
    """Keeps logits and picks what it is told to."""

    is_greedy = False

    def __init__(self, head: Any, tokens: Tensor) -> None:
        super().__init__(head, SamplingParams(), 0)
        self.tokens, self.logits = tokens, []

    def pick(self, hidden, n, rows, request, step):
        self.logits.append(self.head.logits(hidden, n).double())
        return self.tokens[len(self.logits) - 1]


def teacher_forced(executor: EagerExecutor, prompts: list, tokens: Tensor) -> Tensor:
    """Logits [P, R, V] in float64 of the prompts' last tokens and of forced decode passes.

    tokens: int64 [P, R] on the device, what each pass is told to pick.
    """
    layers, rows, length = executor.spec.num_layers, len(prompts), len(prompts[0])
    full = routes.full(layers)
    cache = KVCache(
        layers,
        rows,
        rows * layers,
        executor.spec.num_heads,
        executor.spec.head_size,
        length + len(tokens),
        executor.dtype,
        executor.device,
    )
    batch = DecodeBatch(layers, rows, "project", None, 0, executor.device)
    picker = _Forced(executor.head, tokens)
    state = executor.prefill(prompts)
    for slot in range(rows):
        own = slice(state.bounds[slot], state.bounds[slot + 1])
        cache.admit(slot, full, state.keys[:, own], state.values[:, own])
        batch.admit(slot, 0, length, slot, full)
    slots = torch.arange(rows, dtype=torch.int32, device=executor.device)
    batch.token.copy_(picker.pick(state.hidden, None, slots, batch.request, batch.step))
    for _ in range(1, len(tokens)):
        batch.advance(executor.decode(batch, cache, picker).token)
    return torch.stack(picker.logits)


def logits_errors(engine: Engine, rows: int, passes: int) -> dict[str, float]:
    """Root mean square errors against float64, of the kernels and of plain PyTorch in the same
    dtype, relative to the true logits' own; ratio: kernels over PyTorch.
    """
    spec, weights = engine.spec, engine.weights
    prompts = random_prompts(engine, rows)
    tokens = torch.randint(4, spec.vocab_size, (passes + 1, rows)).to(engine.device)
    with torch.inference_mode():
        own = teacher_forced(EagerExecutor(spec, weights), prompts, tokens)
        with use_backend("reference"):
            plain = teacher_forced(EagerExecutor(spec, weights), prompts, tokens)
            wide = EagerExecutor(spec, in_float64(weights))
            true = teacher_forced(wide, prompts, tokens)
    size = true.square().mean().sqrt()
    errors = {
        name: float((found - true).square().mean().sqrt() / size)
        for name, found in (("kernels", own), ("pytorch", plain))
    }
    return {**errors, "ratio": errors["kernels"] / max(errors["pytorch"], 1e-300)}


def in_float64(value: Any) -> Any:
    """Weights with every tensor widened; what is tied stays tied to its own copy."""
    if isinstance(value, Tensor):
        return value.double()
    if isinstance(value, list):
        return [in_float64(item) for item in value]
    if is_dataclass(value):
        inits = [field.name for field in fields(value) if field.init]
        return replace(value, **{name: in_float64(getattr(value, name)) for name in inits})
    return value


def sanitize(seconds: float) -> dict[str, Any]:
    """The CUDA C++ kernels' tests under compute-sanitizer, where it is there."""
    program = shutil.which("compute-sanitizer")
    beside = Path(os.environ.get("CUDA_HOME") or "/usr/local/cuda") / "bin" / "compute-sanitizer"
    if program is None and beside.is_file():
        program = str(beside)
    if program is None:
        return {"absent": "no compute-sanitizer on PATH or in CUDA_HOME"}
    chosen = "cuda and (kv_copy_forward or ragged_linear) and float32 and not residual"
    tests = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/ops/test_agreement.py"]
    command = [program, "--tool", "memcheck", "--error-exitcode", "9", sys.executable, *tests]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    try:
        done = subprocess.run(
            [*command, "-k", chosen],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=max(1.0, seconds),
        )
    except subprocess.TimeoutExpired:
        return {"left_out": f"not through after {seconds:.0f} s"}
    closing = (done.stdout.strip().splitlines() or [""])[-3:]
    if done.returncode:
        raise RuntimeError(f"compute-sanitizer: exit code {done.returncode}: {closing}")
    return {"closing": closing}
