"""`dynkern bench`: the benchmarks of a source checkout."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

import dynkern

app = typer.Typer(help="Benchmarks; they need a source checkout.", no_args_is_help=True)


def register(parent: typer.Typer) -> None:
    """Add the command and its own commands."""
    parent.add_typer(app, name="bench")


@app.callback()
def bench() -> None:
    """Benchmarks; they need a source checkout."""


@app.command()
def ops(
    op: Annotated[list[str] | None, typer.Option(help="An op of the table; repeat it.")] = None,
    backend: Annotated[
        list[str] | None,
        typer.Option(help="cpu, triton or cuda; repeat it. Default: all that run here."),
    ] = None,
    shape: Annotated[list[str] | None, typer.Option(help="125m, 1.3b, 6.7b; repeat it.")] = None,
    dtype: Annotated[
        list[str] | None, typer.Option(help="float32, bfloat16, float16; repeat it.")
    ] = None,
    rows: Annotated[list[int] | None, typer.Option(help="1 to 512; repeat it.")] = None,
    routes: Annotated[
        list[str] | None,
        typer.Option(help="all, none, half, bimodal, straggler: rows of a layer; repeat it."),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="The whole grid: hours. Default: some six minutes.")
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="One short round at 8 rows, to try it; never compared.")
    ] = False,
    repeats: Annotated[int, typer.Option(help="Interleaved rounds.")] = 3,
    minutes: Annotated[float | None, typer.Option(help="Begin no case after them.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder whose ops.csv is appended to.")
    ] = None,
) -> None:
    """Time every op on every backend beside the reference and the best library call.

    Exit code 1 where a backend's results are wrong; those are not timed.
    """
    _find_checkout()
    from bench.ops import suite
    from bench.ops.contest import Clock
    from bench.ops.grid import Selection

    selection = Selection(op, shape, dtype, rows, routes, everything, quick)
    suite.check_selection(selection, backend or ())
    if repeats < 1:
        raise ValueError(f"--repeats: got {repeats}, expected 1 or more")
    if minutes is not None and not minutes > 0:
        raise ValueError(f"--minutes: got {minutes}, expected more than 0")
    specs = selection.specs()
    clock = Clock(1, 0.1, float("inf")) if quick else Clock(repeats)
    run = suite.Suite(backend or suite.KERNELS, clock, trial=quick)
    missing = run.missing([spec.op for spec in specs])
    if backend and missing:
        raise ValueError(f"--backend: {missing[0]}, expected one that can run here")
    if output is not None:
        from dynkern.files import make_folder

        make_folder(output)
    seconds = None if minutes is None else 60 * minutes
    tell = lambda line: typer.echo(line, err=True)  # noqa: E731
    if not suite.run(run, specs, output, seconds, tell):
        raise typer.Exit(1)


def _find_checkout() -> None:
    """Let `bench` be imported from where this package lies; ValueError, one line, without it."""
    # not from the working directory: rows are stamped with the commit of the code they measure
    root = Path(dynkern.__file__).resolve().parents[1]
    if not (root / "bench" / "ops" / "suite.py").is_file():
        raise ValueError(
            f"bench: got an installation without benchmarks ({root}), expected a source checkout "
            "(pip install -e . in one)"
        )
    # `support` of the tests has the tolerance table
    for place in (str(root / "tests"), str(root)):
        if place not in sys.path:
            sys.path.insert(0, place)
