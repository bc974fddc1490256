"""python -m bench.levels --output DIR: what each instruction set level of the CPU kernels is worth.

Decode passes and prefill of a model of OPT-125m's width with random weights, on every level that
this processor has, in turn (A B A B …), runs under load rejected. `against_auto`: how many times as
fast as the level that is taken where nobody names one; a level that beats it by more than TOLERANCE
is flagged, since the automatic choice is wrong then. Rows go to DIR/levels.csv as they come.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from bench.arguments import check_each, refuse
from bench.cpu_cases import worst_load
from bench.results_file import append, stamp
from bench.scaling import DTYPES, Width, random_engine
from dynkern.evaluation.calibration import BURST
from dynkern.evaluation.probe import EngineProbe
from dynkern.evaluation.progress import Progressing
from dynkern.evaluation.timing import interleave
from dynkern.kernels import native

# 5 % is what repetitions differ by
TOLERANCE = 0.05
LENGTH = 64
VOCABULARY = 2048
Row = dict[str, Any]
Report = Callable[[int, int, str], None]


def measure(
    width: Width, layers: int, dtype: str, kind: str, rows: int, repeats: int, report: Report
) -> Iterator[Row]:
    """A row for each level. kind: "decode", a pass of so many rows behind LENGTH tokens each, or
    "prefill" of one prompt of so many tokens.
    """
    engine = random_engine(width, layers, VOCABULARY, dtype)
    if kind == "decode":
        ids = torch.randint(4, VOCABULARY, (rows, LENGTH)).tolist()
        probe, passes = EngineProbe.after(engine, ids, 0, with_fill=False), BURST

        def once() -> None:
            probe.full_passes(rows, BURST)
    else:
        prompt, passes = torch.randint(4, VOCABULARY, (rows,)).tolist(), 1

        def once() -> None:
            engine.executor.prefill([prompt])

    def on(level: str) -> Callable[[], None]:
        def case() -> None:
            native.set_cpu_isa(level)
            once()

        return case

    names, held = native.cpu_levels(), native.cpu_isa()
    native.set_cpu_isa("auto")
    auto = native.cpu_isa()
    try:
        timings = interleave({name: on(name) for name in names}, repeats, progress=report)
    finally:
        native.set_cpu_isa(held)
    for name in names:
        spread = timings[name].spread
        against = timings.ratio(auto, name).median
        yield {
            "dtype": dtype,
            "kind": kind,
            "rows": rows,
            "level": name,
            "auto": int(name == auto),
            "seconds": spread.median / passes,
            "low": spread.p20 / passes,
            "high": spread.p80 / passes,
            "against_auto": against,
            "flagged": int(against > 1 + TOLERANCE),
            "loaded": timings[name].loaded,
            "foreign_load": worst_load(timings[name]),
        }


def main(
    output: Annotated[Path, typer.Option(help="Folder for levels.csv.")],
    dtype: Annotated[list[str] | None, typer.Option(help="float32, bfloat16, int8.")] = None,
    repeats: Annotated[int, typer.Option(help="Interleaved rounds.")] = 9,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tiny sizes, to try it.")] = False,
) -> None:
    """Measure every level and append the rows to OUTPUT/levels.csv."""
    check_each("dtype", dtype or [], DTYPES)
    if repeats < 1:
        refuse(f"--repeats: got {repeats}, expected more")
    if missing := native.cpu_missing():
        refuse(f"the CPU engine cannot run here: {missing}")
    if dry_run:
        width, layers, repeats = Width(64, 2, 128), 1, 1
        points = [("decode", 1), ("prefill", 5)]
    else:
        width, layers = Width(768, 12, 3072), 4
        points = [*(("decode", rows) for rows in (1, 4, 8, 32)), ("prefill", 256)]
    done: list[Row] = []
    with Progressing(Console(stderr=True)) as progress:
        for format in dtype or DTYPES:
            for kind, rows in points:
                report = progress.task(f"{kind} {rows}, {format}")
                found = list(measure(width, layers, format, kind, rows, repeats, report))
                where = stamp("cpu", dry_run)
                append(output / "levels.csv", [{**where, "layers": layers, **r} for r in found])
                done += found
    _print(done)


def _print(done: list[Row]) -> None:
    console = Console()
    table = Table(title="bench.levels")
    for column in ("dtype", "kind", "rows", "level", "ms", "against the automatic choice"):
        text = column in ("dtype", "kind", "level")
        table.add_column(column, justify="left" if text else "right")
    for row in done:
        table.add_row(
            *(str(row[key]) for key in ("dtype", "kind", "rows")),
            row["level"] + (" (auto)" if row["auto"] else ""),
            f"{row['seconds'] * 1e3:.3f}",
            f"{row['against_auto']:.2f}{' !' if row['flagged'] else ''}",
            style="dim" if row["loaded"] else None,
        )
    console.print(table)
    if any(row["flagged"] for row in done):
        console.print("!: faster than the level that is taken by itself")
    if any(row["loaded"] for row in done):
        console.print("dim rows: other processes used the machine, and no quiet run could be had")


if __name__ == "__main__":
    typer.run(main)
