"""C++ programs and libraries that tests compile from csrc and tests/csrc."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ("-std=c++17", "-ffp-contract=off", "-pthread", "-Wall", "-Wextra", "-Werror")


def cpu_sources() -> list[Path]:
    return sorted((ROOT / "csrc/cpu").glob("*.cpp"))


def need_compiler(*names: str) -> str:
    """The path of the first of `names` that is there; skips the test without any."""
    for name in names:
        if path := shutil.which(name):
            return path
    pytest.skip(f"no {' or '.join(names)} to compile csrc with")


def compile_program(
    compiler: str, flags: Sequence[str], sources: Sequence[Path], target: Path
) -> Path:
    """Compile and link `sources` to `target`, with warnings as errors; returns it."""
    command = [compiler, *FLAGS, *flags, *map(str, sources), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


@cache
def _sanitizer_refusal(compiler: str, name: str) -> str | None:
    """Why a program under -fsanitize=name cannot be had here, or None."""
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder, "main.cpp"), Path(folder, "main")
        source.write_text("int main() { return 0; }\n")
        command = [compiler, f"-fsanitize={name}", str(source), "-o", str(program)]
        for step in (command, [str(program)]):
            done = subprocess.run(step, capture_output=True, text=True)
            if done.returncode:
                return (done.stderr.strip() or "it does not run").splitlines()[0]
    return None


def need_sanitizer(compiler: str, name: str) -> None:
    """Skips the test where the compiler lacks this sanitizer, or its programs do not run."""
    if refusal := _sanitizer_refusal(compiler, name):
        pytest.skip(f"{Path(compiler).name} has no -fsanitize={name}: {refusal}")


def compile_library(sources: list[Path], output: Path) -> ctypes.CDLL:
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no g++ to compile csrc with")
    flags = ["-std=c++17", "-O2", "-shared", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
    command = [compiler, *flags, "-Werror", *map(str, sources), "-o", str(output)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(output))


def nvcc() -> str:
    home = os.environ.get("CUDA_HOME") or "/usr/local/cuda"
    path = shutil.which("nvcc") or shutil.which(f"{home}/bin/nvcc")
    if path is None:
        pytest.skip("no nvcc to compile csrc/cuda with")
    return path


@dataclass(frozen=True)
class NvccReport:
    """What nvcc says of a source's kernels: registers and (stack, stores, loads) of each; PTX."""

    registers: list[int]
    stacks: list[tuple[str, str, str]]
    ptx: str


def nvcc_report(source: Path, arch: str, folder: Path) -> NvccReport:
    """Compile a .cu file for sm_<arch> in `folder`, with warnings as errors."""
    command = [nvcc(), "-std=c++17", "-O3", f"-arch=sm_{arch}", "-Xptxas", "-v", "-Werror"]
    command += ["all-warnings", "--keep", f"--keep-dir={folder}", "-cubin", str(source)]
    done = subprocess.run(
        [*command, "-o", str(folder / "out.cubin")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    stacks = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+)", done.stderr)
    registers = [int(count) for count in re.findall(r"Used (\d+) registers", done.stderr)]
    return NvccReport(registers, stacks, next(folder.glob("*.ptx")).read_text())
