"""python -m bench.measure --output DIR: every benchmark of the CPU anew, one after the other.

Each runs in a process of its own and appends to its CSV in DIR; one that fails is reported and the
others go on. Exit code 1 where one failed.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from bench.arguments import check_each

# by name: minutes that it takes on two cores, roughly; what runs it, and what tries it
BENCHES = {
    "cost_model": (6, ["bench.cost_model"], ["--dry-run"]),
    "scaling": (5, ["bench.scaling"], ["--dry-run"]),
    "end_to_end": (40, ["bench.end_to_end"], ["--dry-run"]),
    "scheduling": (15, ["bench.scheduling"], ["--dry-run"]),
    "ops": (6, ["dynkern", "bench", "ops"], ["--quick"]),
    "int8_kernels": (1, ["bench.int8_kernels"], ["--dry-run"]),
}


def main(
    output: Annotated[Path, typer.Option(help="Folder for the CSV files.")],
    only: Annotated[list[str] | None, typer.Option(help=", ".join(BENCHES))] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tiny sizes, to try it.")] = False,
) -> None:
    """Run the benchmarks named (all by default)."""
    check_each("only", only or [], tuple(BENCHES))
    failed = []
    for name in [name for name in BENCHES if name in (only or BENCHES)]:
        minutes, words, trial = BENCHES[name]
        print(f"{name}: {'a trial' if dry_run else f'about {minutes} minutes'}", flush=True)
        command = [sys.executable, "-m", *words, "--output", str(output.resolve())]
        began = time.monotonic()
        code = subprocess.run(
            [*command, *(trial if dry_run else [])],
            cwd=Path(__file__).resolve().parent.parent,
        ).returncode
        print(f"{name}: exit code {code} after {time.monotonic() - began:.0f} s", flush=True)
        failed += [name] if code else []
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
