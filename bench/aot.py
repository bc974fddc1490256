"""What the Triton kernels compile to, without a GPU.

    python -m bench.aot --output DIR [--archs 80,90,100] [--jobs 2] [--quick] [--against FILE]

DIR/aot.csv gets a row for every launch of bench/aot_cases.py and architecture: registers, stack
(spills lie there), shared memory, tensor-core instructions and 16-byte loads of the machine code.
--quick: one launch for each kernel and dtype. --against: an aot.csv that nothing may fall behind,
as bench/results/aot.csv for a change of kernels. Exit code 1 where a row has a problem.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from dynkern.files import write_whole

ARCHS = (80, 90, 100)
KEY = ("op", "case", "kernel", "dtype", "arch")
NUMBERS = ("num_warps", "registers", "stack", "shared", "tensor_core", "loads_16")
COLUMNS = ("triton", *KEY, *NUMBERS)
# a block of sm_86, sm_89 and sm_120 has the least: what fits there fits everywhere from sm_80 on
MOST_SHARED = 99 * 1024
# products of matrices, which in 16 bits must reach tensor cores
PRODUCTS = ("skinny", "tall", "bypass_linear", "tiles", "prefill")
COMMITTED = Path(__file__).resolve().parent / "results" / "aot.csv"
_TENSOR_CORE = r"\b(?:HMMA|HGMMA|UTCHMMA)\b"
_LOADS_16 = r"\b(?:LDG\.E(?:\.\w+)*\.128|LDGSTS\.E(?:\.\w+)*\.128|UTMALDG)\b"


def compile_one(place: int, arch: int) -> dict[str, Any]:
    """The row of cases()[place] for one architecture."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from bench.aot_cases import specialise

    case = _cases()[place]
    _, signature, constants, divisible, num_warps, num_stages = specialise(case.launch)
    attrs = {(at,): [["tt.divisibility", 16]] for at in divisible}
    source = ASTSource(case.launch.kernel, signature, constants, attrs)
    options = {"num_warps": num_warps, "num_stages": num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    resources, sass = _dump(compiled.asm["cubin"])
    found = re.search(r"REG:(\d+) STACK:(\d+)", resources)
    return {
        "triton": triton.__version__,
        "op": case.op,
        "case": case.name,
        "kernel": case.kernel,
        "dtype": case.dtype,
        "arch": arch,
        "num_warps": num_warps,
        "registers": int(found[1]),
        "stack": int(found[2]),
        "shared": compiled.metadata.shared,
        "tensor_core": len(re.findall(_TENSOR_CORE, sass)),
        "loads_16": len(re.findall(_LOADS_16, sass)),
    }


_held: list[Any] = []


def _cases() -> list[Any]:
    if not _held:
        from bench.aot_cases import cases

        _held.extend(cases())
    return _held


def _dump(cubin: bytes) -> tuple[str, str]:
    """Resource usage and machine code, by the cuobjdump that triton brings along."""
    import triton

    beside = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    tool = str(beside) if beside.exists() else "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(cubin)
        outputs = [
            subprocess.run([tool, what, str(file)], capture_output=True, text=True, check=True)
            for what in ("--dump-resource-usage", "-sass")
        ]
    return outputs[0].stdout, outputs[1].stdout


def compile_all(archs: Sequence[int], jobs: int, quick: bool) -> list[dict[str, Any]]:
    """Rows of all cases, in order, on `jobs` processes. quick: one for each kernel and dtype."""
    firsts = {(case.kernel, case.dtype): place for place, case in reversed([*enumerate(_cases())])}
    places = sorted(firsts.values()) if quick else range(len(_cases()))
    wanted = [(place, arch) for place in places for arch in archs]
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        return list(pool.map(compile_one, *zip(*wanted, strict=True), chunksize=4))


def read(path: Path) -> list[dict[str, Any]]:
    """Rows of an aot.csv."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [{**row, **{name: int(row[name]) for name in ("arch", *NUMBERS)}} for row in rows]


def problems(row: dict[str, Any], earlier: dict[str, Any] | None = None) -> list[str]:
    """What is wrong with a row. earlier: the row of the same key and triton version to beat."""
    found = []
    if row["stack"]:
        found.append(f"{row['stack']} bytes of stack: it spills")
    if row["shared"] > MOST_SHARED:
        found.append(f"{row['shared']} bytes of shared memory, at most {MOST_SHARED} fit")
    if row["kernel"] in PRODUCTS and row["dtype"] != "fp32" and not row["tensor_core"]:
        found.append("no tensor-core instruction")
    if earlier is not None:
        for name in ("registers", "shared"):
            if row[name] > earlier[name]:
                found.append(f"{name} {row[name]}, {earlier[name]} before")
        for name in ("tensor_core", "loads_16"):
            if earlier[name] and not row[name]:
                found.append(f"{name} 0, {earlier[name]} before")
    key = " ".join(str(row[name]) for name in KEY)
    return [f"{key}: {problem}" for problem in found]


def judge(rows: list[dict[str, Any]], committed: list[dict[str, Any]]) -> list[str]:
    """Problems of all rows beside committed ones of the same triton version."""
    before = {tuple(row[name] for name in ("triton", *KEY)): row for row in committed}
    return [
        problem
        for row in rows
        for problem in problems(row, before.get(tuple(row[name] for name in ("triton", *KEY))))
    ]


def main(arguments: list[str] | None = None) -> int:
    """The command line; 0 when no row has a problem, 1 when one has."""
    parser = argparse.ArgumentParser(prog="python -m bench.aot", description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--archs", default=",".join(map(str, ARCHS)))
    parser.add_argument("--jobs", type=int, default=min(8, os.cpu_count() or 1))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--against", type=Path)
    given = parser.parse_args(arguments)
    archs = [int(arch) for arch in given.archs.split(",")]
    rows = compile_all(archs, given.jobs, given.quick)
    write_whole(given.output / "aot.csv", lambda part: _write(part, rows))
    found = judge(rows, read(given.against) if given.against else [])
    print(*found, f"{len(rows)} rows, {len(found)} problems", sep="\n")
    return 1 if found else 0


def _write(path: Path, rows: list[dict]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    sys.exit(main())
