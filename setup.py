"""Builds the native libraries: torch-free shared objects with a C ABI, loaded with ctypes.

csrc/cpu becomes dynkern/_cpu.so (C++ compiler) and csrc/cuda dynkern/_cuda.so (nvcc), by ninja from
generated files under build/native: in parallel, and only what changed (without ninja: all of it).
No failure here fails an installation: dynkern/_build_info.json says what was built, how, or why
not. Environment:
DYNKERN_SKIP_EXT=1 (pure Python), DYNKERN_CUDA_ARCHS ("80;90"), CXX, CXXFLAGS, CUDA_HOME.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

SKIP = os.environ.get("DYNKERN_SKIP_EXT", "0") not in ("", "0")
SOURCES = {"cpu": sorted(glob("csrc/cpu/*.cpp")), "cuda": sorted(glob("csrc/cuda/*.cu"))}
# binutils know it from 2.36 on
AVX_VNNI = "{vex} vpdpbusd %ymm0, %ymm1, %ymm2"
NINJA = """builddir = {work}
rule compile
  command = {compiler} {flags} -MD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
rule link
  command = {compiler} {flags} -shared $in -o $out
"""


def find(what: str, *places: str | None) -> str:
    """The path of the first of `places` that is a program; raises RuntimeError."""
    for place in filter(None, places):
        if path := shutil.which(place):
            return path
    raise RuntimeError(f"{what} not found (tried {', '.join(filter(None, places))})")


def assembles(compiler: list[str], instruction: str) -> bool:
    """Whether an instruction passes through compiler and assembler."""
    command = [*compiler, "-x", "c++", "-c", "-", "-o", os.devnull]
    code = f'void f() {{ asm("{instruction}"); }}'
    return subprocess.run(command, input=code, text=True, capture_output=True).returncode == 0


def toolchain(name: str) -> tuple[list[str], list[str]]:
    """Compiler command and flags of one library; raises RuntimeError without a compiler."""
    if SKIP:
        raise RuntimeError("left out at installation by DYNKERN_SKIP_EXT=1")
    if name == "cpu":
        named, own = (shlex.split(os.environ.get(key, "")) for key in ("CXX", "CXXFLAGS"))
        cxx = find("C++ compiler", *(named[:1] or ["c++", "g++", "clang++"]))
        flags = "-std=c++17 -O3 -fPIC -fvisibility=hidden -ffp-contract=off -pthread -Wall -Wextra"
        compiler = [cxx, *named[1:]]
        known = ["-DDYNKERN_AVX_VNNI"] if assembles(compiler, AVX_VNNI) else []
        return compiler, [*flags.split(), *known, *own]
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = find("CUDA compiler", home and f"{home}/bin/nvcc", "nvcc", "/usr/local/cuda/bin/nvcc")
    archs = os.environ.get("DYNKERN_CUDA_ARCHS", "80;90").split(";")
    codes = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    ptx = archs[-1].rstrip("af")  # PTX of an arch-specific target (90a) runs nowhere else
    codes.append(f"-gencode=arch=compute_{ptx},code=compute_{ptx}")
    flags = ["-std=c++17", "-O3", "-Xcompiler", "-fPIC,-fvisibility=hidden,-Wall"]
    return [nvcc], [*flags, "-cudart", "static", *codes]


def run(*command: str) -> str:
    """Output of a command; raises RuntimeError with the line that tells why it failed."""
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    output = (done.stdout + done.stderr).strip()
    if done.returncode:
        sys.stderr.write(output + "\n")
        telling = re.search(r"(?i).*\b(?:fatal|error|not found)\b.*|.*$", output)
        raise RuntimeError(f"{Path(command[0]).name} failed: {telling[0]}")
    return output


def compile_all(compiler: list[str], flags: list[str], objects: dict[str, str], out: str) -> None:
    """What ninja does, but for what has not changed."""
    command = [*compiler, *flags]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda file: run(*command, "-c", objects[file], "-o", file), objects))
    run(*command, "-shared", *objects, "-o", out)


def build_library(name: str, target: Path) -> dict:
    """Builds target/_<name>.so; returns its entry of _build_info.json, and never raises."""
    info: dict = {"built": False, "reason": None}
    work, library = f"build/native/{name}", target / f"_{name}.so"
    try:
        library.unlink(missing_ok=True)  # one of an earlier build must not pass for this one
        compiler, flags = toolchain(name)
        info |= {"compiler": shlex.join(compiler), "flags": shlex.join(flags)}
        version_lines = re.findall(r".*\d\.\d.*", run(*compiler, "--version"))
        info["compiler_version"] = (version_lines or ["unknown"])[0]
        objects = {f"{work}/{Path(source).name}.o": source for source in SOURCES[name]}
        steps = [f"build {out}: compile {source}\n" for out, source in objects.items()]
        steps.append(f"build {work}/{library.name}: link {' '.join(objects)}\n")
        os.makedirs(work, exist_ok=True)
        Path(work, "build.ninja").write_text(NINJA.format(work=work, **info) + "".join(steps))
        if ninja := shutil.which(f"{sys.prefix}/bin/ninja") or shutil.which("ninja"):
            run(ninja, "-f", f"{work}/build.ninja")
        else:
            compile_all(compiler, flags, objects, f"{work}/{library.name}")
        shutil.copy2(Path(work, library.name), library)
        info["built"] = True
    except (RuntimeError, OSError) as error:
        info["reason"] = str(error)
        sys.stderr.write(f"dynkern: {library.name} not built: {error}\n")
    return info


class BuildNative(build_ext):
    def get_output_mapping(self) -> dict[str, str]:
        return {}  # an editable install must not ask for a library that could not be built

    def run(self) -> None:
        target = Path("." if self.inplace else self.build_lib, "dynkern")
        target.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor() as pool:
            entries = pool.map(lambda name: (name, build_library(name, target)), SOURCES)
        info = {"version": self.distribution.get_version(), "libraries": dict(entries)}
        (target / "_build_info.json").write_text(json.dumps(info, indent=2) + "\n")


class Wheel(bdist_wheel):
    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", "any" if SKIP else super().get_tag()[2]  # no Python ABI inside


if __name__ == "__main__":
    setup(
        ext_modules=[Extension(f"dynkern._{name}", files) for name, files in SOURCES.items()],
        cmdclass={"build_ext": BuildNative, "bdist_wheel": Wheel},
    )
