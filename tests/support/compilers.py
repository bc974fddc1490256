"""Compilers for tests of csrc: g++ for bodies that run on the CPU, nvcc for what it reports."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import pytest


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
