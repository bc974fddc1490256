"""python -m bench.ops_cpu --output DIR: every op's CPU kernel against its PyTorch reference.

Shapes of one OPT layer and of its embedding and head, the two backends in turn (A B A B …), runs
under load rejected. Weights come from a pool larger than the caches, as a model's do. Rows go to
DIR/ops_cpu.csv as they come.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bench.arguments import check_each, refuse
from bench.ops_cpu_cases import CASES, DTYPES, SHAPES, Case, Sizes
from bench.results_file import append, stamp
from dynkern.evaluation.timing import Timings, interleave
from dynkern.kernels import native
from dynkern.machine import device_name
from dynkern.ops import use_backend

BACKENDS = ("cpu", "reference")
Row = dict[str, Any]


def measure(case: Case, repeats: int) -> Timings[None]:
    """The case on both backends, in the same rounds."""

    def on(backend: str):
        def run() -> None:
            with use_backend(backend), torch.inference_mode():
                case.run()

        return run

    return interleave({backend: on(backend) for backend in BACKENDS}, repeats)


def row_of(case: Case, timings: Timings[None]) -> Row:
    """Columns of one case: seconds of both, their ratio within rounds, rates of the CPU kernel."""
    ours, plain = (timings[backend].spread for backend in BACKENDS)
    ratio = timings.ratio("reference", "cpu")
    return {
        "op": case.op,
        "case": case.name,
        "seconds": ours.median,
        "low": ours.p20,
        "high": ours.p80,
        "reference_seconds": plain.median,
        "speedup": ratio.median,
        "speedup_low": ratio.p20,
        "speedup_high": ratio.p80,
        "gb_per_second": case.bytes / ours.median / 1e9,
        "gflop_per_second": case.flops / ours.median / 1e9 if case.flops else "",
        "reference_gb_per_second": case.bytes / plain.median / 1e9,
        "loaded": bool(timings.loaded),
        "metered": timings.metered,
        "isa": native.cpu_isa(),
    }


def rows(
    ops: list[str], sizes: list[Sizes], dtypes: list[str], batches: list[int], repeats: int
) -> Iterator[Row]:
    """A row for every op, shape, dtype and number of rows."""
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=len(ops) * len(sizes) * len(dtypes) * len(batches))
        for shape in sizes:
            for dtype in dtypes:
                for op in ops:
                    for batch in batches:
                        bar.update(task, description=f"{op}, {shape.name}, {dtype}, {batch} rows")
                        for case in CASES[op](shape, getattr(torch, dtype), batch):
                            on = {"shape": shape.name, "dtype": dtype, "rows": batch}
                            yield {**on, **row_of(case, measure(case, repeats))}
                        bar.advance(task)


def main(
    output: Annotated[Path, typer.Option(help="Folder for ops_cpu.csv.")],
    op: Annotated[list[str] | None, typer.Option(help="An op of the table; repeat it.")] = None,
    shape: Annotated[list[str] | None, typer.Option(help="125m or 1.3b; repeat it.")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="float32, bfloat16, float16.")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Rows; repeat it.")] = None,
    repeats: Annotated[int, typer.Option(help="Interleaved rounds.")] = 5,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tiny shape, to try it.")] = False,
) -> None:
    """Measure the ops asked for (all by default) and append them to OUTPUT/ops_cpu.csv."""
    check_each("op", op or [], tuple(CASES))
    check_each("shape", shape or [], tuple(SHAPES))
    check_each("dtype", dtype or [], DTYPES)
    for name, values in (("batch", batch or []), ("repeats", [repeats])):
        for value in values:
            if value < 1:
                refuse(f"--{name}: got {value}, expected more")
    if missing := native.cpu_missing():
        refuse(f"the CPU kernels cannot run here: {missing}")
    sizes = [SHAPES[name] for name in (["tiny"] if dry_run else shape or ["125m", "1.3b"])]
    batches = batch or ([1, 7] if dry_run else [1, 8, 32, 64])
    repeats = 1 if dry_run else repeats
    done = []
    for row in rows(op or list(CASES), sizes, dtype or ["float32", "bfloat16"], batches, repeats):
        on = stamp(device_name(torch.device("cpu")), dry_run)
        append(output / "ops_cpu.csv", [{**on, **row}])
        done.append(row)
    _print(done)


def _print(done: list[Row]) -> None:
    table = Table(title="bench.ops_cpu")
    for column in ("op", "case", "shape", "dtype", "rows", "us", "reference", "speedup"):
        table.add_column(column)
    table.add_column("GB/s")
    table.add_column("GFLOP/s")
    for row in done:
        flops = row["gflop_per_second"]
        table.add_row(
            *(str(row[key]) for key in ("op", "case", "shape", "dtype", "rows")),
            f"{row['seconds'] * 1e6:.1f}",
            f"{row['reference_seconds'] * 1e6:.1f}",
            f"{row['speedup']:.2f}",
            f"{row['gb_per_second']:.1f}",
            f"{flops:.1f}" if flops else "",
            style="dim" if row["loaded"] else None,
        )
    console = Console()
    console.print(table)
    if any(row["loaded"] for row in done):
        console.print("dim rows: other processes used the machine, and no quiet run could be had")


if __name__ == "__main__":
    typer.run(main)
