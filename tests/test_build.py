"""The package: what setup.py builds, what it does when it cannot, and what the archives hold."""

from __future__ import annotations

import ctypes
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import dynkern
from dynkern.kernels import native
from support.checkpoint import save_checkpoint
from support.tree import copy_tree

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("pyproject.toml", "setup.py", "MANIFEST.in", "LICENSE", "csrc", "dynkern")
# nvcc knows no such target: csrc/cuda fails at once, where a real build takes seconds
NO_CUDA = {"DYNKERN_CUDA_ARCHS": "1"}
# of any kind, in folders without __init__.py too
DATA = ("py.typed", "assets/model/weights.safetensors", "evaluation/templates/report.html.j2")

pytestmark = pytest.mark.skipif(
    not (ROOT / "setup.py").exists(), reason="needs the source tree that setup.py lies in"
)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the sources as a clone has them: nothing built."""
    return sources(tmp_path / "tree")


def sources(target: Path) -> Path:
    tree = copy_tree(COPIED, target)
    for name in DATA:
        (tree / "dynkern" / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / "dynkern" / name).write_text("data\n")
    return tree


def setup_py(tree: Path, *arguments: str, **environment: str) -> str:
    """Run setup.py in `tree`; its output, whatever it compiled or not."""
    return run([sys.executable, "setup.py", *arguments], tree, **NO_CUDA, **environment)


def run(command: list[str], where: Path, **environment: str) -> str:
    """Output of a command that must succeed, on the installed packages and no others."""
    names = ("CXX", "CXXFLAGS", "CUDA_HOME", "CUDA_PATH", "DYNKERN_SKIP_EXT", "DYNKERN_CUDA_ARCHS")
    clean = {key: value for key, value in os.environ.items() if key not in (*names, "PYTHONPATH")}
    done = subprocess.run(
        command, cwd=where, env={**clean, **environment}, capture_output=True, text=True
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    return output


def libraries(tree: Path) -> dict[str, dict]:
    return json.loads((tree / "dynkern/_build_info.json").read_text())["libraries"]


def need_compiler() -> None:
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("no C++ compiler")


def test_build_makes_a_library_that_loads_and_is_incremental(tree):
    need_compiler()
    setup_py(tree, "build_ext", "--inplace", CXXFLAGS="-Werror")
    info = libraries(tree)
    assert info["cpu"]["built"] and info["cpu"]["reason"] is None
    assert {"-O3", "-Wall", "-Wextra", "-Werror"} <= {*info["cpu"]["flags"].split()}
    assert "-O3" in info["cpu"]["flags"] and "native" not in info["cpu"]["flags"]
    assert re.search(r"\d", info["cpu"]["compiler_version"])
    assert not info["cuda"]["built"] and info["cuda"]["reason"]
    library = ctypes.CDLL(str(tree / "dynkern/_cpu.so"))
    assert library.dynkern_cpu_abi() == native.CPU_ABI
    objects = {path: path.stat().st_mtime_ns for path in (tree / "build/native/cpu").glob("*.o")}
    assert len(objects) == len(list((tree / "csrc/cpu").glob("*.cpp")))

    with (tree / "csrc/cpu/library.cpp").open("a") as source:
        source.write("// touched\n")
    setup_py(tree, "build_ext", "--inplace", CXXFLAGS="-Werror")
    rebuilt = {path.name for path, time in objects.items() if path.stat().st_mtime_ns != time}
    assert rebuilt == {"library.cpp.o"}


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"CXX": "/nonexistent/c++", "CC": "/nonexistent/cc"}, "C++ compiler not found"),
        ({"CXXFLAGS": "-fno-such-flag-exists"}, "fno-such-flag-exists"),
        ({"DYNKERN_SKIP_EXT": "1"}, "DYNKERN_SKIP_EXT=1"),
    ],
    ids=["no_compiler", "failing_compile", "skipped"],
)
def test_what_cannot_be_built_fails_nothing_and_says_why(tree, monkeypatch, environment, reason):
    if "CXXFLAGS" in environment:
        need_compiler()
    stale = tree / "dynkern/_cpu.so"
    stale.write_bytes(b"of an earlier build")
    setup_py(tree, "build_ext", "--inplace", **environment)
    info = libraries(tree)
    assert [info[name]["built"] for name in ("cpu", "cuda")] == [False, False]
    assert reason in info["cpu"]["reason"] and "\n" not in info["cpu"]["reason"]
    assert not stale.exists()
    # what `dynkern info` says of this installation
    monkeypatch.setattr(native, "PACKAGE", tree / "dynkern")
    with pytest.raises(native.LibraryUnavailable, match=re.escape(reason)):
        native._open("cpu", native.CPU_ABI)


def test_source_archive_holds_what_a_build_needs(tree, tmp_path):
    (tree / "dynkern/_cpu.so").write_bytes(b"of an editable installation")
    (tree / "dynkern/_build_info.json").write_text("{}")
    setup_py(tree, "-q", "sdist", "--dist-dir", str(tmp_path / "dist"))
    [archive] = (tmp_path / "dist").iterdir()
    with tarfile.open(archive) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    compiled = {str(path.relative_to(tree)) for path in (tree / "csrc").rglob("*.*")}
    assert compiled and compiled <= names
    assert {"setup.py", "pyproject.toml", "LICENSE", "dynkern/kernels/native.py"} <= names
    assert {f"dynkern/{name}" for name in DATA} <= names
    assert not {name for name in names if name.endswith((".so", "_build_info.json"))}


def test_a_library_is_built_without_ninja_too(tree):
    need_compiler()
    # one small library says it; the whole one takes half a minute
    for source in (tree / "csrc/cpu").glob("*.cpp"):
        if source.name != "library.cpp":
            source.unlink()
    exported = 'extern "C" __attribute__((visibility("default"))) int seven() { return 7; }\n'
    (tree / "csrc/cpu/library.cpp").write_text(exported)
    hidden = "import shutil; w = shutil.which; shutil.which = lambda n, *a, **k: "
    hidden += "None if str(n).endswith('ninja') else w(n, *a, **k); "
    hidden += "import runpy; runpy.run_path('setup.py', run_name='__main__')"
    run([sys.executable, "-c", hidden, "-q", "build_ext", "--inplace"], tree, **NO_CUDA)
    assert libraries(tree)["cpu"]["built"] and not (tree / "build/native/cpu/.ninja_log").exists()
    # another name: a library that is loaded already would be handed out again
    library = ctypes.CDLL(str(shutil.copy2(tree / "dynkern/_cpu.so", tree / "without_ninja.so")))
    assert library.seven() == 7


@pytest.fixture(scope="module", params=["native", "no_compiler"])
def wheel(request, tmp_path_factory) -> tuple[str, Path]:
    """Wheels that pip makes of the source archive, beside no git: with all compilers on PATH, at
    the level that compiles fastest, and with none.
    """
    folder = tmp_path_factory.mktemp(request.param)
    tree = sources(folder / "tree")
    (tree / "tests").mkdir()
    (tree / "tests/__init__.py").touch()
    (tree / "dynkern/assets/some-model").mkdir()
    (tree / "dynkern/assets/some-model/config.json").write_text("{}")
    (tree / "dynkern/_cpu.so").write_bytes(b"of an editable installation")
    setup_py(tree, "-q", "sdist", "--dist-dir", str(folder), DYNKERN_SKIP_EXT="1")
    [archive] = folder.glob("*.tar.gz")
    shutil.rmtree(tree)
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", str(folder)]
    environment = dict(NO_CUDA)
    if request.param == "native":
        need_compiler()
        environment["CXXFLAGS"] = "-O0"
    else:
        environment["PATH"] = str(folder / "nothing")
    run([sys.executable, "-m", "pip", "wheel", *options, str(archive)], folder, **environment)
    [made] = folder.glob("*.whl")
    return request.param, made


def test_wheel_holds_the_package_only(wheel):
    kind, file = wheel
    with zipfile.ZipFile(file) as archive:
        names = set(archive.namelist())
        info = json.loads(archive.read("dynkern/_build_info.json"))
        about = f"dynkern-{dynkern.__version__}.dist-info"
        metadata = archive.read(f"{about}/METADATA").decode()
        library = archive.read("dynkern/_cpu.so") if "dynkern/_cpu.so" in names else b""
    assert {name.split("/")[0].split("-")[0] for name in names} == {"dynkern"}
    modules = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "dynkern").rglob("*.py")
        if (path.parent / "__init__.py").exists()
    }
    assert modules <= names
    assert {f"dynkern/{name}" for name in DATA} <= names
    assert "dynkern/training/recipes/opt-tasks-10m.json" in names
    assert "dynkern/assets/some-model/config.json" in names
    assert not {name for name in names if "__pycache__" in name or name.startswith("dynkern/.")}
    assert file.name.startswith(f"dynkern-{dynkern.__version__}-py3-none-")
    assert info["version"] == dynkern.__version__
    assert info["libraries"]["cpu"]["built"] == (kind == "native")
    # of this build, not the one that lay in the tree
    assert not library or library.startswith(b"\x7fELF" if sys.platform == "linux" else b"")
    assert bool(library) == (kind == "native")
    assert "License-Expression: Apache-2.0" in metadata and f"{about}/licenses/LICENSE" in names
    # in whichever order setuptools writes the ends
    assert re.search("^Requires-Python: .*>=3.10", metadata, re.MULTILINE)
    assert "Project-URL: Paper, https://" in metadata


def test_a_pure_wheel_fits_every_platform(tree, tmp_path):
    setup_py(tree, "-q", "bdist_wheel", "--dist-dir", str(tmp_path / "dist"), DYNKERN_SKIP_EXT="1")
    [file] = (tmp_path / "dist").iterdir()
    assert file.name == f"dynkern-{dynkern.__version__}-py3-none-any.whl"


# what a user would do first, in one process: torch is imported once
FIRST_STEPS = """
import sys, dynkern, torch
from dynkern.cli import main
torch.set_num_threads(1)
assert dynkern.__file__.startswith(sys.prefix), dynkern.__file__
assert main(["info"]) == 0
llm = dynkern.LLM(sys.argv[1])
print("runs on", type(llm.engine.executor).__name__)
assert main(["generate", "--model", sys.argv[1], "--prompt", "hello", "--max-new-tokens", "4"]) == 0
"""


@pytest.mark.slow
def test_an_empty_environment(wheel, tmp_path):
    kind, file = wheel
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    python = str(tmp_path / "venv/bin/python")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
    run([*pip, "--no-deps", "--no-index", str(file)], tmp_path)
    [packages] = (tmp_path / "venv/lib").glob("python*/site-packages")
    # torch and the like as they are installed here; no .pth of theirs, which may name this checkout
    others = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (packages / "others.pth").write_text("\n".join(others))
    model = save_checkpoint(tmp_path / "model", 4)
    seen = run([python, "-c", FIRST_STEPS, str(model)], tmp_path, COLUMNS="200")
    if kind == "native":
        assert "runs on NativeExecutor" in seen and "_cpu.so, uses " in seen
    else:
        assert "csrc/cpu: not available: C++ compiler not found (tried c++, g++, clang++)" in seen
        assert "lost: the engine that runs whole passes in C++, int8" in seen
        assert "runs on EagerExecutor" in seen
    assert "Layer skipping" in run([str(tmp_path / "venv/bin/dynkern"), "--help"], tmp_path)


def test_every_room_is_a_package():
    # the wheel leaves out a folder without __init__.py
    rooms = {path.parent for path in (ROOT / "dynkern").rglob("*.py")}
    assert {room for room in rooms if not (room / "__init__.py").exists()} == set()


def test_version_is_that_of_the_installation():
    assert importlib.metadata.version("dynkern") == dynkern.__version__


def test_abi_numbers_agree():
    header = (ROOT / "csrc/common/abi.h").read_text()
    numbers = dict(re.findall(r"constexpr int k(\w+)Abi = (\d+);", header))
    assert numbers == {"Cpu": str(native.CPU_ABI), "Cuda": str(native.CUDA_ABI)}


def test_stale_library_is_refused():
    if reason := native.cpu_missing():
        pytest.skip(reason)
    with pytest.raises(native.LibraryUnavailable, match=r"_cpu\.so is stale: its ABI is \d+"):
        native._open("cpu", native.CPU_ABI + 1)


def test_broken_or_absent_library_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(native, "PACKAGE", tmp_path)
    with pytest.raises(native.LibraryUnavailable, match=r"_cpu\.so was never built"):
        native._open("cpu", native.CPU_ABI)
    (tmp_path / "_cpu.so").write_bytes(b"no library")
    with pytest.raises(native.LibraryUnavailable, match=r"_cpu\.so does not load"):
        native._open("cpu", native.CPU_ABI)


def test_status_is_complete():
    report = native.status()
    for name in ("cpu", "cuda"):
        entry = report[name]
        assert entry["available"] == (entry["reason"] is None)
        assert entry["path"].endswith(f"_{name}.so")
        assert entry["build"] is None or entry["build"]["built"] == entry["available"]
    assert (native.cpu_missing() is None) == report["cpu"]["available"]
    assert (native.cuda_missing() is None) == (report["cuda"]["devices"] > 0)
    assert (report["cuda"]["devices_reason"] is None) == (report["cuda"]["devices"] > 0)


def test_cpu_features_are_those_of_the_kernel():
    cpuinfo = Path("/proc/cpuinfo")
    if reason := native.cpu_missing():
        pytest.skip(reason)
    if not cpuinfo.exists() or "flags" not in cpuinfo.read_text():
        pytest.skip("no x86 /proc/cpuinfo to compare with")
    flags = re.search(r"^flags\s*: (.*)$", cpuinfo.read_text(), re.MULTILINE)[1]
    known = set("avx2 avxvnni fma avx512f avx512bw avx512vl avx512vnni avx512bf16".split())
    present = {flag.replace("_", "") for flag in flags.split()}
    assert set(native.cpu_features()) == known & present


def test_native_needs_no_torch_to_report():
    code = "import sys; from dynkern.kernels import native; native.status(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = done.stdout.split()
    assert "dynkern.kernels.native" in modules and "torch" not in modules
