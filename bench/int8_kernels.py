"""python -m bench.int8_kernels --output DIR: why int8 weights meet int8 activations (VNNI).

Both ways through a panel of int8 weights in the second cache, on one core, in turn: int8 products,
and weights widened to float32. Memory delivers the same to either, so what is faster here is better
everywhere. Rows go to DIR/int8_kernels.csv. Needs a C++ compiler and AVX-512 VNNI.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.arguments import refuse
from bench.results_file import append, stamp
from dynkern.evaluation.load_meter import LOAD_LIMIT, LoadMeter
from dynkern.kernels import native

SOURCE = Path(__file__).with_suffix(".cpp")
# of a panel: 64 outputs of 3072 inputs
PANEL_BYTES = 64 * 3072
TRIES = 4


def obstacle() -> str | None:
    """Why this cannot be measured here, or None."""
    if native.cpu_missing() or "avx512vnni" not in native.cpu_features():
        return "this processor has no AVX-512 VNNI, or csrc/cpu is not built"
    return None if _compiler() else "no C++ compiler"


def measure(rounds: int) -> list[dict[str, Any]]:
    """A row for each way and number of rows; the last of TRIES where no run was quiet."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "int8_kernels")
        subprocess.run([*_compiler(), "-std=c++17", "-O3", SOURCE, "-o", program], check=True)
        for _ in range(TRIES):
            with LoadMeter() as meter:
                done = subprocess.run(
                    [program, str(rounds)], capture_output=True, text=True, check=True
                )
            if meter.load.worst <= LOAD_LIMIT:
                break
    rows = []
    for line in done.stdout.splitlines():
        count, *seconds = map(float, line.split())
        for kernel, value in zip(("vnni", "widened"), seconds, strict=True):
            rows.append(
                {
                    "kernel": kernel,
                    "rows": int(count),
                    "seconds": value,
                    "gb_per_second": PANEL_BYTES / value / 1e9,
                    "speedup": seconds[1] / value,
                    "foreign_load": meter.load.worst,
                }
            )
    return rows


def main(
    output: Annotated[Path, typer.Option(help="Folder for int8_kernels.csv.")],
    rounds: Annotated[int, typer.Option(help="Interleaved rounds.")] = 400,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="One round, to try it.")] = False,
) -> None:
    """Measure both ways and append them to OUTPUT/int8_kernels.csv."""
    if rounds < 1:
        refuse(f"--rounds: got {rounds}, expected 1 or more")
    if why := obstacle():
        refuse(f"int8_kernels: {why}")
    on = stamp("cpu", dry_run)
    rows = measure(1 if dry_run else rounds)
    append(output / "int8_kernels.csv", [{**on, **row} for row in rows])
    for row in rows:
        print(
            f"{row['rows']} rows, {row['kernel']}: {row['gb_per_second']:.1f} GB/s, "
            f"{row['speedup']:.2f} x widened"
        )


def _compiler() -> list[str]:
    named = shlex.split(os.environ.get("CXX", "c++"))
    return named if shutil.which(named[0]) else []


if __name__ == "__main__":
    typer.run(main)
