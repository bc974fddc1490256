"""The CPU engine under AddressSanitizer and UBSan, in short; support/sanitize.py runs it all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from support import sanitize
from support.compilers import need_sanitizer

WRONG = {
    "heap-buffer-overflow": "library.dynkern_cpu_read(data.data_ptr(), 1001, 1)",
    "misaligned address": "library.dynkern_cpu_read(data.data_ptr() + 1, 1, 1)",
}
# planned routes in every format and variant, listed groups, gelu, and each way to fill K/V
SELECTED = ("tests/runtime/test_native.py", "-k", "planned_routes or poison or the_head")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cxx = sanitize.compiler()
    if cxx is None:
        pytest.skip("no C++ compiler")
    need_sanitizer(cxx, "address,undefined")
    try:
        sanitize.runtimes(cxx)
    except RuntimeError as error:
        pytest.skip(str(error))
    # unoptimised: the build takes a third of the time, and no error is optimised away
    return sanitize.build(tmp_path_factory.mktemp("sanitize"), cxx, "-O0")


def run(tree: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = sanitize.environment(tree, sanitize.compiler())
    return subprocess.run(
        [sys.executable, *arguments], cwd=tree, env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize("report", WRONG)
def test_an_error_ends_the_process(tree, report):
    script = f"""
import torch
from dynkern.kernels import native
library, data = native.cpu_library(), torch.zeros(1000)
library.dynkern_cpu_read(data.data_ptr(), 1000, 1)
print("ready", flush=True)
{WRONG[report]}
"""
    done = run(tree, "-c", script)
    assert done.stdout == "ready\n" and done.returncode != 0
    assert report in done.stderr


def test_engine(tree):
    done = run(tree, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *SELECTED)
    assert done.returncode == 0, done.stdout + done.stderr
