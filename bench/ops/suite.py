"""Cases one after the other: peaks of the same run, rows for ops.csv, and lines to read."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.text import Text

from bench.ops.cases import make_case
from bench.ops.contest import KERNELS, Clock, Contest, Outcome, hold, kernels_of
from bench.ops.grid import DTYPES, NAMES, ROUTES, ROWS, SHAPES, Selection, Spec
from bench.ops.pool import Maker, TooLarge, cold_bytes
from bench.results_file import append, stamp
from dynkern.evaluation.peaks import Peaks, measure_peaks
from dynkern.evaluation.timing import Spread
from dynkern.kernels import native
from dynkern.ops.backends import DEVICES

Row = dict[str, Any]
FILE = "ops.csv"


@dataclass
class Suite:
    """How cases are measured on this machine. kernels: backends to time beside the baselines.
    clock: None to check results alone. cold: bytes of a pool, the device's by default. products:
    size of the matrix product that reads the arithmetic peak, measure_peaks' own by default.
    """

    kernels: Sequence[str] = KERNELS
    clock: Clock | None = field(default_factory=Clock)
    cold: int | None = None
    products: int | None = None
    trial: bool = False
    left_out: dict[str, str] = field(default_factory=dict)
    _peaks: dict[tuple[str, str], Peaks] = field(default_factory=dict)

    def devices(self) -> list[torch.device]:
        """Where kernels asked for can run: the GPU first."""
        found = []
        if torch.cuda.is_available() and {"triton", "cuda"} & set(self.kernels):
            found.append(torch.device("cuda", torch.cuda.current_device()))
        if "cpu" in self.kernels or not found:
            found.append(torch.device("cpu"))
        return found

    def missing(self, ops: Sequence[str]) -> list[str]:
        """A line for each backend asked for that cannot run here."""
        reasons: dict[str, str] = {}
        for name, op in product(DEVICES, ops):
            for backend, why in kernels_of(op, torch.device(name), self.kernels).items():
                if why:
                    reasons[backend] = why
        if not torch.cuda.is_available():
            # under Triton's interpreter kernels run, at a thousandth of their speed
            for backend in {"triton", "cuda"} & set(self.kernels):
                reasons.setdefault(backend, "no CUDA device")
        return [f"{backend}: {reasons[backend]}" for backend in KERNELS if backend in reasons]

    def contest(self, spec: Spec, device: torch.device) -> Contest | None:
        """Check and time one case; None, with the reason in left_out, where memory is short."""
        try:
            case = make_case(spec, Maker(getattr(torch, spec.dtype), device, self.cold))
            return hold(case, device, self.kernels, self.clock)
        except (TooLarge, torch.cuda.OutOfMemoryError) as error:
            self.left_out[str(spec)] = str(error).splitlines()[0]
            return None

    def rows(self, contest: Contest) -> list[Row]:
        """A row of ops.csv for each contestant; those that are wrong have no seconds."""
        peaks = self.peaks(contest.spec.dtype, contest.device) if self.clock else None
        on = stamp(contest.device, self.trial)
        return [{**on, **_row(contest, one, peaks)} for one in contest.outcomes.values()]

    def peaks(self, dtype: str, device: torch.device) -> Peaks:
        """Of reading as much as a pool, and of products in that dtype; measured once a run."""
        key = dtype, device.type
        if key not in self._peaks:
            cold = cold_bytes(device) if self.cold is None else self.cold
            clock = self.clock or Clock()
            self._peaks[key] = measure_peaks(
                cold,
                getattr(torch, dtype),
                device,
                repeats=clock.repeats,
                matrix_size=self.products,
                limit=clock.limit,
                min_window=clock.window,
            )
        return self._peaks[key]


def _row(contest: Contest, outcome: Outcome, peaks: Peaks | None) -> Row:
    spec, name = contest.spec, outcome.backend
    row: Row = {
        "op": spec.op,
        "case": spec.name,
        "shape": spec.shape,
        "dtype": spec.dtype,
        "rows": spec.rows,
        "routes": spec.routes,
        "backend": name,
        "isa": native.cpu_isa() if name == "cpu" else "",
        "triton": version("triton") if name == "triton" else "",
        "seconds": "",
        "low": "",
        "high": "",
        "speedup": "",
        "speedup_library": "",
        "bytes": round(contest.bytes),
        "flops": round(contest.flops),
        "gb_per_second": "",
        "gflop_per_second": "",
        "bandwidth": "",
        "peak_gflop_per_second": "",
        "efficiency": "",
        "loaded": outcome.loaded,
        "foreign_load": outcome.foreign_load,
        "rejected": outcome.rejected,
        "note": outcome.fault,
    }
    spread = contest.speedup(name, name)
    if spread is None or peaks is None:
        return row
    seconds = Spread.of(outcome.seconds)
    median = seconds.median
    least = max(contest.bytes / peaks.bandwidth, contest.flops / peaks.flops)
    row |= {"seconds": median, "low": seconds.p20, "high": seconds.p80}
    for column, base in (("speedup", "reference"), ("speedup_library", "library")):
        ratio = contest.speedup(name, base)
        row[column] = ratio.median if ratio else ""
    row |= {
        "gb_per_second": contest.bytes / median / 1e9,
        "gflop_per_second": contest.flops / median / 1e9,
        "bandwidth": peaks.bandwidth / 1e9,
        "peak_gflop_per_second": peaks.flops / 1e9,
        "efficiency": least / median,
        "loaded": outcome.loaded or peaks.loaded,
    }
    return row


def check_selection(selection: Selection, kernels: Sequence[str]) -> None:
    """ValueError, one line, for what the grid does not know."""
    known = {
        "op": (selection.ops, tuple(NAMES)),
        "shape": (selection.shapes, tuple(SHAPES)),
        "dtype": (selection.dtypes, DTYPES),
        "routes": (selection.routes, ROUTES),
        "backend": (kernels, KERNELS),
    }
    for argument, (given, allowed) in known.items():
        for value in given or ():
            if value not in allowed:
                raise ValueError(
                    f"--{argument}: got {value!r}, expected one of {', '.join(allowed)}"
                )
    for rows in selection.rows or ():
        if not 1 <= rows <= ROWS[-1]:
            raise ValueError(f"--rows: got {rows}, expected 1 to {ROWS[-1]}")


def run(
    suite: Suite,
    specs: Sequence[Spec],
    output: Path | None = None,
    seconds: float | None = None,
    tell: Callable[[str], None] = print,
) -> bool:
    """Go through cases; rows to output/ops.csv as they come. seconds: begin no case after them.

    True unless a result was wrong.
    """
    done: list[Row] = []
    work = [(spec, device) for device in suite.devices() for spec in specs]
    for line in suite.missing([spec.op for spec in specs]):
        tell(line)
    began, begun = time.monotonic(), 0
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=len(work))
        for spec, device in work:
            if seconds is not None and time.monotonic() - began > seconds:
                break
            begun += 1
            bar.update(task, description=str(spec))
            contest = suite.contest(spec, device)
            if contest is not None:
                rows = suite.rows(contest)
                if output is not None:
                    append(output / FILE, rows)
                done += rows
            bar.advance(task)
    console = Console(soft_wrap=True)
    for line in _lines(done):
        console.print(line)
    for line in _remarks(suite, done, len(work) - begun):
        tell(line)
    return not any(row["note"] for row in done)


def _remarks(suite: Suite, done: Sequence[Row], not_begun: int) -> Iterator[str]:
    for row in done:
        if row["note"]:
            yield f"red: {_case(row)}: {row['backend']}: {row['note']}; not timed"
    for spec, why in suite.left_out.items():
        yield f"left out: {spec}: {why}"
    if not_begun:
        yield f"left out: {not_begun} cases, for which there was no time"
    if any(row["loaded"] for row in done):
        yield "dim rows: other processes used the machine, and no quiet run could be had"


HEADINGS = ("", "us", "x reference", "x library", "GB/s", "GFLOP/s", "of peak")
_LINE = "  {:<9} {:>10} {:>11} {:>9} {:>8} {:>8} {:>8}"


def _lines(done: Sequence[Row]) -> Iterator[Text]:
    """A case's name, and below it a line for each contestant."""
    yield Text(_LINE.format(*HEADINGS), "bold")
    before = ""
    for row in done:
        if (case := _case(row)) != before:
            yield Text(case)
            before = case
        numbers = ["" for _ in range(6)]
        if row["seconds"]:
            flops = row["gflop_per_second"]
            numbers = [
                f"{row['seconds'] * 1e6:.1f}",
                *(f"{row[key]:.2f}" if row[key] else "" for key in ("speedup", "speedup_library")),
                f"{row['gb_per_second']:.1f}",
                f"{flops:.1f}" if flops else "",
                f"{row['efficiency']:.0%}" if row["bytes"] else "",
            ]
        style = "red" if row["note"] else "dim" if row["loaded"] else ""
        yield Text(_LINE.format(row["backend"], *numbers), style)


def _case(row: Row) -> str:
    return str(Spec(*(row[key] for key in ("op", "case", "shape", "dtype", "rows", "routes"))))


def counts() -> dict[str, int]:
    """Cases of the default selection and of the whole grid, on one device."""
    return {
        "default": len(Selection().specs()),
        "all": len(Selection(everything=True).specs()),
    }
