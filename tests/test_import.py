"""`import dynkern` is cheap and needs nothing; rooms import from rooms below them only."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dynkern

PACKAGE = Path(dynkern.__file__).parent
# highest first; rooms of one line stand beside each other
ORDER = [
    ["__main__"],
    ["cli"],
    ["commands"],
    ["evaluation"],
    ["training"],
    ["hf"],
    ["llm"],
    ["allocation"],
    ["policies"],
    ["runtime"],
    ["models"],
    ["ops"],
    ["kernels"],
    [
        *("cost", "routes", "rng", "data", "controller_file", "machine", "assets", "_version"),
        *("arguments", "manifest", "report", "team"),
    ],
    ["tasks", "files"],
]
RANK = {room: rank for rank, rooms in enumerate(ORDER) for room in rooms}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def python(code: str, **environment: str) -> str:
    """stdout of a fresh interpreter that finds this package and, by default, little else."""
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={
            "PYTHONPATH": str(PACKAGE.parent),
            "PATH": "",
            "CUDA_VISIBLE_DEVICES": "",
            **environment,
        },
        capture_output=True,
        text=True,
        cwd="/",
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return result.stdout.strip()


def test_import_loads_neither_torch_nor_transformers():
    heavy = "torch transformers numpy triton datasets tokenizers safetensors huggingface_hub"
    code = f"""
import sys, dynkern
dynkern.__version__, dir(dynkern), hasattr(dynkern, "nothing")
print([name for name in {heavy.split()} if name in sys.modules])
print(sorted(name for name in sys.modules if name.startswith("dynkern")))
"""
    assert python(code).splitlines() == ["[]", "['dynkern', 'dynkern._version']"]


def test_works_without_gpu_compiler_and_network():
    code = """
import sys, dynkern
print(dynkern.policy("uniform:6").spec, dynkern.is_planned(dynkern.policy("stochastic:0.5")))
with dynkern.use_backend("reference"):
    print(dynkern.LLM.__name__, dynkern.routes.uniform_order(4))
print("transformers" in sys.modules)
"""
    home = {"HOME": os.environ.get("HOME", "/"), "HF_HUB_OFFLINE": "1", "CC": "", "CXX": ""}
    assert python(code, **home).splitlines() == ["uniform:6 False", "LLM [0, 3, 1, 2]", "False"]


def test_version():
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", dynkern.__version__)


def test_public_names():
    for name in dynkern.__all__:
        assert getattr(dynkern, name) is not None
        assert name in dir(dynkern)
    assert dynkern.hf.OPTForCausalLM is dynkern.OPTForCausalLM
    assert dynkern.rng.__name__ == "dynkern.rng"


@pytest.mark.parametrize("name", ["nothing", "Llm", "policies2", "__wrapped__", "__main__", "_x"])
def test_unknown_attributes(name):
    # __main__ would run the command line
    with pytest.raises(AttributeError, match=f"^module 'dynkern' has no attribute '{name}'$"):
        getattr(dynkern, name)
    assert not hasattr(dynkern, name)


def test_a_room_that_fails_to_import_says_why(monkeypatch):
    # a missing dependency is no missing attribute
    monkeypatch.setitem(sys.modules, "dynkern.hf", None)
    with pytest.raises(ImportError):
        dynkern.OPTForCausalLM  # noqa: B018


# -- rooms ---------------------------------------------------------------------------------------


def room_of(module: str) -> str:
    """dynkern.ops.embed -> ops."""
    return module.split(".")[1]


def imported_rooms(path: Path) -> set[str]:
    """Rooms of dynkern that a file imports anywhere, also inside functions and for types only."""
    found: set[str] = set()
    package = ["dynkern", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            modules = [f"{origin}.{alias.name}" for alias in node.names]
        else:
            continue
        own = [module for module in modules if module.split(".")[0] == "dynkern"]
        found |= {room_of(module) for module in own if "." in module}
    return found - set(dynkern.__all__) - {"__version__"}


def test_every_room_has_its_place():
    rooms = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in FILES}
    assert rooms - set(RANK) == set()
    assert {"runtime", "ops", "models", "policies", "kernels"} <= rooms


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_lower_room_imports_nothing_from_a_higher_one(path):
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    higher = {other for other in imported_rooms(path) if RANK[other] < RANK[room]}
    assert higher == set()


def test_imports_are_seen(tmp_path, monkeypatch):
    # the walk itself, on a file with every form of import
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    (tmp_path / "ops").mkdir()
    file = tmp_path / "ops" / "x.py"
    file.write_text(
        "import torch, dynkern\nimport dynkern.llm as l\nfrom dynkern import rng, LLM\n"
        "from dynkern.hf.rows import RowBatch\nfrom . import embed\nfrom ..kernels import native\n"
        "def f():\n    from dynkern.runtime.engine import Engine\n"
    )
    assert imported_rooms(file) == {"llm", "rng", "hf", "ops", "kernels", "runtime"}


def test_the_runtime_knows_no_policy_and_no_model():
    for path in (PACKAGE / "runtime").rglob("*.py"):
        assert imported_rooms(path).isdisjoint({"policies", "hf", "llm"})
        assert "opt" not in re.findall(r"from dynkern\.models\.(\w+)", path.read_text())
