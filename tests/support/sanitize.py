"""Runs tests against csrc/cpu built with AddressSanitizer and UndefinedBehaviorSanitizer.

`python -m tests.support.sanitize [pytest arguments]`, from the repository's root; without arguments
the op, engine and model tests. The tree is copied to a temporary folder and built there; the first
error of either sanitizer ends the run. Compilers other than g++ by CXX.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from .tree import copy_tree

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("csrc", "dynkern", "tests", "pyproject.toml", "setup.py")
WHOLE = ("tests/ops", "tests/runtime", "tests/models", "tests/test_llm.py")
FLAGS = "-fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all"


def compiler() -> str | None:
    return shutil.which(os.environ.get("CXX") or "g++")


def runtimes(cxx: str) -> list[str]:
    """What must be loaded ahead of a Python that was built without: the sanitizers, and libstdc++,
    whose exceptions they watch. Raises RuntimeError where the compiler lacks one.
    """
    paths = []
    for name in ("libasan.so", "libubsan.so", "libstdc++.so"):
        asked = [cxx, f"-print-file-name={name}"]
        path = Path(subprocess.run(asked, capture_output=True, text=True).stdout.strip())
        if not path.is_absolute() or not path.exists():
            raise RuntimeError(f"{Path(cxx).name} has no {name}")
        paths.append(str(path.resolve()))
    return paths


def build(folder: Path, cxx: str, level: str = "-O1 -g") -> Path:
    """A copy of the tree with a sanitized csrc/cpu; raises RuntimeError where it does not build."""
    tree = copy_tree(COPIED, folder / "tree")
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=tree,
        # nvcc knows no such target: csrc/cuda is left out
        env={**os.environ, "CXX": cxx, "CXXFLAGS": f"{level} {FLAGS}", "DYNKERN_CUDA_ARCHS": "1"},
        capture_output=True,
        text=True,
    )
    if not (tree / "dynkern/_cpu.so").exists():
        raise RuntimeError(done.stdout + done.stderr)
    return tree


def environment(tree: Path, cxx: str) -> dict[str, str]:
    """For a Python that imports the package of that tree."""
    return {
        **os.environ,
        "PYTHONPATH": str(tree),
        "LD_PRELOAD": ":".join(runtimes(cxx)),
        # Python leaks on purpose
        "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1:detect_stack_use_after_return=1",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    }


def main(arguments: list[str]) -> int:
    cxx = compiler()
    if cxx is None:
        sys.exit("no C++ compiler")
    with tempfile.TemporaryDirectory() as folder:
        tree = build(Path(folder), cxx)
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
        # output of a sanitizer goes past what pytest holds back
        command += ["--capture=sys", *(arguments or WHOLE)]
        print(shlex.join(command), flush=True)
        return subprocess.run(command, cwd=tree, env=environment(tree, cxx)).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
