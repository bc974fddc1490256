"""python -m bench.depths --model M --data D --table TABLE --output DIR: a depth for each sequence,
as time.

The oracle's allocation (at the budget of equal quality and at others) and a predictor's run for
real as ragged batches, fifo and cohort, beside full depth, the same budgets at random and uniform
routes at equal mean layers. All ways in turn (A B A B …), runs under load rejected, possible times
from parts measured in the same rounds. Lengths are natural, then forced. Template and lengths are
the table's; with --predictor only prompts that it was not trained on are run, and the oracle
allocates among exactly those that are run. Rows go to DIR/depths.csv as they come.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table as Grid

from bench.arguments import check_each, refuse
from bench.cpu_cases import worst_load
from bench.depths_cases import FULL, Case, cases, check_model, judged_prompts
from bench.results_file import append, stamp
from dynkern.allocation.table import Table, load_table
from dynkern.data import load_records
from dynkern.evaluation.calibration import Calibration
from dynkern.evaluation.judgement import judge
from dynkern.evaluation.measured_cost import counts_up_to
from dynkern.evaluation.probe import EngineProbe
from dynkern.evaluation.quality import Prompt
from dynkern.evaluation.rouge import score
from dynkern.evaluation.sweep import encode_prompts
from dynkern.evaluation.timing import Timings, interleave
from dynkern.llm import LLM
from dynkern.runtime.request import RunResult

# of the possible speed-up, at full depth's ROUGE-L or better
LEAST_SHARE = 0.9
# requests of forced length: generations of slots, and how many at least
FORCED_GENERATIONS, LEAST_FORCED = 4, 16
Row = dict[str, Any]


@dataclass(frozen=True)
class Work:
    """What runs at one batch size: prompts in order, new tokens at most, natural or forced."""

    llm: LLM
    prompts: list[Prompt]
    batch: int
    new_tokens: int
    forced: bool
    repeats: int

    def run(self, case: Case) -> RunResult:
        """All prompts under a case."""
        return self.llm.run(
            [prompt.ids for prompt in self.prompts],
            case.policy,
            max_new_tokens=self.new_tokens,
            batch_size=self.batch,
            force_length=self.forced,
            schedule=case.schedule,
        )

    def measure(self, ways: Sequence[Case]) -> Iterator[Row]:
        """A row for each case; full depth is the first of them."""
        lengths = [len(c.token_ids) for c in self.run(ways[0]).completions]
        calibration = self._calibration(sum(lengths) // len(lengths) // 2)
        runs = {case.name: lambda case=case: self.run(case) for case in ways}
        timings = interleave({**calibration.cases, **runs}, self.repeats)
        full = self._quality(timings[FULL].values[-1][-1])
        for case in ways:
            yield self._row(case, timings, calibration, full)

    def _calibration(self, middle: int) -> Calibration:
        ids = [prompt.ids for prompt in self.prompts]
        ids = [ids[i % len(ids)] for i in range(self.batch)]
        probe = EngineProbe.after(self.llm.engine, ids, middle, with_fill=False)
        length = sum(map(len, ids)) / len(ids) + middle
        return Calibration(probe, counts_up_to(self.batch), length=length)

    def _row(self, case: Case, timings: Timings[Any], calibration: Calibration, full: float) -> Row:
        result: RunResult = timings[case.name].values[-1][-1]
        passes = result.stats.passes
        judged = judge(timings, calibration, case.name, FULL)
        whole = timings.ratio(FULL, case.name, lambda r: r.stats.seconds)
        quality = self._quality(result)
        tokens = sum(len(c.token_ids) for c in result.completions)
        return {
            "lengths": "forced" if self.forced else "natural",
            "way": case.way,
            "target": case.target,
            "schedule": case.schedule,
            "rougeL": "" if self.forced else quality,
            "rougeL_full": "" if self.forced else full,
            "mean_tokens": tokens / len(result.completions),
            "mean_layers": sum(sum(c.layer_rows) for c in passes) / sum(c.rows for c in passes),
            "mean_union": sum(c.union for c in passes) / len(passes),
            "mean_rows": sum(c.rows for c in passes) / len(passes),
            "seconds": timings[case.name].spread.median,
            "speedup": whole.median,
            "speedup_p20": whole.p20,
            "speedup_p80": whole.p80,
            "seconds_decode": judged.seconds.median,
            "speedup_decode": judged.speedup.median,
            "speedup_decode_p20": judged.speedup.p20,
            "speedup_decode_p80": judged.speedup.p80,
            "possible_decode": judged.predicted_speedup,
            "share": judged.realisation,
            "verdict": "" if self.forced else verdict(case, judged.realisation, quality, full),
            "loaded": timings[case.name].loaded or timings[FULL].loaded,
            "foreign_load": max(worst_load(timings[name]) for name in (case.name, FULL)),
        }

    def _quality(self, result: RunResult) -> float:
        """Mean ROUGE-L of the texts."""
        scores = [
            score(c.text, prompt.record.references)["rougeL"]
            for c, prompt in zip(result.completions, self.prompts, strict=True)
        ]
        return sum(scores) / len(scores)


def verdict(case: Case, share: float, quality: float, full: float) -> str:
    """Of an allocation that is as good as full depth: whether it turned into time."""
    if case.way != "allocation" or quality < full - 1e-9:
        return ""
    return "held" if share >= LEAST_SHARE else "missed"


def main(
    model: Annotated[str, typer.Option(help="The checkpoint that the table is of.")],
    data: Annotated[str, typer.Option(help="The data that the table was filled with.")],
    table: Annotated[Path, typer.Option(help="Table of `dynkern oracle`, or its folder.")],
    output: Annotated[Path, typer.Option(help="Folder for depths.csv.")],
    predictor: Annotated[str | None, typer.Option(help="Of `dynkern train-predictor`.")] = None,
    budget: Annotated[
        list[str] | None, typer.Option(help="Of the oracle; repeat it. Default: equal and 0.5.")
    ] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Rows; default 1, 8 and 32.")] = None,
    prompts: Annotated[int, typer.Option(help="The first N that qualify.")] = 96,
    dtype: Annotated[str | None, typer.Option(help="Default: the table's.")] = None,
    repeats: Annotated[int, typer.Option(help="Interleaved rounds.")] = 3,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Small counts, to try it.")] = False,
) -> None:
    """Run every way at every batch size and append the rows to OUTPUT/depths.csv."""
    check_each("dtype", [dtype] if dtype else [], ("float32", "bfloat16", "int8"))
    numbers = {"batch": batch or [], "prompts": [prompts], "repeats": [repeats]}
    for name, values in numbers.items():
        for value in values:
            if value < 1:
                refuse(f"--{name}: got {value}, expected 1 or more")
    if dry_run:
        prompts, repeats = min(prompts, 8), 1
    batches = batch or ([1, 3] if dry_run else [1, 8, 32])
    try:
        held = load_table(table)
        llm = LLM(model, dtype=dtype or held.manifest["dtype"])
        check_model(llm, held)
        how = (predictor, budget or ["equal", "0.5"], batches, prompts, repeats, dry_run)
        made = list(_measured(llm, data, held, output, *how))
    except (ValueError, FileNotFoundError) as error:
        refuse(str(error))
    _print(made)


def _measured(
    llm: LLM,
    data: str,
    held: Table,
    output: Path,
    predictor: str | None,
    budgets: list[str],
    batches: Sequence[int],
    count: int,
    repeats: int,
    dry_run: bool,
) -> Iterator[Row]:
    """Rows, each in the file already."""
    new_tokens = int(held.manifest["max_new_tokens"])
    encoded, _ = encode_prompts(llm, load_records(data), held.manifest["template"], new_tokens)
    chosen, mine = judged_prompts(encoded, held, predictor, count)
    ids = [prompt.ids for prompt in chosen]
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=2 * len(batches))
        for size in batches:
            ways = cases(llm, ids, mine, budgets, predictor, size)
            for forced in (False, True):
                most = max(LEAST_FORCED, FORCED_GENERATIONS * size) if forced else len(chosen)
                work = Work(llm, chosen[:most], size, new_tokens, forced, repeats)
                kind = "forced" if forced else "natural"
                bar.update(task, description=f"{size} rows, {kind} lengths")
                on = {
                    "model": llm.path.name,
                    "dtype": str(llm.dtype).removeprefix("torch."),
                    "batch": size,
                    "prompts": len(work.prompts),
                }
                for row in work.measure(ways):
                    where = stamp("cpu", dry_run)
                    append(output / "depths.csv", [{**where, **on, **row}])
                    yield {**on, **row}
                bar.advance(task)


def _print(made: list[Row]) -> None:
    grid = Grid(title="bench.depths")
    for column in ("batch", "lengths", "way", "target", "schedule", "layers", "ROUGE-L"):
        grid.add_column(column, overflow="fold")
    for column in ("speed-up", "decode", "possible", "share", "verdict"):
        grid.add_column(column)
    for row in made:
        grid.add_row(
            *(str(row[key]) for key in ("batch", "lengths", "way", "target", "schedule")),
            f"{row['mean_layers']:.2f}",
            f"{row['rougeL']:.3f}" if row["rougeL"] != "" else "",
            *(f"{row[key]:.2f}" for key in ("speedup", "speedup_decode", "possible_decode")),
            f"{row['share']:.2f}",
            row["verdict"],
            style="dim" if row["loaded"] else None,
        )
    console = Console()
    console.print(grid)
    for row in made:
        if row["verdict"]:
            console.print(
                f"{row['target']}, {row['schedule']}, {row['batch']} rows: ROUGE-L "
                f"{row['rougeL']:.3f} against {row['rougeL_full']:.3f} at {row['mean_layers']:.2f} "
                f"layers; decoding {row['speedup_decode']:.2f} times as fast, possible "
                f"{row['possible_decode']:.2f}, share {row['share']:.2f}, wanted {LEAST_SHARE}: "
                f"{row['verdict']}",
                highlight=False,
            )
    if any(row["loaded"] for row in made):
        console.print("dim rows: other processes used the machine, and no quiet run could be had")


if __name__ == "__main__":
    typer.run(main)
