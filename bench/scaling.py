"""python -m bench.scaling --output DIR: how the time of a pass grows.

Against layers, rows, K/V length, vocabulary and threads, one of them at a time, at OPT-125m's
width with random weights. The points of an axis are timed in turn (A B A B …), runs under load
rejected, beside what bandwidth and arithmetic allow, peaks read in the same run. A point is
flagged where its time grew by more than TOLERANCE beyond what they allow. Rows go to
DIR/scaling.csv as they come.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bench.arguments import check_each, refuse
from bench.cpu_cases import worst_load
from bench.opt_spec import opt_spec
from bench.results_file import append, stamp
from dynkern.cost import PartCost, PassCount, part_costs, roofline_time
from dynkern.evaluation.calibration import BURST
from dynkern.evaluation.peaks import Peaks, measure_peaks
from dynkern.evaluation.probe import EngineProbe
from dynkern.evaluation.timing import Timings, interleave
from dynkern.kernels import native
from dynkern.models.opt import source_parts
from dynkern.models.packed import PackedWeights
from dynkern.models.spec import DecoderSpec
from dynkern.runtime.engine import Engine

AXES = ("layers", "rows", "length", "vocabulary", "threads")
DTYPES = ("float32", "bfloat16", "int8")
# growth beyond the roofline's that is flagged: 5 to 10 % is what repetitions differ by
TOLERANCE = 0.15
# neighbouring neurons of fc2 that are read together (csrc/cpu packs them so)
GROUPED = {"float32": 1, "bfloat16": 2, "int8": 4}
Row = dict[str, Any]


@dataclass(frozen=True)
class Point:
    """What one pass is timed for; length: K/V entries of each row."""

    layers: int
    rows: int
    length: int
    vocabulary: int
    threads: int


@dataclass(frozen=True)
class Width:
    """Sizes that stay the same on every axis."""

    hidden: int
    heads: int
    ffn: int


def axes(dry_run: bool, threads: int) -> tuple[Width, dict[str, list[Point]]]:
    """The points of every axis. The vocabulary's are of a model of few layers, so that it shows."""
    if dry_run:
        width, base = Width(64, 2, 128), Point(2, 2, 8, 320, threads)
        values = {"layers": (1, 2, 4), "rows": (1, 3), "length": (4, 30), "vocabulary": (320, 640)}
    else:
        width, base = Width(768, 12, 3072), Point(12, 4, 64, 50272, threads)
        values = {
            "layers": (3, 6, 12, 24),
            "rows": (1, 2, 4, 8, 16, 32, 64),
            "length": (16, 128, 512, 1024, 2000),
            "vocabulary": (2048, 8192, 32768, 50272, 131072),
        }
    found = {
        axis: [replace(base, **{axis: value}) for value in several]
        for axis, several in values.items()
    }
    few = max(1, base.layers // 4)
    found["vocabulary"] = [replace(point, layers=few) for point in found["vocabulary"]]
    cores = [n for n in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128) if n < threads]
    found["threads"] = [replace(base, threads=n) for n in (*cores, threads)]
    return width, found


def random_engine(width: Width, layers: int, vocabulary: int, dtype: str) -> Engine:
    """A CPU engine of an OPT with random weights."""
    spec = opt_spec(vocabulary, layers, width.hidden, width.heads, width.ffn)
    weights = PackedWeights(spec, dtype)
    generator = torch.Generator().manual_seed(0)
    for part in source_parts(spec):
        values = torch.empty(part.shape).normal_(0.0, 0.02, generator=generator)
        weights.write(part, values + part.field.endswith("norm_weight"))
    return Engine(spec, weights)


class Axis:
    """The points of one axis in one dtype, ready to be timed."""

    def __init__(self, name: str, points: Sequence[Point], width: Width, dtype: str) -> None:
        self.name, self.points, self.dtype = name, list(points), dtype
        kinds = dict.fromkeys((p.layers, p.vocabulary) for p in points)
        self.engines = {kind: random_engine(width, *kind, dtype) for kind in kinds}
        self.cases = {str(getattr(p, name)): self._passes(p) for p in points}

    def engine(self, point: Point) -> Engine:
        """The one that runs the point."""
        return self.engines[point.layers, point.vocabulary]

    def _passes(self, point: Point) -> Callable[[], None]:
        engine = self.engine(point)
        ids = torch.randint(4, point.vocabulary, (point.rows, point.length)).tolist()
        probe = EngineProbe.after(engine, ids, 0, with_fill=False)

        def passes() -> None:
            with threads_at(point.threads):
                probe.full_passes(point.rows, BURST)

        return passes

    def peaks(self) -> dict[int, Peaks]:
        """Limits of the machine by threads, read with the largest of the models' weights."""
        size = max(engine.weights.nbytes for engine in self.engines.values())
        found = {}
        for count in dict.fromkeys(point.threads for point in self.points):
            with threads_at(count):
                engine = self.engine(self.points[0])
                found[count] = measure_peaks(size, engine.weights.dtype)
        return found

    def measure(self, repeats: int, report: Callable[[int, int, str], None]) -> list[Row]:
        """A row for each point."""
        peaks = self.peaks()
        timings = interleave(self.cases, repeats, progress=report)
        expected = [self._expected(point, peaks[point.threads]) for point in self.points]
        rows = list(judged(self, timings, expected))
        for row, point in zip(rows, self.points, strict=True):
            limits = peaks[point.threads]
            row |= {"bandwidth": limits.bandwidth, "flops": limits.flops}
        return rows

    def _expected(self, point: Point, peaks: Peaks) -> float:
        spec, weights = self.engine(point).spec, self.engine(point).weights
        count = PassCount(point.rows, (point.rows,) * point.layers, length=point.length)
        parts = part_costs(spec, count, weights.element_size, weights.dtype.itemsize)
        parts = [without_zeros(part, spec, self.dtype, point.rows) for part in parts]
        return roofline_time(parts, peaks.bandwidth, peaks.flops)


def without_zeros(part: PartCost, spec: DecoderSpec, dtype: str, rows: int) -> PartCost:
    """A layer's linears less what fc2 does not read: neurons that ReLU leaves at zero in every row.

    With random weights that is half of the neurons of a row, each row's own half.
    """
    if not part.name.endswith("linears"):
        return part
    matrix = spec.hidden_size * spec.ffn_size
    unread = matrix * 0.5 ** (rows * GROUPED[dtype])
    size = {"float32": 4, "bfloat16": 2, "int8": 1}[dtype]
    return PartCost(part.name, part.bytes - unread * size, part.flops - 2 * rows * unread)


def judged(axis: Axis, timings: Timings[None], expected: Sequence[float]) -> Iterator[Row]:
    """Rows of an axis: time of a pass, what is allowed, and the axis' fit.

    growth: of the time since the first point, ÷ that of what is allowed; step: the same since the
    point before, which shows a bend that a first point with much overhead would hide.
    """
    spreads = [timings[case].spread for case in axis.cases]
    seconds = [spread.median / BURST for spread in spreads]
    fixed, slope, r2 = line_through(expected, seconds)
    for i, point in enumerate(axis.points):
        timed = timings[str(getattr(point, axis.name))]
        growth, step = (
            seconds[i] / seconds[j] / (expected[i] / expected[j]) for j in (0, max(0, i - 1))
        )
        yield {
            "axis": axis.name,
            "value": getattr(point, axis.name),
            "dtype": axis.dtype,
            "layers": point.layers,
            "rows": point.rows,
            "length": point.length,
            "vocabulary": point.vocabulary,
            "threads": point.threads,
            "seconds": seconds[i],
            "low": spreads[i].p20 / BURST,
            "high": spreads[i].p80 / BURST,
            "expected": expected[i],
            "efficiency": expected[i] / seconds[i],
            "growth": growth,
            "step": step,
            "flagged": int(max(growth, step) > 1 + TOLERANCE),
            "fit_fixed": fixed,
            "fit_slope": slope,
            "fit_r2": r2,
            "loaded": timed.loaded,
            "foreign_load": worst_load(timed),
        }


def line_through(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float]:
    """Least squares of y = a + b·x by relative error: a, b, and the share of variance explained.

    A single point, or equal ones, give a line through the origin.
    """
    weights = [1 / (value * value) for value in y]
    total = sum(weights)
    mean_x = sum(w * v for w, v in zip(weights, x, strict=True)) / total
    mean_y = sum(w * v for w, v in zip(weights, y, strict=True)) / total
    triples = list(zip(weights, x, y, strict=True))
    spread = sum(w * (a - mean_x) ** 2 for w, a, _ in triples)
    if spread <= 1e-12 * mean_x**2 * total:
        return 0.0, mean_y / mean_x, 1.0
    slope = sum(w * (a - mean_x) * (b - mean_y) for w, a, b in triples) / spread
    fixed = mean_y - slope * mean_x
    missed = sum(w * (b - fixed - slope * a) ** 2 for w, a, b in triples)
    varies = sum(w * (b - mean_y) ** 2 for w, _, b in triples)
    return fixed, slope, 1 - missed / varies if varies > 0 else 1.0


@contextmanager
def threads_at(count: int) -> Iterator[None]:
    """torch's, and so the engine's, number of threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def main(
    output: Annotated[Path, typer.Option(help="Folder for scaling.csv.")],
    axis: Annotated[
        list[str] | None, typer.Option(help=f"{', '.join(AXES)}; repeat it, all by default.")
    ] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="float32, bfloat16, int8.")] = None,
    threads: Annotated[int, typer.Option(help="At most; torch's own by default.")] = 0,
    repeats: Annotated[int, typer.Option(help="Interleaved rounds.")] = 5,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tiny sizes, to try it.")] = False,
) -> None:
    """Measure the axes asked for and append them to OUTPUT/scaling.csv."""
    check_each("axis", axis or [], AXES)
    check_each("dtype", dtype or [], DTYPES)
    if repeats < 1:
        refuse(f"--repeats: got {repeats}, expected more")
    most = os.cpu_count() or 1
    if not 0 <= threads <= most:
        refuse(f"--threads: got {threads}, expected 1 to {most}, the cores that there are")
    if missing := native.cpu_missing():
        refuse(f"the CPU engine cannot run here: {missing}")
    width, points = axes(dry_run, threads or torch.get_num_threads())
    names = [name for name in AXES if name in (axis or AXES)]
    formats = dtype or (["float32"] if dry_run else list(DTYPES))
    repeats = 1 if dry_run else repeats
    done: list[Row] = []
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=len(formats) * len(names))
        inner = bar.add_task("")
        for format in formats:
            for name in names:
                bar.update(task, description=f"{name}, {format}")

                def report(at: int, total: int, what: str) -> None:
                    bar.update(inner, completed=at, total=total, description=what)

                for row in Axis(name, points[name], width, format).measure(repeats, report):
                    where = stamp("cpu", dry_run)
                    append(output / "scaling.csv", [{**where, "hidden": width.hidden, **row}])
                    done.append(row)
                bar.advance(task)
    _print(done)


def _print(done: list[Row]) -> None:
    console = Console()
    table = Table(title="bench.scaling")
    for column in ("dtype", "axis", "value", "ms", "allowed", "roofline", "growth", "step"):
        table.add_column(column, justify="left" if column in ("dtype", "axis") else "right")
    for row in done:
        table.add_row(
            *(str(row[key]) for key in ("dtype", "axis", "value")),
            f"{row['seconds'] * 1e3:.3f}",
            f"{row['expected'] * 1e3:.3f}",
            f"{row['efficiency']:.2f}",
            f"{row['growth']:.2f}",
            f"{row['step']:.2f}{' !' if row['flagged'] else ''}",
            style="dim" if row["loaded"] else None,
        )
    console.print(table)
    for row in {(r["dtype"], r["axis"]): r for r in done}.values():
        console.print(
            f"{row['axis']}, {row['dtype']}: {row['fit_fixed'] * 1e3:.3f} ms + "
            f"{row['fit_slope']:.2f} x what the roofline allows (R² {row['fit_r2']:.3f})",
            highlight=False,
        )
    for row in done:
        if row["flagged"]:
            console.print(
                f"grows faster than it should: {row['axis']} {row['value']}, {row['dtype']}: "
                f"{row['growth']:.2f} x the roofline's growth, {row['step']:.2f} x since the "
                "point before",
                highlight=False,
            )
    if any(row["loaded"] for row in done):
        console.print("dim rows: other processes used the machine, and no quiet run could be had")


if __name__ == "__main__":
    typer.run(main)
