"""csrc/cpu without memory: every allocation that fails is told, as MemoryError in Python."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dynkern.kernels import native, native_engine
from dynkern.models.packed import PackedWeights
from support.backends import needs_engine
from support.compilers import ROOT, compile_program, need_compiler
from support.opt import save_opt

pytestmark = needs_engine
SOURCE = Path(__file__).with_name("failing_memory.cpp")
# in place of libc's: fails where asked to
SHIM = """
#include <cstdlib>
extern "C" {
int memory_is_gone = 0;
void* aligned_alloc(size_t alignment, size_t bytes) noexcept {
  void* memory = nullptr;
  return memory_is_gone || posix_memalign(&memory, alignment, bytes) ? nullptr : memory;
}
}
"""
SCRIPT = """
import ctypes, sys
import torch
from dynkern.llm import LLM
from dynkern.ops import ragged_linear, use_backend

gone = ctypes.c_int.in_dll(ctypes.CDLL(None), "memory_is_gone")
executor = LLM(sys.argv[1], backend="cpu").engine.executor

def attempt(call):
    gone.value = 1
    try:
        call()
    except MemoryError as error:
        print(error)
    gone.value = 0

attempt(lambda: executor.prefill([[5, 6, 7], [8]]))
hidden = executor.prefill([[5, 6, 7], [8]]).hidden
attempt(lambda: executor.head.argmax(hidden, None))
token = executor.head.argmax(hidden, None)[0]
print(torch.equal(token, executor.head.logits(hidden, None).argmax(-1)))
# wider than what was kept of the passes
x, weight = torch.randn(2000, 300), torch.randn(70, 300)
with use_backend("cpu"):
    attempt(lambda: ragged_linear(x, weight))
    print(torch.allclose(ragged_linear(x, weight), x @ weight.T, atol=1e-3))
"""


@pytest.mark.parametrize("code", native_engine.FORMATS.values(), ids=native_engine.FORMATS)
def test_every_allocation_may_fail(tmp_path, code):
    library = native.PACKAGE / "_cpu.so"
    flags = ["-O1", f"-Wl,-rpath,{native.PACKAGE}"]
    compiler = need_compiler("g++", "c++", "clang++")
    program = compile_program(compiler, flags, [SOURCE, library], tmp_path / "failing_memory")
    done = subprocess.run([str(program), str(code)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 1000


def test_python_raises_memory_error_and_goes_on(tmp_path):
    save_opt(tmp_path / "opt", seed=4)
    (tmp_path / "shim.cpp").write_text(SHIM)
    shim = compile_program(
        need_compiler("g++", "c++", "clang++"),
        ["-O1", "-shared", "-fPIC"],
        [tmp_path / "shim.cpp"],
        tmp_path / "shim.so",
    )
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "opt")],
        env={**os.environ, "LD_PRELOAD": str(shim), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "prefill of 4 tokens in 2 prompts: out of memory",
        "LM head over 2 rows: out of memory",
        "True",
        "ragged_linear: out of memory",
        "True",
    ]


def test_weights_beyond_all_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(
        PackedWeights, "_lay_out", lambda self: setattr(self, "_arena_size", 1 << 60)
    )
    with pytest.raises(MemoryError, match=r"^weights: out of memory for 1152921504.6 GB in int8$"):
        PackedWeights(None, "int8")
