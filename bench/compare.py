"""python -m bench.compare OLD NEW: what changed beyond noise between two results files.

OLD and NEW are CSV files of one benchmark; with --old-commit and --new-commit they may be the same
file. Rows of the same case on the same device are compared by their last measurement. Ratios (which
were taken within one run) always count, seconds on a GPU or with --absolute only. Exit code 1 where
something became worse.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from bench.arguments import refuse

Row = Mapping[str, str]

# columns that say when, on what state and how quietly a row was measured, and nothing of its case
CONDITIONS = {
    *("time", "commit", "torch", "triton", "dry_run", "loaded", "foreign_load"),
    *("engine_version", "note", "bandwidth"),
    # of ops.csv
    *("peak_gflop_per_second", "rejected"),
}
# what is compared, and whether more is better
RATIOS = {
    "speedup": True,
    "speedup_decode": True,
    "speedup_library": True,
    "realisation": True,
    "saved_fraction": True,
    "efficiency": True,
    "roofline_efficiency": True,
    "rougeL": True,
    "agreement_with_full": True,
    "share": True,
    "over_possible": False,
    "error": False,
    "loss_ratio": False,
    "registers": False,
    "stack": False,
    "shared": False,
}
ABSOLUTE = {"seconds": False, "gb_per_second": True, "tokens_per_second": True}
# measured, but derived from what is compared or not a merit
OTHER = {
    *("low", "high", "predicted", "predicted_speedup", "mean_layers", "new_tokens"),
    *("rougeL_low", "rougeL_high", "peak_memory_bytes", "loss", "weight_bytes"),
    *("zeros", "zero_pairs", "zero_fours", "zeros_of_8", "tensor_core", "loads_16"),
    # of the other benchmarks: parts of what is compared, predictions, fits and verdicts
    *("speedup_low", "speedup_high", "speedup_p20", "speedup_p80", "seconds_decode"),
    *("speedup_decode_p20", "speedup_decode_p80", "possible_decode", "predicted_decode"),
    *("base_seconds", "base_realisation", "expected_roofline", "expected_measured"),
    *("auto_roofline", "auto_measured", "verdict", "mean_union", "mean_rows", "mean_tokens"),
    *("texts_seconds", "texts_possible", "losses_seconds", "losses_possible"),
    *("predicted_earlier", "error_earlier", "expected", "growth", "flagged", "warm_up"),
    *("fit_fixed", "fit_slope", "fit_r2", "controller_minus_low", "controller_minus_high"),
    *(f"{of}_{p}" for of in ("first", "token", "wait") for p in ("p50", "p95", "p99")),
    # of random routes: other ones in each run
    *("bytes", "flops", "gflop_per_second"),
}
# a difference below this share is noise whatever the spread says
LEAST_CHANGE = 0.03


@dataclass(frozen=True)
class Change:
    """One measure of one case. noise: the share of `old` that a repetition may differ by."""

    case: str
    measure: str
    old: float
    new: float
    noise: float
    more_is_better: bool

    @property
    def share(self) -> float:
        """Relative change; infinite from 0 to something."""
        if self.old == 0:
            return 0.0 if self.new == 0 else math.copysign(math.inf, self.new)
        return (self.new - self.old) / abs(self.old)

    @property
    def verdict(self) -> str:
        """ "better", "worse" or "same"."""
        if abs(self.share) <= self.noise:
            return "same"
        return "better" if (self.share > 0) == self.more_is_better else "worse"


def read(path: Path, commit: str | None) -> list[Row]:
    """Rows of a results file, dry runs left out; those of `commit` only where it is given."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        refuse(f"{path}: cannot be read ({error})")
    rows = [row for row in rows if row.get("dry_run", "0") in ("", "0")]
    if commit is not None:
        rows = [row for row in rows if row.get("commit") == commit]
    if not rows:
        of = "" if commit is None else f" of commit {commit!r}"
        refuse(f"{path}: no measured rows{of}, expected a CSV of bench/results")
    return rows


def compare(old: Iterable[Row], new: Iterable[Row], absolute: bool) -> list[Change]:
    """Changes of every case that both have, in the order of `new`."""
    before, after = _by_case(old), _by_case(new)
    changes = []
    for case, rows in after.items():
        if case not in before:
            continue
        seconds = absolute or "NVIDIA" in rows[-1].get("device", "")
        measures = RATIOS | ABSOLUTE if seconds else RATIOS
        for measure, more_is_better in measures.items():
            olds, news = (_numbers(r, measure) for r in (before[case], rows))
            if olds and news:
                noise = _noise(before[case], olds, rows, news)
                change = (case, measure, olds[-1], news[-1], noise, more_is_better)
                changes.append(Change(*change))
    return changes


def main(
    old: Annotated[Path, typer.Argument(help="Results file to compare with.")],
    new: Annotated[Path, typer.Argument(help="Results file that is compared.")],
    old_commit: Annotated[str | None, typer.Option(help="Rows of this commit of OLD.")] = None,
    new_commit: Annotated[str | None, typer.Option(help="Rows of this commit of NEW.")] = None,
    absolute: Annotated[
        bool, typer.Option("--absolute", help="Seconds of a CPU too: the same quiet machine.")
    ] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="List what stayed the same as well.")
    ] = False,
) -> None:
    """List what changed beyond noise; exit code 1 where something became worse."""
    changes = compare(read(old, old_commit), read(new, new_commit), absolute)
    if not changes:
        refuse(f"{new}: no case in common with {old}, expected two files of one benchmark")
    shown = [c for c in changes if everything or c.verdict != "same"]
    counts = {v: sum(c.verdict == v for c in changes) for v in ("better", "worse", "same")}
    if shown:
        Console().print(_table(shown))
    print(", ".join(f"{n} {verdict}" for verdict, n in counts.items()))
    raise typer.Exit(1 if counts["worse"] else 0)


def _by_case(rows: Iterable[Row]) -> dict[str, list[Row]]:
    measured = CONDITIONS | OTHER | RATIOS.keys() | ABSOLUTE.keys()
    cases: dict[str, list[Row]] = {}
    for row in rows:
        parts = [v for k, v in row.items() if k not in measured and v]
        cases.setdefault(" ".join(parts), []).append(row)
    return cases


def _numbers(rows: Iterable[Row], measure: str) -> list[float]:
    """The measure in every repetition that has it, oldest first."""
    return [float(row[measure]) for row in rows if row.get(measure)]


def _noise(old_rows: list[Row], olds: list[float], new_rows: list[Row], news: list[float]) -> float:
    """How far repetitions lie apart: between runs where there are several, else within one."""
    shares = [LEAST_CHANGE]
    for values in (olds, news):
        middle = abs(median(values))
        if len(values) > 1 and middle > 0:
            shares.append((max(values) - min(values)) / middle)
    for row in (old_rows[-1], new_rows[-1]):
        spread = [row.get(name) for name in ("low", "high", "seconds")]
        if all(spread):
            low, high, seconds = map(float, spread)
            shares.append((high - low) / 2 / seconds)
    return max(shares)


def _table(changes: list[Change]) -> Table:
    table = Table(box=box.SIMPLE)
    for column in ("case", "measure", "old", "new", "change", "noise", ""):
        table.add_column(column, overflow="fold")
    for c in changes:
        numbers = f"{c.old:.4g}", f"{c.new:.4g}", f"{c.share:+.1%}", f"{c.noise:.1%}"
        table.add_row(c.case, c.measure, *numbers, c.verdict)
    return table


if __name__ == "__main__":
    typer.run(main)
