"""The thread team of csrc/cpu under team_stress.cpp: plain, with pauses, and under TSan."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from support.compilers import compile_program, need_compiler, need_sanitizer

SOURCE = Path(__file__).with_name("team_stress.cpp")
SECTIONS = ("jobs", "gaps", "late", "users", "forks", "throws", "refused")
BEYOND_TSAN = {
    "forks": "TSan loses count of threads that a forked child starts",
    "refused": "TSan's own address space leaves no room for a limit on it",
}


@pytest.fixture(scope="module", params=["plain", "pauses", "tsan", "tsan_pauses"])
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler, flags = need_compiler("g++", "c++", "clang++"), ["-O2", "-g"]
    if request.param.startswith("tsan"):
        need_sanitizer(compiler, "thread")
        flags.append("-fsanitize=thread")
    if request.param.endswith("pauses"):
        flags.append("-DDYNKERN_PAUSES")
    target = tmp_path_factory.mktemp("team") / request.param
    return compile_program(compiler, flags, [SOURCE], target)


@pytest.mark.parametrize("section", SECTIONS)
def test_team_keeps_its_promises(program, section):
    if section in BEYOND_TSAN and program.name.startswith("tsan"):
        pytest.skip(BEYOND_TSAN[section])
    seed = int.from_bytes(os.urandom(4), "little")
    done = subprocess.run(
        [str(program), section, str(seed)],
        env={**os.environ, "TSAN_OPTIONS": "halt_on_error=1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, f"seed {seed}: {done.stdout}{done.stderr}"
    assert done.stdout == f"{section} done\n"
