"""csrc/cpu by other compilers and for other processors: no warnings, and the same results."""

from __future__ import annotations

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support.compilers import compile_program, cpu_sources, need_compiler

CHECK = Path(__file__).with_name("kernel_check.cpp")


@pytest.fixture(scope="module", params=["clang++", "aarch64-linux-gnu-g++"])
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """The compiler, and an object of every source."""
    compiler, folder = need_compiler(request.param), tmp_path_factory.mktemp("objects")

    def one(source: Path) -> Path:
        target = folder / f"{source.stem}.o"
        return compile_program(compiler, ["-O1", "-fPIC", "-c"], [source], target)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return compiler, list(pool.map(one, cpu_sources()))


def test_kernels_against_plain_loops(compiled, tmp_path):
    compiler, objects = compiled
    cross = Path(compiler).name.startswith("aarch64")
    run = []
    if cross:
        emulator = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
        if emulator is None:
            pytest.skip("compiled; no qemu-aarch64 to run it with")
        run = [emulator]
    flags = ["-O1", *(["-static"] if cross else [])]
    program = compile_program(compiler, flags, [CHECK, *objects], tmp_path / "kernel_check")
    done = subprocess.run([*run, str(program)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert not cross or done.stdout == "portable\n"


def test_no_source_is_left_out(compiled):
    assert len(compiled[1]) == len(cpu_sources()) > 10
